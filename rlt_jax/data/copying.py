"""How much of an explanation copies the solution, or repeats itself: two ways to hack the reward."""

import numpy as np

RUN = 8  # tokens; shorter runs are often shared by chance


def copy_rate(thought_ids: np.ndarray, solution_ids: np.ndarray, run: int = RUN) -> float:
    """Share of the thought's tokens inside a run of at least `run` tokens that also occurs in the solution.

    0 for a thought or a solution of fewer than `run` tokens. Linear in both lengths.

    Args:
      thought_ids: i32[K].
      solution_ids: i32[M].
    """
    in_solution = set(_runs(solution_ids, run))
    copied = np.array([tokens in in_solution for tokens in _runs(thought_ids, run)], bool)
    return _share_inside(copied, len(thought_ids), run)


def repeat_rate(thought_ids: np.ndarray, run: int = RUN) -> float:
    """Share of the thought's tokens inside a run of at least `run` tokens that has occurred before in the thought.

    The first occurrence does not count, nor one that overlaps the run: a text written twice has 0.5. Repeated text is
    easy to predict, so it can lower a KL term that is a mean over tokens. Linear in the length.

    Args:
      thought_ids: i32[K].
    """
    first: dict[bytes, int] = {}  # run -> where it first begins
    repeated = [start - first.setdefault(tokens, start) >= run for start, tokens in enumerate(_runs(thought_ids, run))]
    return _share_inside(np.array(repeated, bool), len(thought_ids), run)


def _runs(ids: np.ndarray, run: int) -> list[bytes]:
    """All runs of `run` tokens, as dictionary keys; none if the text is shorter."""
    if len(ids) < run:
        return []
    return [row.tobytes() for row in np.lib.stride_tricks.sliding_window_view(np.asarray(ids, np.int32), run)]


def _share_inside(starts: np.ndarray, length: int, run: int) -> float:
    """Share of `length` tokens inside runs; `starts` (bool[length - run + 1]) marks where a run begins."""
    if not starts.any():
        return 0.0
    edges = np.zeros(length + 1, np.int64)  # +1 where a run begins, -1 where it ends
    edges[: len(starts)] += starts
    edges[run:] -= starts
    return float((np.cumsum(edges)[:-1] > 0).mean())
