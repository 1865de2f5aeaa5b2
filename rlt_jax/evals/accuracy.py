"""Accuracy and pass@k on a test set, with confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlt_jax.evals.intervals import bootstrap_interval, wilson_interval


class PassRate(NamedTuple):
    """A share of questions with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Unbiased probability that at least one of k answers is right (Chen et al., arXiv 2107.03374, eq. 1).

        pass@k = 1 − C(n − c, k) / C(n, k) = 1 − Π_{i = n − c + 1..n} (1 − k / i)      c of n samples right

    Args:
      correct: bool[Q, n].
      k: 1 to n.
    Returns:
      f64[Q], one per question; their mean is the test set's.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: expected 1 to {n}, the number of samples")
    all_wrong = {c: np.prod(1 - np.minimum(k / np.arange(n - c + 1, n + 1), 1)) for c in range(n + 1)}
    return np.array([1.0 - all_wrong[int(c)] for c in correct.sum(axis=1)])


def pass_rates(correct: np.ndarray, ks: Sequence[int]) -> dict[int, PassRate]:
    """Mean pass@k of a test set for each k; pass@1 is the accuracy.

    Intervals: Wilson's for one sample per question, else the bootstrap over questions.

    Args:
      correct: bool[Q, n].
    """
    if correct.shape[1] == 1:
        interval = wilson_interval(int(correct.sum()), len(correct))
        return {k: PassRate(float(pass_at_k(correct, k).mean()), *interval) for k in ks}
    values = {k: pass_at_k(correct, k) for k in ks}
    return {k: PassRate(float(value.mean()), *bootstrap_interval(value)) for k, value in values.items()}
