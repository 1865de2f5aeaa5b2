"""Results of a pipeline: estimates by hand and against scipy, what a work folder gives, the table word by word."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from rlt_jax.errors import UserError
from rlt_jax.report.outcomes import (
    Measure,
    Table,
    difference,
    draw_outcomes,
    estimate,
    finished_tasks,
    outcome_tables,
    table_markdown,
    write_outcome_csv,
)


def test_over_seeds():
    it = estimate([{0: 1.0, 1: 3.0}, {0: 4.0}, {0: 6.0, 1: 6.0}])
    low, high = stats.t.interval(0.95, 2, loc=4.0, scale=stats.sem([2.0, 4.0, 6.0]))
    assert (it.mean, it.over, it.seeds, it.prompts) == (4.0, "seeds", 3, 5)
    assert it.half_width == pytest.approx((high - low) / 2)


def test_over_prompts_under_one_seed():
    values = [0.1, 0.5, 0.3, 0.9]
    it = estimate([dict(enumerate(values))])
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (it.mean, it.over, it.prompts) == (pytest.approx(0.45), "prompts", 4)
    assert it.half_width == pytest.approx((high - low) / 2)


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
    anchor = {"reward": 0.0, "thought_kl": 0.0, "copy_rate": 0.5}
    write(
        work / "results" / "anchors.jsonl",
        [
            {"kind": kind, "row": row, "solution_logp": x - row, **anchor}
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
    (work / "results" / "anchors.jsonl").write_text('{"kind": "none", ')
    with pytest.raises(UserError, match=r"anchors\.jsonl: expected JSON Lines"):
        outcome_tables([work])


TABLE = Table(
    "Title",
    "About.",
    (Measure("a", "A", "nats"), Measure("b", "B", "tokens", 1)),
    {"x": {"a": [{0: 1.0}, {0: 2.0}]}, "x − y": {"a": [{0: 0.5, 1: 0.5}], "b": [{0: 4.0}]}},
)


def test_markdown():
    half = 12.7062 * math.sqrt(0.5) / math.sqrt(2)
    assert table_markdown(TABLE) == (
        "## Title\n\nAbout.\n\n"
        "|  | seeds | A, nats | B, tokens |\n| :-- | --: | --: | --: |\n"
        f"| x | 2 | 1.500 ± {half:.3f} | – |\n"
        "| x − y | 1 | +0.500 ± 0.000 | +4.0 |\n"
    )


def test_csv_holds_the_numbers_in_full(tmp_path):
    write_outcome_csv([TABLE], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [(record["variant"], record["quantity"], record["over"]) for record in records] == [
        *(("x", "a", "seeds"), ("x − y", "a", "prompts"), ("x − y", "b", "")),
    ]
    assert float(records[0]["ci_high"]) - 1.5 == pytest.approx(12.70620474 * 0.5)
    assert (records[2]["mean"], records[2]["ci_low"], records[2]["unit"]) == ("4.0", "", "tokens")


def test_the_picture_has_a_dot_for_each_variant(tmp_path):
    rows = {name: {"a": [{0: value, 1: value + 1}]} for name, value in (("x", 1.0), ("y", 5.0))}
    draw_outcomes(Table("", "", TABLE.measures, rows), tmp_path / "x.png", measures=("a",))
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    rows_with_dots = np.flatnonzero((pixels == (0xD9, 0x54, 0x1E)).all(axis=2).any(axis=1))
    assert 1 + (np.diff(rows_with_dots) > 1).sum() == 2
