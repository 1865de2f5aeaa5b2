"""Which rows are kept: by hand, in ties, and as properties of any rewards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.rewards.ranking import ranks, select_rows

REWARDS = np.array([-1.0, 0.5, -3.0, 0.5, -2.0, 0.7])
QUESTIONS = ["a", "a", "b", "a", "b", "c"]

rewards_and_questions = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=40)


def kept(**what) -> list[int]:
    return select_rows(REWARDS, QUESTIONS, **what).tolist()


def test_best_of_each_question_by_hand():
    assert kept(best_of_question=1) == [1, 4, 5]  # row 3 ties with row 1: the earlier one stays
    assert kept(best_of_question=2) == [1, 2, 3, 4, 5]
    assert kept(best_of_question=9) == kept() == [0, 1, 2, 3, 4, 5]


def test_top_fraction_by_hand():
    assert kept(top_fraction=0.5) == [1, 3, 5]
    assert kept(top_fraction=1 / 3) == [1, 5]
    assert kept(top_fraction=0.01) == [5]  # never nothing
    assert kept(top_fraction=1.0) == [0, 1, 2, 3, 4, 5]


def test_a_fraction_means_the_nearest_whole_number():
    """Not one row more where a product of floats comes out a little too large: 0.07 * 100 = 7.000000000000001."""
    assert len(select_rows(np.arange(100.0), [0] * 100, top_fraction=0.07)) == 7


def test_first_the_best_of_each_question_then_the_fraction():
    assert kept(best_of_question=1, top_fraction=2 / 3) == [1, 5]  # of rows 1, 4, 5, not of all six


def test_ranks_by_hand():
    assert ranks(REWARDS).tolist() == [4, 2, 6, 3, 5, 1]


@given(rewards_and_questions, st.integers(1, 5))
def test_no_row_that_was_left_out_beats_one_that_was_kept(rows, count):
    rewards, questions = np.array([reward for reward, _ in rows], float), [question for _, question in rows]
    chosen = select_rows(rewards, questions, best_of_question=count).tolist()
    assert chosen == sorted(set(chosen))
    for question in set(questions):
        of_it = [i for i, q in enumerate(questions) if q == question]
        inside, outside = [i for i in of_it if i in chosen], [i for i in of_it if i not in chosen]
        assert len(inside) == min(count, len(of_it))
        assert all((rewards[i], -i) > (rewards[j], -j) for i in inside for j in outside)


@given(rewards_and_questions, st.floats(0.01, 1.0))
def test_a_fraction_keeps_the_highest_ranks(rows, fraction):
    rewards = np.array([reward for reward, _ in rows], float)
    chosen = select_rows(rewards, [None] * len(rows), top_fraction=fraction)
    assert sorted(ranks(rewards)[chosen]) == list(range(1, len(chosen) + 1))
    assert abs(len(chosen) - fraction * len(rows)) <= 0.5 or len(chosen) == 1


@pytest.mark.parametrize(
    ("rewards", "what", "message"),
    [
        ([0.0, np.nan], {}, "expected finite rewards"),
        ([0.0, np.inf], {}, "expected finite rewards"),
        ([0.0, 1.0], {"best_of_question": 0}, "expected best_of_question >= 1 and 2 questions, got 0, 2"),
        ([0.0, 1.0, 2.0], {"best_of_question": 1}, "expected best_of_question >= 1 and 3 questions, got 1, 2"),
        ([0.0, 1.0], {"top_fraction": 0.0}, r"expected top_fraction in \(0, 1\], got 0.0"),
        ([0.0, 1.0], {"top_fraction": 1.01}, r"expected top_fraction in \(0, 1\], got 1.01"),
    ],
)
def test_what_makes_no_sense_is_refused(rewards, what, message):
    with pytest.raises(ValueError, match=message):
        select_rows(np.array(rewards), ["a", "b"], **what)
