"""The file rlt_jax.json: what is written is read again, and what is damaged is refused by name."""

import dataclasses
import json

import pytest

from rlt_jax.data import BESPOKE, R1, load_tokenizer
from rlt_jax.data.model_record import (
    RECORD_FILE,
    ModelRecord,
    Training,
    chat_outline,
    end_tokens,
    filled_chat,
    read_record,
    record_text,
    tag_format_of,
)
from rlt_jax.errors import UserError

TEACHER = ModelRecord(
    role="teacher",
    tags="r1",
    prompt='Explain "it": {explanation_start}\nlike this, näive.',
    prompt_of_rows=False,
    student_gap=None,
    chat="<s>{system}|{question}|{answer}</s>\n",
    end_tokens=("</s>", "<end>"),
    training=(
        Training("sft", "Qwen/Qwen2.5-0.5B", True, None, "rows.jsonl", "train", 30, "0.1.0"),
        Training("train", "runs/warm/final", False, "student", "rows.jsonl", "train", 40, "0.1.0"),
    ),
)
STUDENT = dataclasses.replace(TEACHER, role="student", prompt=None, prompt_of_rows=True, student_gap="blank-line")


def written(folder, text):
    (folder / RECORD_FILE).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("record", [TEACHER, STUDENT], ids=["teacher", "student"])
def test_what_is_written_is_read(tmp_path, record):
    assert read_record(written(tmp_path, record_text(record))) == record


def test_a_folder_without_a_record(tmp_path, golden):
    assert read_record(tmp_path) is None
    assert read_record(golden / "teacher") is None


def changed(**changes):
    values = json.loads(record_text(TEACHER))
    return json.dumps({name: value for name, value in (values | changes).items() if value != "GONE"})


DAMAGED = {
    "cut": (record_text(TEACHER)[:80], "it cannot be read"),
    "empty": ("", "it cannot be read"),
    "list": ("[]", "it holds a list, not an object"),
    "no format": (changed(format="GONE"), "format is None, not 1"),
    "true is no format": (changed(format=True), "format is True, not 1"),
    "newer": (changed(format=2), "expected format 1, found 2, which is newer: update rlt_jax, or delete the file"),
    "no prompt": (changed(prompt="GONE"), "prompt is missing"),
    "prompt null": (changed(prompt=None), "a teacher has a prompt"),
    "prompt a number": (changed(prompt=3), "prompt=3 is not a valid string"),
    "tags": (changed(tags="xml"), "tags='xml' is not 'bespoke' or 'r1'"),
    "role": (changed(role="judge"), "role='judge' is not 'teacher' or 'student'"),
    "gap of a teacher": (changed(student_gap="as-row"), "no student_gap"),
    "a student without a gap": (changed(role="student"), "student_gap is null for a student"),
    "no prompt at all": (
        changed(role="student", student_gap="as-row", prompt=None),
        "prompt is null, which stands for several prompts of rows",
    ),
    "unknown": (changed(promt="x"), "promt is unknown"),
    "deep": (changed(training=[{"command": "sft"}]), "training.0.base is missing"),
    "surrogate": (changed(chat="\ud800"), "is not"),
}


@pytest.mark.parametrize(("text", "problem"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_refused(tmp_path, text, problem):
    with pytest.raises(UserError) as refused:
        read_record(written(tmp_path, text))
    assert str(tmp_path / RECORD_FILE) in str(refused.value) and problem in str(refused.value)
    assert "delete" in str(refused.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / RECORD_FILE).write_bytes(b'{"format": 1, "role": "\xff"}')
    with pytest.raises(UserError, match="it cannot be read"):
        read_record(tmp_path)


def test_the_chat_around_the_texts(golden):
    outline = chat_outline(load_tokenizer(golden / "teacher"))
    assert outline.count("{system}") == outline.count("{question}") == outline.count("{answer}") == 1
    tokenizer = load_tokenizer(golden / "teacher")
    messages = [{"role": "system", "content": "S {question}"}, {"role": "user", "content": "Q"}]
    messages.append({"role": "assistant", "content": "A"})
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert filled_chat(outline, system="S {question}", question="Q", answer="A") == whole


def test_end_tokens_and_tags(golden):
    tokenizer = load_tokenizer(golden / "teacher")
    ends = end_tokens(tokenizer, str(golden / "teacher"))
    assert tokenizer.eos_token in ends
    assert tag_format_of(BESPOKE) == "bespoke" and tag_format_of(R1) == "r1"
