"""Arms side by side: changes, differences and intervals by hand."""

import json

import numpy as np
import pytest

from rlt_jax.evals.crossed import crossed, holm
from rlt_jax.report.paired import paired_change
from rlt_jax.studies.comparison import Change, Evaluations, compare, read_evaluations, read_run, step_seconds
from rlt_jax.studies.comparison_report import comparison_markdown
from tests.studies.arms import LOGP, PLANNED, RUNS, asked, run, study


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


def test_differences_are_paired_by_seed_and_question():
    """The questions that all runs of both arms have, the seeds that both arms have, whatever their order."""
    table = np.random.default_rng(0).normal(size=(3, 5))
    base, other = asked(np.zeros((3, 5))), asked(table)
    del base[1].by_question[LOGP][4], base[0].by_question[LOGP][0]  # seed 1 is not in the other arm
    other.reverse()
    found = compare({"a": base, "b": other[:2]}, {"a": 3, "b": 3})["b"].from_first[LOGP]
    expected = crossed(table[1:, :4])
    assert (found.seeds, found.questions) == (2, 4)
    numbers = (found.mean, found.half_width, found.over_questions, found.p_value)
    assert numbers == pytest.approx((expected.mean, expected.over_both, expected.over_questions, expected.p_value))


def test_a_metric_that_one_run_lacks_by_question_is_compared_by_seed():
    base, other = asked(np.zeros((3, 5))), asked(np.ones((3, 5)) * np.array([[1.0], [2.0], [3.0]]))
    other[1].by_question.clear()
    found = compare({"a": base, "b": other}, {"a": 3, "b": 3})["b"].from_first[LOGP]
    assert (found.mean, found.questions, found.over_questions) == (2.0, 0, None)
    assert found.half_width == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_arms_without_a_common_question_are_not_compared():
    base, other = asked(np.zeros((3, 2))), asked(np.ones((3, 2)))
    for run_of_other in other:
        values = run_of_other.by_question[LOGP]
        run_of_other.by_question[LOGP] = {row + 100: value for row, value in values.items()}
    assert compare({"a": base, "b": other}, {"a": 3, "b": 3})["b"].from_first == {}


def test_certain_is_what_holds_for_other_seeds_after_the_correction_for_all_arms():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(3, 40))
    of_seeds = np.array([[-1.0], [0.0], [1.0]])  # as large as the effect: over the questions alone it looks certain
    arms = study(clear=2.0 + 0.1 * noise, open=1.0 + of_seeds + 0.1 * noise, none=0.1 * (noise - noise.mean()))
    found = {name: arm.from_first[LOGP] for name, arm in arms.items() if arm.from_first}
    assert [found[name].certain for name in ("clear", "open", "none")] == [True, False, False]
    assert abs(found["open"].mean) > found["open"].over_questions
    corrected = holm([difference.p_value for difference in found.values()])
    assert [difference.corrected for difference in found.values()] == corrected


def test_one_seed_is_never_certain():
    runs = {"a": asked(np.zeros((1, 9)), seeds=(1,)), "b": asked(np.arange(100.0, 109.0)[None], seeds=(1,))}
    found = compare(runs, {"a": 1, "b": 1})["b"].from_first[LOGP]
    assert (found.mean, found.half_width, found.p_value, found.certain) == (104.0, None, None, False)
    assert found.over_questions == pytest.approx(2.30600 * np.std(range(9), ddof=1) / 3, rel=1e-5)


def test_what_measures_something_else_is_not_compared():
    runs = {"a": asked(np.zeros((3, 5))), "b": asked(np.ones((3, 5)))}
    assert compare(runs, {"a": 3, "b": 3}, apart={"b": {LOGP: "why"}})["b"].from_first == {}


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


def test_a_run_is_read_with_its_questions_and_its_time(tmp_path):
    seconds = [{"step": step, "time": 0.0, "seconds/step": taken} for step, taken in ((1, 90.0), (2, 3.0), (3, 5.0))]
    evaluations = [{"step": step, "time": 0.0, "eval/reward": -1.0} for step in (0, 3)]
    write_metrics(tmp_path, [*evaluations[:1], *seconds, *evaluations[1:]])
    lines = [
        {"step": step, "row": row, "reward": float(step + row), "thought_kl/mean": None if row else 0.5}
        for step in (0, 3)
        for row in (0, 1)
    ]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_run(tmp_path, last=3, seed=7)
    assert (found.seed, found.step_seconds) == (7, 4.0)  # without the first step, which compiled
    assert found.by_question == {"reward": {0: 3.0, 1: 4.0}, "component/thought_kl/mean": {0: 0.5}}
    assert step_seconds(tmp_path / "nowhere") is None
