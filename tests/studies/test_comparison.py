"""Arms side by side: changes, differences and intervals by hand."""

import json

import numpy as np
import pytest

from rlt_jax.report.paired import paired_change
from rlt_jax.studies.comparison import Change, Evaluations, compare, read_evaluations
from rlt_jax.studies.comparison_report import comparison_markdown
from tests.studies.arms import LOGP, PLANNED, RUNS, run


def test_changes_over_seeds_by_hand():
    """Changes 0.5, 1.5, 1.0: mean 1, standard deviation 0.5, t(2) = 4.303."""
    change = compare(RUNS, PLANNED)["paper"].changes[LOGP]
    half_width = pytest.approx(4.30265 * 0.5 / 3**0.5, rel=1e-5)
    assert change == Change(first=-1.5, last=-0.5, change=1.0, half_width=half_width, over="seeds")


def test_one_seed_has_an_interval_over_prompts_by_hand():
    """Changes by prompt -0.25, -0.5, 0: mean -0.25, standard error 0.25 / sqrt(3), t(2) = 4.303."""
    arm = compare(RUNS, PLANNED)["no-kl"]
    half_width = pytest.approx(4.30265 * 0.25 / 3**0.5, rel=1e-5)
    assert arm.changes[LOGP] == Change(first=-1.0, last=-1.25, change=-0.25, half_width=half_width, over="prompts")
    assert arm.changes["completion_length/mean"] == Change(10.0, 15.0, 5.0, None, None)  # not recorded by prompt
    assert (arm.finished, arm.planned) == (1, 2)


def test_prompts_are_not_used_where_there_are_seeds():
    paired = {LOGP: paired_change(np.zeros(2), np.ones(2))}
    runs = {"a": [run([0.0, 0.0, 1.0], paired=paired), run([0.0, 0.0, 3.0], paired=paired)]}
    change = compare(runs, {"a": 2})["a"].changes[LOGP]
    assert (change.change, change.over) == (2.0, "seeds")
    assert change.half_width == pytest.approx(12.7062, rel=1e-5)  # t(1) times 1


def test_a_metric_without_a_value_at_both_ends_is_left_out():
    broken = Evaluations(4, {LOGP: {0: -1.0, 4: -0.5}, "reward": {0: 1.0, 2: 2.0}}, {}, 1)
    assert list(compare({"a": [broken]}, {"a": 1})["a"].changes) == [LOGP]


def test_differences_are_of_equal_seeds_by_hand():
    """Seeds 2 and 3 are in both: differences 0.5 and 0.1 of the last values, mean 0.3, t(1) = 12.706."""
    others = [run([0.0, 0.0, 9.0], seed=4), run([0.0, 0.0, -0.4], seed=3), run([0.0, 0.0, 0.0], seed=2)]
    arms = compare({"paper": RUNS["paper"], "b": others}, {"paper": 3, "b": 3})
    difference = arms["b"].from_first[LOGP]
    assert (difference.mean, difference.seeds) == (pytest.approx(0.3), 2)
    assert difference.half_width == pytest.approx(12.7062 * 0.4 / 2, rel=1e-5)
    assert "copy_rate" not in arms["b"].from_first  # the other arm has none
    assert arms["paper"].from_first == {}
    assert "| b − paper | 2 | +0.300 ± 2.541 |" in comparison_markdown(arms)


def test_without_a_common_seed_there_is_no_difference():
    arms = compare({"a": [run([0.0, 0.0, 1.0], seed=1)], "b": [run([0.0, 0.0, 1.0], seed=2)]}, {"a": 1, "b": 1})
    assert arms["b"].from_first == {} and "b − a" not in comparison_markdown(arms)


def write_metrics(folder, records: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_evaluations_are_read_from_a_run(tmp_path):
    records = [
        {"step": 0, "time": 0.0, "eval/reward": -1.0, "eval/match_rate": 0.5},
        {"step": 1, "time": 0.0, "reward": 9.0},
        {"step": 2, "time": 0.0, "eval/reward": -0.5, "eval/match_rate": None},
        {"step": 3, "time": 0.0, "eval/reward": 4.0},
    ]
    write_metrics(tmp_path, records)
    assert read_evaluations(tmp_path, last=2) == {"reward": {0: -1.0, 2: -0.5}, "match_rate": {0: 0.5}}
    assert read_evaluations(tmp_path, last=4) == {}  # not finished
    assert read_evaluations(tmp_path / "nowhere", last=2) == {}
