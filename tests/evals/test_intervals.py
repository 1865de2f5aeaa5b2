"""Confidence intervals: by hand, against scipy, and against what repeated tests would give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlt_jax.evals.intervals import bootstrap_interval, t_half_width, t_interval, wilson_interval


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_students_t_is_scipys(values):
    mean, half_width = t_interval(values)
    assert half_width is not None
    if half_width > 1e-9:  # else scipy returns NaN
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (mean - half_width, mean + half_width) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_a_single_value_has_no_interval():
    assert t_interval([3.0]) == (3.0, None)


def test_half_a_width_from_a_standard_error():
    assert t_half_width(0.25, count=3) == pytest.approx(4.30265 * 0.25, rel=1e-5)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964, by hand
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (50, 100, 0.403832, 0.596168)],
)
def test_wilson(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-6)


def test_the_bootstrap_holds_what_it_promises():
    """Of 200 test sets the interval holds the true accuracy in about 95 %."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        correct = rng.random((40, 4)) < rng.beta(1, 1, size=(40, 1))  # questions differ; mean 1/2
        low, high = bootstrap_interval(correct.mean(axis=1))
        held += low <= 0.5 <= high
    assert 0.90 <= held / 200 <= 0.98


def test_a_single_question_has_wilsons_interval():
    assert bootstrap_interval(np.array([1.0])) == pytest.approx(wilson_interval(1, 1))
