"""Accuracy, pass@k and their intervals, against exact values and against what repeated tests would give."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.accuracy import mean_interval, pass_at_k, pass_rates, wilson_interval


def with_correct(*counts: int, samples: int) -> np.ndarray:
    """bool[Q, n] with so many right answers per question."""
    return np.arange(samples) < np.array(counts)[:, None]


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(numbers):
    n, c, k = numbers
    expected = 1 - comb(n - c, k) / comb(n, k)
    assert pass_at_k(with_correct(c, samples=n), k) == pytest.approx([expected], abs=1e-12)


def test_pass_at_k_is_one_value_per_question():
    assert pass_at_k(with_correct(0, 1, 2, 4, samples=4), 2) == pytest.approx([0, 1 / 2, 5 / 6, 1])


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_samples(k):
    with pytest.raises(ValueError, match=f"k={k}: expected 1 to 4"):
        pass_at_k(with_correct(1, samples=4), k)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964, by hand
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (50, 100, 0.403832, 0.596168)],
)
def test_wilson(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-6)


def test_one_sample_a_question_has_wilsons_interval():
    rates = pass_rates(with_correct(*[1] * 8, *[0] * 2, samples=1), [1])
    assert rates[1] == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)


def test_samples_of_a_question_stay_together():
    """Five questions known for sure and five not known: 400 answers say no more than 10 questions do."""
    sure = pass_rates(with_correct(*[40] * 5, *[0] * 5, samples=40), [1])[1]
    assert sure.value == 0.5
    assert (sure.low, sure.high) == pytest.approx((0.2, 0.8), abs=0.01)  # quantiles of Binomial(10, 1/2) / 10
    spread = pass_rates(with_correct(*[18, 22] * 5, samples=40), [1])[1]
    assert spread.value == pytest.approx(0.5) and spread.high - spread.low < 0.07


def test_intervals_hold_what_they_promise():
    """Of 200 test sets the interval holds the true accuracy in about 95 %."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        correct = rng.random((40, 4)) < rng.beta(1, 1, size=(40, 1))  # questions differ; mean 1/2
        low, high = mean_interval(correct.mean(axis=1))
        held += low <= 0.5 <= high
    assert 0.90 <= held / 200 <= 0.98


def test_nothing_to_resample():
    all_right = pass_rates(with_correct(*[4] * 10, samples=4), [1, 4])
    assert all_right[1] == all_right[4] == pytest.approx((1.0, 0.722467, 1.0), abs=1e-6)
    assert mean_interval(np.array([1.0])) == pytest.approx(wilson_interval(1, 1))


def test_intervals_are_the_same_every_time():
    correct = with_correct(1, 2, 3, 4, 0, 2, samples=4)
    assert pass_rates(correct, [1, 2]) == pass_rates(correct, [1, 2])
