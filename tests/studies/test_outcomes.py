"""Results of a pipeline: estimates by hand and against scipy, and what a work folder gives."""

import json

import numpy as np
import pytest
from scipy import stats

from rlt_jax.errors import UserError
from rlt_jax.studies.outcomes import difference, estimate, outcome_tables
from rlt_jax.studies.pipeline_folder import finished_tasks


def test_over_seeds():
    found = estimate([{0: 1.0, 1: 3.0}, {0: 4.0}, {0: 6.0, 1: 6.0}])
    low, high = stats.t.interval(0.95, 2, loc=4.0, scale=stats.sem([2.0, 4.0, 6.0]))
    assert (found.mean, found.over, found.seeds, found.prompts) == (4.0, "seeds", 3, 5)
    assert found.half_width == pytest.approx((high - low) / 2)


def test_over_prompts_under_one_seed():
    values = [0.1, 0.5, 0.3, 0.9]
    found = estimate([dict(enumerate(values))])
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.over, found.prompts) == (pytest.approx(0.45), "prompts", 4)
    assert found.half_width == pytest.approx((high - low) / 2)


def test_one_number_has_no_interval():
    assert estimate([{0: 2.0}]) == (2.0, None, None, 1, 1)


def test_a_paired_difference_is_surer_than_its_parts():
    before = dict(enumerate(np.linspace(-3, 0, 20)))
    after = {prompt: value + 0.1 + 0.01 * (prompt % 2) for prompt, value in before.items()}
    change = estimate([difference(after, {**before, 99: 7.0})])
    assert change.mean == pytest.approx(0.105) and change.prompts == 20
    assert change.half_width < 0.01 < 0.3 < estimate([after]).half_width


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_work(work, *, shift=0.0):
    """The small files of a pipeline with two prompts of each kind."""
    write(
        work / "seconds.jsonl",
        [
            {"stage": "warmup", "task": "warmup", "seconds": 5.0, "finished": False},
            {"stage": "warmup", "task": "warmup", "seconds": 7.0, "finished": True},
            {"stage": "rlt", "task": "rlt", "seconds": 30.0, "finished": True},
            {"stage": "distil", "task": "student-rlt", "seconds": 3.0, "finished": False},
        ],
    )
    write(work / "warmup" / "metrics.jsonl", [{"step": s, "eval/loss": x} for s, x in ((0, 1.0), (2, 0.4 + shift))])
    write(work / "student-rlt" / "metrics.jsonl", [{"step": 0, "eval/loss": 9.0}])
    baseline = {"reward": 0.0, "thought_kl": 0.0, "copy_rate": 0.5}
    write(
        work / "results" / "baselines.jsonl",
        [
            {"kind": kind, "row": row, "solution_logp": x - row, **baseline}
            for kind, x in (("none", -2.0), ("true", -1.0))
            for row in (0, 1)
        ],
    )
    evaluation = {"thought_kl/mean": 0.2}
    write(
        work / "rlt" / "eval.jsonl",
        [
            {"step": step, "row": row, "reward": step / 4, "solution_logp/mean": -2 + step / 4 + shift, **evaluation}
            for step in (0, 2, 4)
            for row in (0, 1)
        ],
    )
    write(
        work / "rlt" / "metrics.jsonl",
        [{"step": s, "eval/reward": 0.0, "eval/copy_rate": s / 10, "eval/repeat_rate": s / 8} for s in (0, 4)],
    )
    student = {"accuracy": 0.5, "own_logp": -1.0, "none_logp": -2.0, "closed": 1.0, "tokens": 9.0}
    write(work / "results" / "student-base.jsonl", [{"row": row, **student} for row in (0, 1)])
    write(
        work / "results" / "student-rlt.jsonl",
        [{"row": row, **student, "own_logp": -0.5 + row / 5 + shift} for row in (0, 1)],
    )
    write(work / "results" / "matched.jsonl", [{"asked": 9, "common": 8, "questions": 4, "tokens": {"rlt": 44}}])
    explained = {"reward": 1.0, "solution_logp": -1.0, "thought_kl": 0.1, "copy_rate": 0.0}
    write(
        work / "results" / "explained-rlt.jsonl",
        [{"row": 0, "sample": i, "kept": i == 1, "tokens": 10 + i, **explained} for i in (0, 1, 2)],
    )
    return work


def mean(table, variant, key):
    return estimate(table.rows[variant][key]).mean


