"""How good a model is on a test set, and how sure that is: accuracy, pass@k, confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
BATCH = 100  # resamples at one time, which bounds the memory


class Estimate(NamedTuple):
    """A share with its confidence interval of 95 %."""

    value: float
    low: float
    high: float


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Probability that at least one of k answers is right, without bias (Chen et al., arXiv 2107.03374, eq. 1).

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
    factor = {c: np.prod(1 - np.minimum(k / np.arange(n - c + 1, n + 1), 1)) for c in range(n + 1)}
    return np.array([1.0 - factor[int(c)] for c in correct.sum(axis=1)])


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Of a share of independent trials (Wilson, JASA 1927): it stays inside [0, 1], also at 0 and at all."""
    interval = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Of a mean over questions: percentile bootstrap over the questions, whose samples stay together.

    Where all questions have the same value there is nothing to resample, and it is Wilson's for as many trials.

    Args:
      values: f64[Q] in [0, 1].
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return wilson_interval(round(float(values.sum())), len(values))
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, batch=BATCH, method="percentile", rng=0
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def pass_rates(correct: np.ndarray, ks: Sequence[int]) -> dict[int, Estimate]:
    """Mean pass@k of a test set for each k; pass@1 is the accuracy.

    Intervals: Wilson's for one sample a question, else the bootstrap over questions.

    Args:
      correct: bool[Q, n].
    """
    if correct.shape[1] == 1:
        interval = wilson_interval(int(correct.sum()), len(correct))
        return {k: Estimate(float(pass_at_k(correct, k).mean()), *interval) for k in ks}
    values = {k: pass_at_k(correct, k) for k in ks}
    return {k: Estimate(float(value.mean()), *mean_interval(value)) for k, value in values.items()}
