"""Accuracy and pass@k against exact values, and which interval each has."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.evals.accuracy import pass_at_k, pass_rates


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


def test_nothing_to_resample():
    all_right = pass_rates(with_correct(*[4] * 10, samples=4), [1, 4])
    assert all_right[1] == all_right[4] == pytest.approx((1.0, 0.722467, 1.0), abs=1e-6)


def test_intervals_are_the_same_every_time():
    correct = with_correct(1, 2, 3, 4, 0, 2, samples=4)
    assert pass_rates(correct, [1, 2]) == pass_rates(correct, [1, 2])
