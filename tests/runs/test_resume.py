"""What a resumed run compares with the run so far, and what it does about a difference."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rlt_jax.configs import PRESETS, DataConfig, RewardConfig, SftConfig, load_config, save_config
from rlt_jax.configs.resume import Change
from rlt_jax.errors import UserError
from rlt_jax.runs.chat_format import load_chat_format
from rlt_jax.runs.evaluation import read_changes, write_records
from rlt_jax.runs.resume import (
    PLACES,
    changed_inputs,
    changed_settings,
    check_command,
    compared_places,
    last_accepted_change,
    name_changes,
    read_inputs,
    record_start,
    refuse,
    run_inputs,
)
from rlt_jax.studies.comparison import read_evaluations
from rlt_jax.types import Row

TINY = PRESETS["tiny"]
SFT = SftConfig(model=TINY.teacher, output_dir="b", data=DataConfig(path="c"))
ROWS = [Row(i, f"What is {i}+1?", str(i + 1), None, None) for i in range(4)]
STEERED = Change("learning_rate", 1e-4, 1e-5, steers=True)
MEASURED = Change("data.tags", "bespoke", "r1", steers=False)


@pytest.fixture(scope="module")
def chat():
    return load_chat_format(
        TINY.teacher, TINY.student, tags="bespoke", teacher_prompt_file=None, student_prompt_file=None
    )


def shown(config, folder) -> list[str]:
    return [str(change) for change in changed_settings(config, folder)]


# settings


@pytest.mark.parametrize("config", [TINY, SFT])
def test_the_saved_settings_are_compared(tmp_path, config):
    save_config(config, tmp_path / "config.yaml")
    assert shown(config, tmp_path) == []
    now = replace(config, learning_rate=0.5, data=replace(config.data, tags="r1"), save_steps=7, seed=1)
    assert shown(now, tmp_path) == [f"learning_rate {config.learning_rate} -> 0.5", "data.tags None -> r1"]


def test_a_setting_that_an_older_version_did_not_have_is_its_default(tmp_path, logged):
    save_config(TINY, tmp_path / "config.yaml")
    lines = (tmp_path / "config.yaml").read_text().splitlines(keepends=True)
    older = [line for line in lines if not line.startswith(("temperature", "  truncate_prompts"))]
    assert len(older) == len(lines) - 2
    (tmp_path / "config.yaml").write_text("".join(older))
    assert shown(TINY, tmp_path) == [] and logged.messages == []
    assert shown(replace(TINY, temperature=1.0), tmp_path) == ["temperature 0.7 -> 1.0"]


def test_a_setting_that_this_version_does_not_have_is_named(tmp_path, logged):
    save_config(TINY, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text("future: 1\n" + text.replace("loss:\n", "loss:\n  future: 2\n"))
    assert shown(TINY, tmp_path) == []
    assert logged.messages == [f"{tmp_path}/config.yaml: this version has no future, loss.future: not compared"]


def test_without_a_config_nothing_is_compared_and_the_log_says_so(tmp_path, logged):
    assert shown(replace(TINY, temperature=1.0), tmp_path) == []
    assert logged.messages == [
        f"{tmp_path}/config.yaml: there is none, so settings are not compared with those of the run so far"
    ]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("temperature", "temperature='many': expected a number"),
        ("max_steps", "max_steps='many': expected a whole number"),
        ("  beta", "loss.beta='many': expected a number"),
    ],
)
def test_a_setting_that_has_another_type_in_this_version_does_not_end_the_run(tmp_path, logged, field, message):
    save_config(TINY, tmp_path / "config.yaml")
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith(f"{field}:")]
    lines[place] = f"{field}: many"
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert shown(TINY, tmp_path) == []
    assert logged.messages == [f"{tmp_path}/config.yaml: not compared, as if it were not there: {message}"]


@pytest.mark.parametrize("text", ["", "- a", "preset: huge", "{", "a: \0"])
def test_a_damaged_config_is_refused_with_words(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as refusal:
        changed_settings(TINY, tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}/config.yaml")
    assert str(refusal.value).endswith("restore it, or delete it to resume without a comparison")


def test_another_spelling_of_a_path_is_no_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}")
    before = replace(TINY, data=replace(TINY.data, path="rows.jsonl"))
    save_config(before, tmp_path / "config.yaml")
    assert shown(replace(before, data=replace(TINY.data, path=str(tmp_path / "rows.jsonl"))), tmp_path) == []
    assert shown(replace(before, data=replace(TINY.data, path="other.jsonl")), tmp_path) == [
        "data.path rows.jsonl -> other.jsonl"
    ]


def test_the_same_function_of_a_file_is_no_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    before = replace(TINY, reward=RewardConfig(fn="mine.py:short"))
    save_config(before, tmp_path / "config.yaml")
    assert shown(replace(before, reward=RewardConfig(fn=f"{tmp_path}/mine.py:short")), tmp_path) == []
    for other in (f"{tmp_path}/mine.py:long", f"{tmp_path}/other.py:short", "mine:short"):
        assert shown(replace(before, reward=RewardConfig(fn=other)), tmp_path) == [
            f"reward.fn mine.py:short -> {other}"
        ]


def test_the_folder_of_the_other_command_is_refused(tmp_path):
    save_config(TINY, tmp_path / "config.yaml")
    check_command(TINY, tmp_path)
    with pytest.raises(UserError, match=r"holds a run of `rlt_jax.train` .* but this is `rlt_jax.sft`: choose another"):
        check_command(SFT, tmp_path)
    (tmp_path / "config.yaml").write_text("not: ours")
    check_command(SFT, tmp_path)


# prompts and rows


def test_inputs_are_those_of_the_texts_not_of_their_place(tmp_path, chat):
    inputs = run_inputs(chat, ROWS, ROWS[:2])
    assert inputs["the teacher's prompt"] == chat.teacher_prompt
    assert inputs["the training rows"].startswith("4 rows ") and inputs["the held-out rows"].startswith("2 rows ")
    assert run_inputs(chat, list(ROWS), tuple(ROWS[:2])) == inputs
    record_start(TINY, inputs, [], tmp_path, step=0)
    assert read_inputs(tmp_path) == inputs and changed_inputs(inputs, read_inputs(tmp_path)) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda chat: run_inputs(replace(chat, teacher_prompt="Teach."), ROWS, ROWS[:2]), "the teacher's prompt"),
        (lambda chat: run_inputs(replace(chat, student_prompt="Learn."), ROWS, ROWS[:2]), "the student's prompt"),
        (
            lambda chat: run_inputs(replace(chat, student_prompt_overrides_rows=True), ROWS, ROWS[:2]),
            "the rows' own prompts for the student used -> not used",
        ),
        (lambda chat: run_inputs(chat, ROWS[::-1], ROWS[:2]), "the training rows 4 rows "),
        (lambda chat: run_inputs(chat, ROWS, ROWS[:1]), "the held-out rows 2 rows "),
        (lambda chat: run_inputs(chat, ROWS, []), "the held-out rows 2 rows "),
        (lambda chat: run_inputs(chat, ROWS, ROWS[:2], reward_fn=len), "the reward function none -> len"),
    ],
)
def test_every_change_of_a_text_is_named(chat, change, name):
    (found,) = changed_inputs(change(chat), run_inputs(chat, ROWS, ROWS[:2]))
    assert str(found).startswith(name) and not found.steers


def test_models_and_packages_are_compared_by_name(chat):
    before = run_inputs(chat, ROWS, [], models={"teacher": TINY.teacher, "student": TINY.student})
    now = run_inputs(chat, ROWS, [], models={"teacher": TINY.student, "student": TINY.student})
    assert [change.name for change in changed_inputs(now, before)] == ["the teacher's weights"]
    assert [str(change) for change in changed_inputs(before | {"the version of jax": "9.9"}, before)] == [
        f"the version of jax {before['the version of jax']} -> 9.9"
    ]
    assert compared_places(before) == PLACES and "student" in PLACES


def test_what_older_versions_did_not_record_is_named_and_not_compared(chat, logged):
    inputs = run_inputs(chat, ROWS, [], models={"teacher": TINY.teacher})
    older = {name: text for name, text in inputs.items() if "version" not in name and "teacher's" not in name}
    older["the teacher's prompt"] = inputs["the teacher's prompt"]
    assert changed_inputs(inputs, older) == []
    assert logged.messages[-1].startswith(
        "inputs.json does not record the teacher's weights, the teacher's tokenizer, "
    )
    assert "student" not in compared_places(older) and "data.path" in compared_places(older)
    assert compared_places(None) == ()


def test_long_texts_are_shown_where_they_differ(chat):
    before = run_inputs(replace(chat, teacher_prompt="a" * 100 + "Be brief." + "b" * 100), ROWS, [])
    now = run_inputs(replace(chat, teacher_prompt="a" * 100 + "Be long." + "b" * 100), ROWS, [])
    (found,) = changed_inputs(now, before)
    assert f"'...{'a' * 17}Be brief.{'b' * 34}...' -> '...{'a' * 17}Be long.{'b' * 35}...'" in str(found)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "{"])
def test_damaged_inputs_are_refused_with_words(tmp_path, text):
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(UserError, match=r"but it cannot be read .* delete it to resume without a comparison"):
        read_inputs(tmp_path)


def test_without_recorded_inputs_nothing_is_compared_and_the_log_says_so(tmp_path, logged):
    assert read_inputs(tmp_path) is None
    assert "prompts and rows are not compared with those of the run so far" in logged.text


# what is done about a change


def test_a_change_of_what_is_measured_is_refused_by_name(tmp_path):
    refuse([STEERED], tmp_path, accept=False)
    refuse([STEERED, MEASURED], tmp_path, accept=True)
    with pytest.raises(UserError) as refusal:
        refuse([STEERED, MEASURED], tmp_path, accept=False)
    assert str(refusal.value) == (
        f"{tmp_path} holds a run whose evaluations measure something else: data.tags bespoke -> r1: resume with what "
        "the run was started with, choose another --output-dir, or add --accept-changes, after which no summary "
        "compares evaluations before and after"
    )


def test_every_change_is_named_in_the_log(logged):
    name_changes([STEERED, MEASURED], finished=False)
    assert logged.messages[0] == "resuming with other settings: learning_rate 0.0001 -> 1e-05"
    assert "change what is measured (--accept-changes): data.tags bespoke -> r1;" in logged.messages[1]
    logged.clear()
    name_changes([STEERED, MEASURED], finished=True)
    assert logged.messages == [
        "settings or data that differ have no effect on the finished run: learning_rate 0.0001 -> 1e-05, data.tags "
        "bespoke -> r1"
    ]
    logged.clear()
    name_changes([], finished=False)
    assert logged.messages == []


def test_what_was_accepted_once_is_not_accepted_for_ever(tmp_path):
    record_start(replace(TINY, accept_changes=True), None, [], tmp_path, step=0)
    assert load_config(tmp_path / "config.yaml") == TINY


def test_accepted_changes_are_recorded_with_their_step(tmp_path):
    assert last_accepted_change(tmp_path) is None
    record_start(TINY, None, [STEERED], tmp_path, step=2)
    assert last_accepted_change(tmp_path) is None
    record_start(TINY, None, [MEASURED], tmp_path, step=4)
    record_start(TINY, None, [MEASURED], tmp_path, step=6)
    assert last_accepted_change(tmp_path) == 6
    record_start(TINY, None, [], tmp_path, step=5)  # from an older checkpoint: the later change has not happened
    assert last_accepted_change(tmp_path) == 4
    lines = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "step": 2,
        "changes": [{"name": "learning_rate", "before": 1e-4, "now": 1e-5, "measured": False}],
    }
    record_start(TINY, None, [], tmp_path, step=0)
    assert last_accepted_change(tmp_path) is None


def evaluate(folder, *steps):
    for step in steps:
        write_records(folder, step, [{"row": row, "reward": float(step + row * row)} for row in range(3)])
    metrics = "".join(json.dumps({"step": step, "eval/reward": float(step)}) + "\n" for step in steps)
    (folder / "metrics.jsonl").write_text(metrics)


def test_no_summary_pairs_evaluations_across_an_accepted_change(tmp_path):
    evaluate(tmp_path, 0, 4, 6, 8)
    assert read_changes(tmp_path, ["reward"], first=0, last=8)["reward"].change == pytest.approx(8.0)
    record_start(TINY, None, [MEASURED], tmp_path, step=4)
    after = read_changes(tmp_path, ["reward"], first=0, last=8)["reward"]
    assert (after.change, after.mean_before) == (pytest.approx(2.0), pytest.approx(6 + np.mean([0, 1, 4])))
    assert read_evaluations(tmp_path, last=8) == {"reward": {6: 6.0, 8: 8.0}}
    record_start(TINY, None, [MEASURED], tmp_path, step=6)
    assert read_changes(tmp_path, ["reward"], first=0, last=8) == {}  # one evaluation is left


def test_a_reference_that_nothing_reads_any_more_is_named_and_not_refused():
    """Evaluations measure the same without it; another one in its place is a change of what the run reads."""
    now, saved = {"the teacher's weights": "t"}, {"the teacher's weights": "t", "the reference's weights": "r"}
    (gone,) = changed_inputs(now, saved)
    assert gone.steers and (gone.before, gone.now) == ("r", "none")
    (other,) = changed_inputs({**saved, "the reference's weights": "s"}, saved)
    assert not other.steers
