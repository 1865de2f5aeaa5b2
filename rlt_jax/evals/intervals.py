"""95 % confidence intervals: Student's t for means, Wilson's for shares, the bootstrap for means over questions."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
BATCH = 100  # resamples at a time, to bound the memory


def t_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its interval (Student's t); None for a single value.

    mean ± t_(0.975, n - 1) · std(values, n - 1) / sqrt(n)
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, t_half_width(error, count=len(values))


def t_half_width(standard_error: float, *, count: int) -> float:
    """Half the width of the interval of a mean of `count` >= 2 values with this standard error."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * standard_error


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Interval of a share of independent trials (Wilson, JASA 1927), within [0, 1] even if none or all succeed."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Interval of a mean over questions: percentile bootstrap over questions, keeping the samples of each together.

    If all questions have the same value, resampling changes nothing; then it is Wilson's for as many trials.

    Args:
      values: f64[Q] in [0, 1].
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return wilson_interval(round(float(values.sum())), len(values))
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, batch=BATCH, method="percentile", rng=0
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
