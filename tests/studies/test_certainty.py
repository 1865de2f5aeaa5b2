"""What the report says to be certain, and what the study could have found."""

import json
import re

import numpy as np
import pytest

from rlt_jax.evals.crossed import crossed, mean_spread, seeds_needed, smallest_difference
from rlt_jax.report.json_text import json_text
from rlt_jax.studies.certainty import certainty_facts, certainty_markdown, power_lines
from rlt_jax.studies.comparison import compare
from tests.studies.arms import LOGP, asked, study

NOISE = np.random.default_rng(1).normal(size=(3, 40))
OF_SEEDS = np.array([[-1.0], [0.0], [1.0]])
TABLES = {"clear": 2 + 0.1 * NOISE, "open": 1 + OF_SEEDS + 0.1 * NOISE, "none": NOISE - NOISE.mean() + 0.01}


@pytest.fixture(scope="module")
def arms():
    return study(**TABLES)


def test_each_arm_has_its_sentence(arms):
    text = certainty_markdown(arms, {"none": {"reward": "reward.clip_kl"}})
    found = {name: arm.from_first[LOGP] for name, arm in arms.items() if arm.from_first}
    clear, open_ = found["clear"], found["open"]
    assert f"- **clear**: certain: solution log-prob {clear.mean:+.3f} ± {clear.half_width:.3f}." in text
    assert f"- **open**: in these runs only: solution log-prob {open_.mean:+.3f} ± {open_.half_width:.3f}." in text
    assert re.search(r"- \*\*none\*\*: not certain: solution log-prob \+0\.010 ± \S+; not comparable: reward \(", text)
    row = next(line for line in text.splitlines() if line.startswith("| open |"))
    cells = [f"{number:.3f}" for number in (open_.over_questions, open_.half_width, open_.p_value, open_.corrected)]
    assert row == f"| open | 3 | 40 | +{open_.mean:.3f} | {' | '.join(cells)} | not certain |"
    assert "corrected for the 3 arms" in text


def test_what_only_the_correction_takes_away_is_said():
    """p = 0.03 alone, 0.06 with another arm."""
    tables = {"near": np.array([[0.9], [1.0], [1.6]]) + 0.1 * NOISE, "none": TABLES["none"]}
    alone, beside = study(near=tables["near"]), study(**tables)
    assert 0.025 < alone["near"].from_first[LOGP].p_value < 0.05
    assert "- **near**: certain: solution log-prob" in certainty_markdown(alone, {})
    assert "- **near**: certain only by itself: solution log-prob" in certainty_markdown(beside, {})


def test_arms_that_cannot_be_told_apart_are_called_equal():
    assert "- **same**: equal in all runs: solution log-prob." in certainty_markdown(study(same=np.zeros((3, 4))), {})


def test_one_seed_says_so():
    runs = {"a": asked(np.zeros((1, 9)), seeds=(1,)), "b": asked(np.arange(9.0)[None] + 9, seeds=(1,)), "c": []}
    text = certainty_markdown(compare(runs, {"a": 1, "b": 1, "c": 1}), {})
    assert "- **b**: in these runs only: solution log-prob +13.000. With one seed nothing is certain" in text
    assert "- **c**: no seed is finished in both arms." in text
    assert "What this study can find" not in text


def test_a_study_of_one_arm_has_nothing_to_say():
    assert certainty_markdown(compare({"a": asked(np.zeros((3, 4)))}, {"a": 3}), {}) == ""


def test_what_the_study_can_find(arms):
    spread = mean_spread([crossed(table).spread for table in TABLES.values()])
    (line,) = power_lines(arms, difference=0.9)
    needed = seeds_needed(spread, 0.9, questions=40)
    alone, among = (smallest_difference(spread, seeds=3, questions=40, level=level) for level in (0.05, 0.05 / 3))
    assert line.startswith(
        f"Solution log-prob: with 3 seeds and 40 questions, a true difference of {alone:.3f} nats per token is found "
        f"in 4 of 5 studies ({among:.3f} if it must be certain among 3 arms). With 5 seeds: "
    )
    assert f" 0.9 takes {needed} seeds. " in line and "known from 3 seeds only" in line


def test_arms_that_are_equal_do_not_make_the_study_look_better():
    """They count as comparisons, for which p-values are corrected, but have no spread."""
    (line,) = power_lines(study(x=TABLES["none"]))
    (beside,) = power_lines(study(x=TABLES["none"], same=np.zeros((3, 40))))
    assert beside.partition(" (")[0] == line.partition(" is found in 4 of 5 studies")[0] + " is found in 4 of 5 studies"
    assert "among 2 arms" in beside and "among" not in line


def test_a_difference_that_no_number_of_seeds_shows(arms):
    (line,) = power_lines(study(x=np.arange(40.0)[None] + 0.1 * NOISE), difference=0.1)
    assert "0.1 is not found with 1000 seeds either, as questions differ by more: take more held-out questions." in line


def test_a_study_that_is_not_finished_is_planned_with_all_its_seeds():
    runs = {"a": asked(np.zeros((3, 40))), "b": asked(NOISE[:2], seeds=(1, 2))}
    (line,) = power_lines(compare(runs, {"a": 3, "b": 3}))
    assert line.startswith("Solution log-prob: with 3 seeds and 40 questions, ")
    assert line.endswith("themselves known from 2 seeds only.)")


def test_all_numbers_are_in_the_json(arms):
    facts = json.loads(json_text(certainty_facts(arms, {"none": {"reward": "why"}})))
    assert (facts["first"], facts["arms"]["none"]["not_comparable"]) == ("first", {"reward": "why"})
    numbers, expected = facts["arms"]["clear"]["differences"][LOGP], crossed(TABLES["clear"])
    assert (numbers["mean"], numbers["half_width"], numbers["half_width_over_questions"]) == pytest.approx(
        (expected.mean, expected.over_both, expected.over_questions)
    )
    assert (numbers["p"], numbers["certain"], numbers["seeds"]) == (pytest.approx(expected.p_value), True, 3)
    assert list(facts["power"][LOGP]["smallest_difference"]) == ["3", "5", "10", "20"]
    assert facts["power"]["reward"] is None
