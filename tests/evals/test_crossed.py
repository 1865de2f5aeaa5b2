"""Intervals over seeds and questions: by hand, by simulation, and what they say of studies to come."""

import numpy as np
import pytest
from scipy import stats

from rlt_jax.evals.crossed import Spread, crossed, holm, mean_spread, seeds_needed, smallest_difference


def test_by_hand():
    """Two seeds, three questions; sums of squares 54, 36 and 12 for seeds, questions and rest."""
    seeds, questions = np.array([-3.0, 3.0]), np.array([-3.0, 0.0, 3.0])
    rest = np.array([[1.0, -2.0, 1.0], [-1.0, 2.0, -1.0]])
    found = crossed(5.0 + seeds[:, None] + questions[None, :] + rest)
    a, b, e = 54.0, 36 / 2, 12 / 2
    assert (found.mean, found.seeds, found.questions) == (5.0, 2, 3)
    assert found.over_questions == pytest.approx(4.30265 * (b / 6) ** 0.5, rel=1e-5)
    # over seeds alone t(1) = 12.706; over both V = 54 + 18 - 6 = 66 with 66² / (54² + 18² / 2 + 6² / 2) = 1.41 degrees
    wider = max(12.70620 * (a / 6) ** 0.5, stats.t.ppf(0.975, 66**2 / (54**2 + 18**2 / 2 + 36 / 2)) * 11**0.5)
    assert found.over_both == pytest.approx(wider, rel=1e-5)
    assert found.p_value == pytest.approx(2 * stats.t.sf(5 / 3, 1), rel=1e-6)
    assert found.spread == pytest.approx(((a - e) / 3, (b - e) / 2, e))


def test_a_quantity_that_is_known_by_seed_alone_has_student_s_interval():
    found = crossed(np.array([[0.5], [0.1], [0.3]]))
    assert found.over_questions is None and found.over_both == pytest.approx(4.30265 * 0.2 / 3**0.5, rel=1e-5)
    assert found.p_value == pytest.approx(stats.ttest_1samp([0.5, 0.1, 0.3], 0).pvalue)
    assert found.spread == pytest.approx((0.04, 0.0, 0.0))


def test_one_seed_says_nothing_of_others():
    found = crossed(np.array([[1.0, 2.0, 3.0]]))
    assert found.over_questions == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert (found.over_both, found.p_value, found.spread) == (None, None, None)


@pytest.mark.parametrize(("value", "p_value"), [(0.0, 1.0), (0.25, 0.0)])
def test_arms_that_differ_by_the_same_everywhere(value, p_value):
    found = crossed(np.full((3, 4), value))
    assert (found.mean, found.over_questions, found.over_both, found.p_value) == (value, 0.0, 0.0, p_value)
    assert smallest_difference(found.spread, seeds=3, questions=4) == 0.0


def test_tiny_and_huge_units_change_nothing():
    values = np.random.default_rng(0).normal(size=(3, 20))
    expected = crossed(values)
    for unit in (1e-120, 1e120):
        found = crossed(values * unit)
        assert found.over_both == pytest.approx(expected.over_both * unit)
        assert found.p_value == pytest.approx(expected.p_value)


def test_neither_order_nor_sign_matter_and_a_shift_is_one_of_the_mean():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(4, 9)) + rng.normal(size=(4, 1))
    found, moved = crossed(values), crossed(-values[rng.permutation(4)][:, rng.permutation(9)] - 3.0)
    assert moved.mean == pytest.approx(-found.mean - 3.0)
    assert (moved.over_questions, moved.over_both) == pytest.approx((found.over_questions, found.over_both))
    assert moved.spread == pytest.approx(found.spread)


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros(3), np.array([[1.0, np.nan]])], ids=str)
def test_what_is_no_table(values):
    with pytest.raises(ValueError, match="expected finite f64"):
        crossed(values)


