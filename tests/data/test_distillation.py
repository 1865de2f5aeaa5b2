"""A taught row: what a student's trainer reads in it, and when it would read something else."""

import json
from dataclasses import replace

import pytest

from rlt_jax.data import R1, ChatFormat, distillation_row, load_rows, load_tokenizer
from rlt_jax.data.chat_format import student_closing_text, student_header_text, student_sft_parts
from rlt_jax.types import Row

ROW = Row(7, "What is 2+3?", "5", "My own trace.", None)


@pytest.fixture(scope="module")
def chat(golden) -> ChatFormat:
    return ChatFormat(load_tokenizer(golden / "teacher"))


def read(columns: dict, path) -> Row:
    path.write_text(json.dumps(columns) + "\n")
    return load_rows(str(path)).rows[0]


@pytest.mark.parametrize("explanation", ["Two and three.", "\n\nTwo and three.\n\n", "Two and three.\n"])
@pytest.mark.parametrize("tags", [None, R1], ids=["bespoke", "r1"])
def test_the_explanation_is_the_students_thought(chat, tmp_path, explanation, tags):
    chat = chat if tags is None else replace(chat, tags=tags)
    columns = distillation_row(ROW, explanation, chat)
    assert columns["explanation"] == "Two and three."
    assert (columns["row"], columns["question"], columns["solution"]) == (7, "What is 2+3?", "5")
    assert columns["reasoning_trace"] == "My own trace."  # the row's own, for people to compare
    row = read(columns, tmp_path / "rows.jsonl")
    assert (row.question, row.solution, row.reasoning_trace) == ("What is 2+3?", "5", "\n\nTwo and three.\n\n")
    assert row.system == chat.tags.fill(chat.student_prompt)


def test_training_on_it_teaches_the_very_chat_that_was_scored(chat, tmp_path):
    columns = distillation_row(ROW, "Two and three.", chat)
    row = read(columns, tmp_path / "rows.jsonl")
    thought = chat.tags.thought_start + "\n\nTwo and three.\n\n"
    scored = student_header_text("What is 2+3?", chat) + thought + student_closing_text("5", chat)
    assert "".join(*student_sft_parts([row], replace(chat, student_sft_gap="\n\n"))) == scored
    assert columns["conversations"][1]["value"] in scored


def test_the_rows_system_prompt_unless_the_chat_format_says_otherwise(chat):
    row = replace(ROW, system="Be short.")
    assert distillation_row(row, "x", chat)["system"] == "Be short."
    own = replace(chat, student_prompt="Use {thought_start}.", student_prompt_overrides_rows=True)
    assert distillation_row(row, "x", own)["system"] == "Use <|begin_of_thought|>."


@pytest.mark.parametrize(
    ("row", "explanation"),
    [
        (ROW, "I end here <|end_of_thought|> and go on."),
        (replace(ROW, solution="5<|end_of_solution|>6"), "Two and three."),
    ],
)
def test_a_row_that_would_be_read_otherwise_is_none(chat, row, explanation):
    assert distillation_row(row, explanation, chat) is None


def test_other_tags_inside_are_harmless(chat, tmp_path):
    text = "Write <|begin_of_solution|>5<|end_of_solution|> or <think>."
    assert read(distillation_row(ROW, text, chat), tmp_path / "rows.jsonl").reasoning_trace.strip() == text
    assert distillation_row(ROW, text, replace(chat, tags=R1)) is None  # there the tags of Stratos are looked for


def test_an_empty_explanation_gives_a_row_without_a_trace(chat, tmp_path):
    assert read(distillation_row(ROW, "\n\n", chat), tmp_path / "rows.jsonl").reasoning_trace is None
