"""How much of an explanation repeats the solution it was given, or itself: the hacks to watch."""

import numpy as np

RUN = 8  # tokens: shorter runs are common by chance


def copy_rate(thought_ids: np.ndarray, solution_ids: np.ndarray, run: int = RUN) -> float:
    """Share of the thought's tokens inside a run of at least `run` tokens that also occurs in the solution.

    0 for a thought or a solution of fewer than `run` tokens. Linear in both lengths.

    Args:
      thought_ids: i32[K].
      solution_ids: i32[M].
    """
    known = set(_runs(solution_ids, run))
    return _share_inside(np.array([found in known for found in _runs(thought_ids, run)], bool), len(thought_ids), run)


def repeat_rate(thought_ids: np.ndarray, run: int = RUN) -> float:
    """Share of the thought's tokens inside a run of at least `run` tokens that the thought held before that run began.

    The first occurrence does not count: a text said twice has 0.5. What is said again surprises nobody, so it can lower
    a KL term that is a mean over tokens. Linear in the length.

    Args:
      thought_ids: i32[K].
    """
    first: dict[bytes, int] = {}
    repeated = [start - first.setdefault(found, start) >= run for start, found in enumerate(_runs(thought_ids, run))]
    return _share_inside(np.array(repeated, bool), len(thought_ids), run)


def _runs(ids: np.ndarray, run: int) -> list[bytes]:
    """All runs of `run` tokens, as keys; none in a shorter text."""
    if len(ids) < run:
        return []
    return [row.tobytes() for row in np.lib.stride_tricks.sliding_window_view(np.asarray(ids, np.int32), run)]


def _share_inside(starts: np.ndarray, length: int, run: int) -> float:
    """Share of `length` tokens inside a run that begins where `starts` (bool[length - run + 1]) says so."""
    if not starts.any():
        return 0.0
    edges = np.zeros(length + 1, np.int64)  # +1 where a run begins, -1 where it ends
    edges[: len(starts)] += starts
    edges[run:] -= starts
    return float((np.cumsum(edges)[:-1] > 0).mean())
