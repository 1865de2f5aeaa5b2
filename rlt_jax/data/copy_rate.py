"""How much of an explanation repeats the solution it was given: the hack to watch."""

import numpy as np


def copy_rate(thought_ids: np.ndarray, solution_ids: np.ndarray, run: int = 8) -> float:
    """Share of the thought's tokens inside a run of at least `run` tokens that also occurs in the solution.

    0 for a thought or a solution of fewer than `run` tokens. Linear in both lengths.

    Args:
      thought_ids: i32[K].
      solution_ids: i32[M].
    """
    if len(thought_ids) < run or len(solution_ids) < run:
        return 0.0
    thought_runs = np.lib.stride_tricks.sliding_window_view(np.asarray(thought_ids, np.int32), run)
    solution_runs = np.lib.stride_tricks.sliding_window_view(np.asarray(solution_ids, np.int32), run)
    known = {row.tobytes() for row in solution_runs}
    starts = np.asarray([row.tobytes() in known for row in thought_runs])
    edges = np.zeros(len(thought_ids) + 1, np.int64)  # +1 where a copied run begins, -1 where it ends
    edges[: len(starts)] += starts
    edges[run:] -= starts
    return float((np.cumsum(edges)[:-1] > 0).mean())
