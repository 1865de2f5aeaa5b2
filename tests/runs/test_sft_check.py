"""Texts that are sampled at the end of a supervised run: which close their tags, and what is said about them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import rlt_jax
from rlt_jax.configs import DataConfig, SftConfig
from rlt_jax.data import BESPOKE, R1, load_rows
from rlt_jax.device.backoff import BatchSizes, MemoryBackoff
from rlt_jax.models import load_model
from rlt_jax.runs.chat_format import load_chat_format
from rlt_jax.runs.sft_check import (
    TextCheck,
    check_texts,
    closes_answer,
    describe_check,
    next_command,
    questions_to_check,
    read_check,
    save_check,
    shortened,
)
from rlt_jax.types import Row

TINY = Path(rlt_jax.__file__).parent / "assets" / "tiny"
SETTLED = SftConfig(
    model="model",
    output_dir="run",
    data=DataConfig(path="my rows.jsonl"),
    num_train_epochs=67,
    train_batch_size=16,
    learning_rate=7.2e-5,
)


def chat_of(name: str):
    model = str(TINY / name)
    prompts = {"teacher_prompt_file": str(TINY / "teacher_prompt.txt"), "student_prompt_file": None}
    return load_chat_format(model, model, tags="bespoke", **prompts)


@pytest.fixture(scope="module")
def rows() -> tuple[Row, ...]:
    return load_rows(str(TINY / "eval.jsonl"), split="train", on_bad_row="stop").rows[:40]


def check(folder, model, rows, *, target="teacher", count=4, eos_ids=(420,), name="teacher") -> TextCheck:
    chat = chat_of(name)
    questions = questions_to_check(rows, chat, target=target, count=count)
    backoff = MemoryBackoff(BatchSizes(generate=8, score=1, update=1), folder, exhausted=lambda: "")
    return check_texts(questions, *model, chat, eos_ids=eos_ids, backoff=backoff, seed=42, step=7)


def test_a_teacher_that_knows_its_tags(rows, tmp_path):
    found = check(tmp_path, load_model(TINY / "teacher", dtype="float32"), rows)
    assert (found.step, found.drawn, found.closed, found.cut_off) == (7, 4, 4, 0)
    assert found.example.startswith("First ") and found.example.endswith("\n\n<|end_of_explanation|>")
    assert found.metrics() == {"check/matched": 1.0, "check/finished": 1.0}
    assert check(tmp_path, load_model(TINY / "teacher", dtype="float32"), rows) == found  # fixed seeds


def test_a_student_that_knows_its_tags(rows, tmp_path):
    """And the same texts are not an explanation: the teacher's tag does not occur."""
    found = check(tmp_path, load_model(TINY / "student", dtype="float32"), rows, target="student", name="student")
    assert (found.drawn, found.closed, found.cut_off) == (4, 4, 0)
    assert found.example.startswith("<|begin_of_thought|>") and found.example.endswith("<|end_of_solution|>")


def test_a_model_that_never_ends(rows, tmp_path):
    """No token ends a text here but one that the model does not write: all are cut off, at half as much again."""
    model = load_model(TINY / "teacher", dtype="float32")
    found = check(tmp_path, model, rows, eos_ids=(418,))
    answer = max(
        question.answer for question in questions_to_check(rows, chat_of("teacher"), target="teacher", count=4)
    )
    assert (found.closed, found.cut_off, found.max_tokens) == (0, 4, answer * 3 // 2 + 32)
    assert found.metrics() == {"check/matched": 0.0, "check/finished": 0.0}


def test_texts_stay_within_the_models_positions(rows, tmp_path):
    model, params = load_model(TINY / "teacher", dtype="float32")
    longest = max(
        len(question.prompt_ids) for question in questions_to_check(rows, chat_of("teacher"), target="teacher", count=4)
    )
    short = replace(model, config=replace(model.config, max_position_embeddings=longest + 5))
    assert check(tmp_path, (short, params), rows).max_tokens == 5


def test_questions_are_spread_over_the_rows(rows):
    chat = chat_of("teacher")
    questions = questions_to_check(rows, chat, target="teacher", count=4)
    assert [question.row.number for question in questions] == [0, 13, 26, 39]
    assert len(questions_to_check(rows[:3], chat, target="teacher", count=16)) == 3
    assert questions_to_check(rows, chat, target="teacher", count=0) == ()
    assert questions_to_check((), chat, target="student", count=4) == ()


def test_rows_that_cannot_be_judged_are_left_out_with_a_warning(logged):
    """The solution's tokens all hold a piece of a tag, which a teacher may be trained on, but not be scored with."""
    chat = chat_of("teacher")
    row = Row(0, "What is 1+1?", "\n", "One and one.", None)
    assert questions_to_check([row], chat, target="teacher", count=4) == ()
    assert "no texts will be drawn to check the model: " in logged.text


@pytest.mark.parametrize(
    ("text", "closes"),
    [
        ("<|begin_of_thought|>\n\na\n\n<|end_of_thought|>\n\n<|begin_of_solution|>2<|end_of_solution|>", True),
        ("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>2", False),
        ("<|begin_of_solution|>2<|end_of_solution|><|begin_of_thought|>a<|end_of_thought|>", False),
        ("<|begin_of_thought|>a<|begin_of_solution|>2<|end_of_solution|><|end_of_thought|>", False),
        ("a<|end_of_thought|><|begin_of_solution|>2<|end_of_solution|>", False),
        ("", False),
    ],
)
def test_a_students_tags_close_in_their_order(text, closes):
    assert closes_answer(text, BESPOKE) is closes
    assert not closes_answer(text, R1)


def losses(folder, *values):
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "loss": x}) + "\n" for i, x in enumerate(values))
    )


