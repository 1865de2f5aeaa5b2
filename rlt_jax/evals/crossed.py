"""Means over seeds and questions: what a study with few seeds and many questions can be certain of.

Every seed answers the same questions, so a difference between two arms is a table d of seeds by questions,

    d_sq = mu + a_s + b_q + e_sq        (a two-way layout with random effects; a, b, e independent, of mean 0)

with variances of seeds, questions and rest. Whoever asks whether an arm is better asks about other seeds and other
questions than these. An interval over the questions alone says nothing of a, one over the seeds alone nothing of b.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from rlt_jax.evals.intervals import CONFIDENCE, t_half_width

POWER = 0.8
MOST_SEEDS = 1000


class Spread(NamedTuple):
    """Variances of a difference, in the square of its unit; each 0 or more."""

    seeds: float  # between seeds, of the mean over all possible questions
    questions: float  # between questions, of the mean over all possible seeds
    rest: float  # of one seed at one question around both


class Crossed(NamedTuple):
    """A mean over seeds and questions, in the unit of its values; half widths are of 95 % confidence intervals."""

    mean: float
    over_questions: float | None  # half width for other questions, of these very runs; None: fewer than 2 questions
    over_both: float | None  # half width for other seeds and other questions; None: fewer than 2 seeds
    p_value: float | None  # two-sided, that of `over_both`
    spread: Spread | None  # None: fewer than 2 seeds
    seeds: int
    questions: int


def crossed(values: np.ndarray) -> Crossed:
    """Mean of a table of seeds by questions, with its intervals.

    With S seeds, Q questions, mean squares A (seeds), B (questions) and E (rest) of the two-way layout:

        over questions:  t_(Q-1) · sqrt(B / SQ)
        over both:       the wider of  t_(S-1) · sqrt(A / SQ)  and  t_f · sqrt(V / SQ),   V = max(A + B - E, A, B)
                         f = V² / (A²/(S-1) + B²/(Q-1) + E²/((S-1)(Q-1))), at least S - 1     (Satterthwaite 1946)

    A + B - E is an unbiased estimate of S·Q·var(mean), the larger of A and B a lower limit of it. By itself the second
    is too narrow where there are few seeds that differ much, and the first where questions differ. In simulated studies
    (`tests/evals/test_crossed.py`) the wider one holds the truth in 94 % or more: 94 to 98 % where seeds differ, up to
    99.8 % with two seeds that do not.

    Args:
      values: f64[S, Q], finite. Q = 1: a quantity that is known by seed alone.
    Raises:
      ValueError: no values, another rank, or one that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected finite f64[S, Q] with S, Q >= 1, got shape {values.shape}")
    seeds, questions = values.shape
    mean = float(values.mean())
    by_seed, by_question = values.mean(axis=1), values.mean(axis=0)
    over_questions = None
    if questions > 1:
        error = float(np.std(by_question, ddof=1)) / math.sqrt(questions)
        over_questions = t_half_width(error, count=questions)
    if seeds < 2:
        return Crossed(mean, over_questions, None, None, None, seeds, questions)
    of_seeds = questions * float(np.var(by_seed, ddof=1))
    of_questions = seeds * float(np.var(by_question, ddof=1)) if questions > 1 else 0.0
    rest = 0.0
    if questions > 1:
        residual = values - by_seed[:, None] - by_question[None, :] + mean
        rest = float((residual**2).sum()) / ((seeds - 1) * (questions - 1))
    tests = _tests(of_seeds, of_questions, rest, seeds=seeds, questions=questions)
    half_width = max(_quantile(freedom, 1 - CONFIDENCE) * error for error, freedom in tests)
    p_value = max(_p_value(mean, error, freedom) for error, freedom in tests)
    spread = Spread(
        seeds=max(of_seeds - rest, 0.0) / questions,
        questions=max(of_questions - rest, 0.0) / seeds,
        rest=rest,
    )
    return Crossed(mean, over_questions, half_width, p_value, spread, seeds, questions)


def smallest_difference(spread: Spread, *, seeds: int, questions: int, level: float = 1 - CONFIDENCE) -> float:
    """The smallest true difference that a study finds with 80 % power, in the unit of the values.

    By the test of `crossed` at the expected mean squares, with the noncentral t distribution; 0 without any spread.

    Args:
      seeds: 2 or more.
      level: of the test, two-sided; of one of m differences that are corrected for their number 5 % / m, at worst.
    """
    rest = spread.rest
    of_seeds, of_questions = rest + questions * spread.seeds, rest + seeds * spread.questions
    tests = _tests(of_seeds, of_questions if questions > 1 else 0.0, rest, seeds=seeds, questions=questions)
    return max(error * _noncentrality(freedom, level) for error, freedom in tests)


def seeds_needed(spread: Spread, difference: float, *, questions: int) -> int | None:
    """How many seeds find this true difference with 80 % power at the 5 % level; None: not even MOST_SEEDS.

    The spread between questions does not shrink with more seeds, so on few questions no number may be enough.

    Args:
      difference: above 0, in the unit of the values.
    """

    def enough(seeds: int) -> bool:
        return smallest_difference(spread, seeds=seeds, questions=questions) <= difference

    return _first(enough, 2, MOST_SEEDS)


def mean_spread(spreads: Sequence[Spread]) -> Spread:
    """The mean of each variance over one or more differences."""
    return Spread(*(float(np.mean(variances)) for variances in zip(*spreads, strict=True)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in their order.

    With p_(1) <= ... <= p_(m), the corrected p_(k) is max_(j <= k) min(1, (m - j + 1) · p_(j)). Whoever calls those
    below 5 % certain is wrong about any of them in at most 5 % of studies, whatever depends on what.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def _tests(
    of_seeds: float, of_questions: float, rest: float, *, seeds: int, questions: int
) -> list[tuple[float, float]]:
    """(Standard error of the mean, degrees of freedom) of the two tests; a difference must pass both."""
    cells = seeds * questions
    alone = (math.sqrt(of_seeds / cells), float(seeds - 1))
    if questions < 2:
        return [alone]
    both = max(of_seeds + of_questions - rest, of_seeds, of_questions)
    if both == 0:
        return [alone]
    # shares, as squares of very small variances would vanish
    a, b, e = of_seeds / both, of_questions / both, rest / both
    freedom = 1 / (a**2 / (seeds - 1) + b**2 / (questions - 1) + e**2 / ((seeds - 1) * (questions - 1)))
    return [alone, (math.sqrt(both / cells), max(freedom, float(seeds - 1)))]


def _quantile(freedom: float, level: float) -> float:
    return float(stats.t.isf(level / 2, freedom))


def _p_value(mean: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(stats.t.sf(abs(mean) / error, freedom))


def _noncentrality(freedom: float, level: float) -> float:
    """The true difference in standard errors that a t test finds with probability POWER.

    The other side's tail, which is below 1e-4 there, is left out.
    """
    critical = _quantile(freedom, level)
    return float(brentq(lambda shift: stats.nct.sf(critical, freedom, shift) - POWER, 0.0, 2 * critical + 5))


def _first(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number from low to high for which `holds`, which holds for all above it too; None if none."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
