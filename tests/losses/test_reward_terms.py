"""Terms beside the paper's reward: their values by hand, poisoned padding, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.losses.reward_terms import copy_penalty, length_target, likelihood, repetition_penalty, soft_overlong

LOGPS = np.log(np.array([[0.5, 0.5, 1.0], [0.1, 0.001, 0.001]], np.float32))
MASK = np.array([[True, True, False], [True, False, False]])
VALUES = {  # by hand: 0.5 * 0.5 over two tokens; 0.1 over one
    "prob": [0.25, 0.1],
    "prob_per_token": [0.5, 0.1],
    "logp": [np.log(0.25), np.log(0.1)],
    "logp_per_token": [np.log(0.5), np.log(0.1)],
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("padding", [None, np.nan, np.inf, -np.inf])
def test_likelihood(kind, padding):
    logps = LOGPS if padding is None else np.where(MASK, LOGPS, padding)
    found = likelihood(logps, MASK, kind=kind)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, VALUES[kind], rtol=1e-6)


def test_a_long_unlikely_solution_has_probability_0_and_a_finite_log_prob():
    logps, mask = np.full((1, 2000), -5.0, np.float32), np.ones((1, 2000), bool)
    assert likelihood(logps, mask, kind="prob")[0] == 0 and likelihood(logps, mask, kind="logp")[0] == -10_000
    assert likelihood(logps, mask, kind="prob_per_token")[0] == pytest.approx(np.exp(-5))


def test_a_row_without_a_solution_is_refused():
    with pytest.raises(ValueError, match="row 1 has no token of a solution"):
        likelihood(np.zeros((2, 1)), np.array([[True], [False]]), kind="prob")


def test_rates_are_subtracted():
    rates = np.array([0.0, 0.25, 1.0])
    for penalty in (copy_penalty, repetition_penalty):
        assert penalty(rates).tolist() == [0.0, -0.25, -1.0] and penalty(rates).dtype == np.float32


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (10, 20, [-1.0, -1.0, -0.25, 0.0, 0.0, 0.0, -0.25, -1.0, -1.0]),
        (0, 20, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.25, -1.0, -1.0]),
        (10, None, [-1.0, -1.0, -0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_length_outside_of_the_range_costs_up_to_1(low, high, expected):
    tokens = np.array([0, 6, 9, 10, 15, 20, 21, 24, 1000])
    assert length_target(tokens, low=low, high=high, slack=4).tolist() == expected


def test_soft_overlong_is_dapos_equation_13():
    tokens = np.array([1, 80, 81, 90, 99, 100, 101, 500])
    expected = [0.0, 0.0, -0.05, -0.5, -0.95, -1.0, -1.0, -1.0]
    np.testing.assert_allclose(soft_overlong(tokens, longest=100, buffer=20), expected, rtol=1e-6)


@given(tokens=st.lists(st.integers(0, 10_000), min_size=2, max_size=8), slack=st.integers(1, 500))
def test_penalties_are_bounded_and_grow_with_the_length(tokens, slack):
    lengths = np.sort(np.array(tokens))
    for penalty in (
        length_target(lengths, low=0, high=50, slack=slack),
        soft_overlong(lengths, longest=slack + 50, buffer=slack),
    ):
        assert np.all((penalty >= -1) & (penalty <= 0)) and np.all(np.diff(penalty) <= 0)