def test_what_is_said_of_a_teacher_that_is_ready(tmp_path):
    losses(tmp_path, 6.8, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5)
    text, ready = describe_check(TextCheck(201, 16, 15, 1, 180, ""), SETTLED, tmp_path)
    assert ready and text == (
        "15 of 16 drawn explanations close their tags (1 cut off after 180 tokens): the teacher is ready for "
        "rlt_jax.train; the loss fell from 6.8 to 0.5"
    )
    assert describe_check(TextCheck(201, 16, 14, 1, 180, ""), SETTLED, tmp_path)[1]
    assert not describe_check(TextCheck(201, 16, 13, 1, 180, ""), SETTLED, tmp_path)[1]


def test_what_is_said_of_one_that_is_not(tmp_path):
    losses(tmp_path, 6.8, 5.8, 5.8, 5.8, 5.8, 5.8)
    text, ready = describe_check(TextCheck(201, 16, 0, 14, 180, ""), SETTLED, tmp_path)
    assert not ready and text == (
        "0 of 16 drawn explanations close their tags (14 cut off after 180 tokens, 2 ended without the tag): train "
        "longer (the same command with --num-train-epochs 134) or at a higher learning rate (--learning-rate 0.00022 "
        "and another --output-dir); the loss fell from 6.8 to 5.8"
    )
    given = replace(SETTLED, max_steps=30, num_train_epochs=None, target="student")
    text, _ = describe_check(TextCheck(30, 2, 0, 0, 90, ""), given, tmp_path)
    assert text.startswith("0 of 2 drawn answers close their tags (2 ended without the tags): train longer (the same ")
    assert "with --max-steps 60)" in text


def test_a_check_is_of_the_model_of_its_step(tmp_path):
    found = TextCheck(201, 16, 15, 1, 180, "é <tag>\n")
    assert read_check(tmp_path, step=201) is None
    save_check(tmp_path, found)
    assert read_check(tmp_path, step=201) == found
    assert read_check(tmp_path, step=402) is None
    (tmp_path / "check.json").write_text('{"step": 201')
    assert read_check(tmp_path, step=201) is None


def test_the_next_command():
    assert next_command(SETTLED, Path("run/final")) == (
        "python -m rlt_jax.train --preset PRESET --teacher run/final --student STUDENT --data.path 'my rows.jsonl' "
        "--output-dir FOLDER"
    )
    other = replace(SETTLED, data=replace(SETTLED.data, solution_column="right answer", tags="r1"))
    assert "'my rows.jsonl' --data.solution-column 'right answer' --out" in next_command(other, Path("run/final"))
    assert next_command(replace(other, target="student"), Path("run/final")) == (
        "python -m rlt_jax.evaluate --model run/final --data.path QUESTIONS --out FILE"
    )


def test_an_example_is_one_short_line():
    assert shortened("a\n\nb  c\n") == "a b c"
    assert len(shortened("word " * 100)) == 160 and shortened("word " * 100).endswith(" ...")