def test_what_a_work_folder_gives(tmp_path):
    work = make_work(tmp_path / "a")
    assert finished_tasks(work) == {"warmup", "rlt"}
    tables = {table.title: table for table in outcome_tables([work])}
    warmup, held_out, training, students, times = tables.values()
    assert (mean(warmup, "before", "loss"), mean(warmup, "after", "loss")) == (1.0, 0.4)
    assert mean(held_out, "the true trace", "solution_logp") == -1.5
    assert mean(held_out, "the true trace − no explanation", "solution_logp") == 1.0
    assert mean(held_out, "warmed-up teacher", "solution_logp") == -2.0
    assert mean(held_out, "RLT teacher − warmed-up teacher", "solution_logp") == 1.0
    assert mean(held_out, "RLT teacher", "copy_rate") == 0.4
    assert mean(held_out, "RLT teacher", "repeat_rate") == 0.5
    assert (mean(training, "RLT teacher, all", "tokens"), mean(training, "RLT teacher, best", "tokens")) == (11.0, 11.0)
    assert mean(students, "on the RLT teacher's − student as it is", "own_logp") == pytest.approx(0.6)
    assert mean(students, "on the RLT teacher's", "taught") == 11.0
    assert "loss" not in students.rows["on the RLT teacher's"]  # that fine-tuning has not finished
    assert (mean(times, "warmup", "seconds"), mean(times, "all", "seconds")) == (12.0, 45.0)
    assert "on the true traces" not in students.rows


def test_values_that_were_not_finite_are_left_out(tmp_path):
    """They are null in the files."""
    work = make_work(tmp_path / "a")
    metrics = work / "rlt" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"eval/copy_rate": 0.4', '"eval/copy_rate": null'))
    records = [json.loads(line) for line in (work / "rlt" / "eval.jsonl").read_text().splitlines()]
    for record in records:
        if record["row"] == 1:
            record["solution_logp/mean"] = None
        record["thought_kl/mean"] = None
    write(work / "rlt" / "eval.jsonl", records)
    losses = work / "warmup" / "metrics.jsonl"
    losses.write_text(losses.read_text().replace("0.4", "null"))
    tables = {table.title: table for table in outcome_tables([work])}
    assert "Warm-up of the teacher" not in tables
    held_out = tables["Explanations of held-out questions"]
    assert held_out.rows["RLT teacher"]["solution_logp"][0] == {0: -1.0}
    assert {"thought_kl", "copy_rate"}.isdisjoint(held_out.rows["RLT teacher"])


def test_explanations_of_which_none_was_left_out_have_one_line(tmp_path):
    work = make_work(tmp_path / "a")
    explained = {"solution_logp": -1.0, "thought_kl": 0.1, "copy_rate": 0.0, "kept": True, "sample": 0, "tokens": 9}
    for source, reward in (("warmup", 1.0), ("rlt", 3.0)):
        lines = [{"row": row, "reward": reward + row, **explained} for row in (0, 1)]
        write(work / "results" / f"explained-{source}.jsonl", lines)
    table = next(table for table in outcome_tables([work]) if table.title == "Explanations of the training questions")
    assert list(table.rows) == ["warmed-up teacher", "RLT teacher", "RLT teacher − warmed-up teacher"]
    assert mean(table, "RLT teacher − warmed-up teacher", "reward") == 2.0


def test_an_unfinished_run_does_not_count(tmp_path):
    work = make_work(tmp_path / "a")
    write(work / "seconds.jsonl", [{"stage": "rlt", "task": "rlt", "seconds": 30.0, "finished": False}])
    titles = [table.title for table in outcome_tables([work])]
    assert "Warm-up of the teacher" not in titles
    held_out = outcome_tables([work])[0]
    assert "RLT teacher" not in held_out.rows and "the true trace" in held_out.rows


def test_the_reward_of_the_arm_without_kl_is_another_one(tmp_path):
    work = make_work(tmp_path / "a")
    for name in ("eval.jsonl", "metrics.jsonl"):
        write(work / "no-kl" / name, [json.loads(line) for line in (work / "rlt" / name).read_text().splitlines()])
    with (work / "seconds.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "no-kl", "task": "no-kl", "seconds": 1.0, "finished": True}) + "\n")
    held_out = next(table for table in outcome_tables([work]) if "RLT teacher" in table.rows)
    assert "reward" not in held_out.rows["RLT teacher without KL term"]
    assert mean(held_out, "RLT teacher − RLT teacher without KL term", "solution_logp") == 0.0


def test_a_torn_file_is_named(tmp_path):
    work = make_work(tmp_path / "a")
    (work / "results" / "baselines.jsonl").write_text('{"kind": "none", ')
    with pytest.raises(UserError, match=r"baselines\.jsonl: expected JSON Lines"):
        outcome_tables([work])
