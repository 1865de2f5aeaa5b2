"""What a run writes beside its model: role, prompts and tags of its chat format, and how it was trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import rlt_jax
from rlt_jax.configs import PRESETS, DataConfig, SftConfig
from rlt_jax.data import ChatFormat, load_tokenizer
from rlt_jax.data.model_record import RECORD_FILE, read_record
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.exported import files_of_sft, files_of_training, student_prompt_of
from rlt_jax.types import Row

TINY = Path(rlt_jax.__file__).parent / "assets" / "tiny"


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_tokenizer(TINY / "teacher"), student_prompt="Solve: {thought_start}")


def rows(*systems: str | None) -> list[Row]:
    return [Row(i, "q", "s", "r", system) for i, system in enumerate(systems)]


def test_the_prompt_of_a_student(chat):
    assert student_prompt_of(rows("A", "A"), chat) == ("A", True)
    assert student_prompt_of(rows("A", "B"), chat) == (None, True)
    assert student_prompt_of(rows("A", None), chat) == (None, True)
    assert student_prompt_of(rows(None, None), chat) == ("Solve: {thought_start}", False)
    assert student_prompt_of(rows("{thought_end}"), chat) == (None, True)  # a row's is not filled, a prompt's is
    overriding = replace(chat, student_prompt_overrides_rows=True)
    assert student_prompt_of(rows("A", "B"), overriding) == ("Solve: {thought_start}", False)


def read(tmp_path, files):
    assert files.keys() == {"rlt_jax.json", "README.md"}
    (tmp_path / RECORD_FILE).write_text(files[RECORD_FILE], encoding="utf-8")
    return read_record(tmp_path)


def test_a_trained_teacher_has_its_own_past_and_no_path_of_this_machine(tmp_path):
    config = PRESETS["tiny"]
    files = files_of_training(config, chat_format_of(config))
    assert str(TINY) not in files[RECORD_FILE] + files["README.md"]
    record = read(tmp_path, files)
    assert (record.role, record.tags, record.student_gap) == ("teacher", "bespoke", None)
    assert record.prompt == (TINY / "teacher_prompt.txt").read_text().strip()
    first, last = record.training
    assert (first.command, first.steps) == ("sft", 10000)
    assert (last.command, last.steps, last.base_on_hub) == ("train", 40, False)
    assert (last.base, last.student) == ("rlt_jax/assets/tiny/teacher", "rlt_jax/assets/tiny/student")
    assert last.data == "rlt_jax/assets/tiny/train.jsonl"


def test_a_student_is_said_to_be_one_whatever_it_was(tmp_path):
    model = shutil.copytree(TINY / "teacher", tmp_path / "model")
    data = DataConfig(path="mine.jsonl", tags="r1")
    config = SftConfig(target="student", model=str(model), output_dir="none", data=data)
    chat = chat_format_of(config)
    record = read(tmp_path, files_of_sft(config, chat, rows("A", "A"), steps=7))
    assert (record.role, record.tags, record.prompt, record.prompt_of_rows) == ("student", "r1", "A", True)
    assert record.student_gap == "as-row"
    assert [training.steps for training in record.training] == [10000, 7]
    assert (record.training[1].base, record.training[1].data) == (str(model), "mine.jsonl")  # as it was named
    (model / RECORD_FILE).unlink()
    plain = read(tmp_path, files_of_sft(config, chat, rows("A"), steps=7))
    assert len(plain.training) == 1
    assert json.loads((tmp_path / RECORD_FILE).read_text())["format"] == 1
