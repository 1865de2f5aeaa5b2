"""The plan's checks of chats and rows say what a run's start says."""

import json
import logging
from dataclasses import replace

import pytest

from rlt_jax.configs import PRESETS, TrainConfig
from rlt_jax.errors import UserError
from rlt_jax.planner.preflight import Check
from rlt_jax.runs.open_rlt import open_rlt
from rlt_jax.runs.start_check import start_checks

TINY = PRESETS["tiny"]
GOOD = {"question": "What is 2+3?", "solution": "5"}
LONG = {"question": "What is " + " + ".join("12345678" * 30) + "?", "solution": "1"}


@pytest.fixture
def run(tmp_path):
    """run(row, ..., **changes of the data): a run with these rows, without held-out ones."""

    def make(*rows: object, **data: object) -> TrainConfig:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        changed = replace(TINY.data, **{"path": str(path), "eval_path": None, "eval_rows": 0, **data})
        return replace(TINY, eval_steps=0, train_batch_size=16, data=changed, output_dir=str(tmp_path / "run"))

    return make


def checks(config: TrainConfig) -> dict[str, Check]:
    found = {check.name: check for check in start_checks(config)}
    assert list(found) == ["chats", "data"]
    for check in found.values():
        assert (check.advice == "") == (check.status == "ok") and "\n" not in check.found + check.advice
        assert check.concerns_plan == (check.status == "problem")
    return found


def refusal(config: TrainConfig, folder) -> str:
    """The words in which the start of the run is refused."""
    with pytest.raises(UserError) as refused, open_rlt(config, folder):
        pass
    return " ".join(str(refused.value).split())


def test_rows_that_are_used_are_counted(run, tmp_path):
    found = checks(run(*[GOOD] * 6, eval_rows=2))
    assert {check.status for check in found.values()} == {"ok"}
    assert found["data"].found == f"4 prompts to train on, 2 held out: {tmp_path}/rows.jsonl"
    teacher, student = (f"{model}/rlt_jax.json" for model in (TINY.teacher, TINY.student))
    assert found["chats"].found == (
        f"tags bespoke ({teacher}), teacher's prompt: {teacher}, student's prompt: rows, else {student}"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_rows_that_are_skipped_are_named_and_the_log_is_left_alone(run, logged):
    handlers = list(logging.getLogger("rlt_jax").handlers)
    data = checks(run(GOOD, LONG, "{", GOOD))["data"]
    assert data.status == "warning" and data.found.startswith("2 prompts to train on, 0 held out")
    assert "4 rows, 1 skipped" not in data.advice and "3 rows, 1 skipped: 1 x not JSON (row 2)" in data.advice
    assert "1 training rows skipped: 1 x prompt is too long (row 1)" in data.advice
    assert logged.messages == [] and logging.getLogger("rlt_jax").handlers == handlers


def positions(run):
    return replace(run(GOOD, GOOD), max_completion_length=1024)


def too_few(run):
    return run(GOOD)


def held_out(run):
    return run(GOOD, GOOD, GOOD, eval_rows=3)


def no_row(run):
    return run({"question": "What?"})


def no_file(run):
    return run(GOOD, path="/no/such/rows.jsonl")


def no_prompt_file(run):
    return run(GOOD, GOOD, teacher_prompt_file="/no/such/prompt.txt")


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (positions, "data", "2 x prompt and completion exceed the teacher's positions"),
        (too_few, "data", "expected at least 2 rows for one step"),
        (held_out, "data", "data.eval_rows=3: expected fewer than the 3 rows"),
        (no_row, "data", "none of 1 can be used"),
        (no_file, "data", "there is no such file or folder"),
        (no_prompt_file, "chats", "expected a prompt file at /no/such/prompt.txt"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_refusal_of_the_start_is_a_problem_in_the_same_words(run, tmp_path, make, name, words):
    config = make(run)
    check = checks(config)[name]
    assert (check.status, check.found) == ("problem", "the run would be refused")
    assert words in check.advice and check.advice == refusal(config, tmp_path / "run")


def test_two_tokenizers_are_a_problem_of_the_chats(run, golden, tmp_path):
    config = replace(run(GOOD, GOOD), student=str(golden / "student"))
    found = checks(config)
    assert found["chats"].status == "problem" and found["chats"].advice == refusal(config, tmp_path / "run")
    assert found["data"].found.startswith("2 rows to train on")  # which are looked at all the same


def test_what_is_on_the_hub_is_left_there(run):
    found = checks(replace(run(GOOD, GOOD), teacher="Qwen/Qwen2.5-7B-Instruct"))
    assert found["chats"].status == "warning"
    assert found["chats"].found == "not checked: Qwen/Qwen2.5-7B-Instruct not downloaded"
    assert (found["data"].status, found["data"].found.split(":")[0]) == ("ok", "2 rows to train on, 0 held out")
    hub = run(GOOD, path="nobody/nothing")
    assert checks(hub)["data"].found == "nobody/nothing: a data set on the hub"


def test_rows_too_few_are_seen_without_the_models(run):
    data = checks(replace(run(GOOD), teacher="Qwen/Qwen2.5-7B-Instruct"))["data"]
    assert data.status == "problem" and "expected at least 2 rows for one step" in data.advice