def simulated(rng, spread: Spread, *, seeds: int, questions: int, difference: float = 0.0) -> np.ndarray:
    return (
        difference
        + rng.normal(scale=spread.seeds**0.5, size=(seeds, 1))
        + rng.normal(scale=spread.questions**0.5, size=(1, questions))
        + rng.normal(scale=spread.rest**0.5, size=(seeds, questions))
    )


STUDIES = {
    "two seeds": (Spread(0.04, 0.25, 1.0), 2, 128),
    "three seeds": (Spread(0.01, 0.25, 1.0), 3, 128),
    "three seeds that differ much": (Spread(0.09, 0.25, 1.0), 3, 128),
    "three seeds, questions that differ much": (Spread(0.01, 1.0, 1.0), 3, 128),
    "three seeds, few questions": (Spread(0.36, 0.25, 1.0), 3, 16),
    "ten seeds": (Spread(0.04, 0.25, 1.0), 10, 64),
}


@pytest.mark.parametrize(("spread", "seeds", "questions"), STUDIES.values(), ids=STUDIES.keys())
def test_a_nominal_95_percent_covers_the_truth_in_92_to_98(spread, seeds, questions):
    rng, studies = np.random.default_rng(1), 800
    held = [crossed(simulated(rng, spread, seeds=seeds, questions=questions)) for _ in range(studies)]
    covered = np.mean([abs(found.mean) <= found.over_both for found in held])
    assert 0.92 <= covered <= 0.98
    assert np.mean([found.p_value >= 0.05 for found in held]) == covered  # one decision, told in two ways


def test_questions_alone_understate():
    """Why no difference is certain by them: with seeds that differ, they hold the truth in every second study."""
    rng = np.random.default_rng(2)
    held = [crossed(simulated(rng, Spread(0.09, 0.25, 1.0), seeds=3, questions=128)) for _ in range(400)]
    assert np.mean([abs(found.mean) <= found.over_questions for found in held]) < 0.6


def test_no_difference_without_spread_between_seeds_is_rarely_certain():
    rng = np.random.default_rng(3)
    held = [crossed(simulated(rng, Spread(0.0, 0.25, 1.0), seeds=3, questions=64)) for _ in range(400)]
    assert np.mean([found.p_value < 0.05 for found in held]) <= 0.05


@pytest.mark.parametrize(("spread", "seeds", "questions"), list(STUDIES.values())[1:], ids=list(STUDIES)[1:])
def test_the_smallest_difference_is_found_in_four_of_five_studies(spread, seeds, questions):
    rng, difference = np.random.default_rng(4), smallest_difference(spread, seeds=seeds, questions=questions)
    tables = (simulated(rng, spread, seeds=seeds, questions=questions, difference=difference) for _ in range(400))
    assert 0.7 <= np.mean([crossed(table).p_value < 0.05 for table in tables]) <= 0.9


def test_the_power_of_one_sample_is_the_textbook_s():
    """Of a t test of 10 values with standard deviation 1: 0.996 (G*Power 3.1: effect 0.996, power 0.80)."""
    assert smallest_difference(Spread(1.0, 0.0, 0.0), seeds=10, questions=1) == pytest.approx(0.9960, abs=2e-4)


def test_seeds_that_a_difference_needs():
    spread = Spread(0.01, 0.25, 1.0)
    needed = seeds_needed(spread, 0.2, questions=128)
    assert needed is not None
    assert smallest_difference(spread, seeds=needed, questions=128) <= 0.2
    assert smallest_difference(spread, seeds=needed - 1, questions=128) > 0.2
    # questions alone leave 2.8 · sqrt(0.25 / 128) = 0.124
    assert seeds_needed(spread, 0.12, questions=128) is None
    assert seeds_needed(spread, 0.12, questions=512) is not None
    assert seeds_needed(spread, 1e9, questions=128) == 2


def test_the_spread_of_several_differences():
    assert mean_spread([Spread(1.0, 0.0, 4.0), Spread(3.0, 2.0, 0.0)]) == Spread(2.0, 1.0, 2.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
