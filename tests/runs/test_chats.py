"""`--show-chat` of every command that has a chat: what is shown of the first row."""

import json
import shutil
from dataclasses import replace

import pytest

from rlt_jax.configs import (
    PRESETS,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    QuestionsConfig,
    RowsConfig,
    ScoreConfig,
    SftConfig,
)
from rlt_jax.errors import UserError
from rlt_jax.runs.chats import chats_of

TINY = PRESETS["tiny"]
ROW = {
    "question": "What is 2+3?",
    "solution": "5",
    "reasoning_trace": "First 2+3=5.",
    "explanation": "It is 5.",
    "system": "Be exact.",
    "answer": "5",
}


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    return str(file)


def counted(shown: str) -> list[tuple[str, str]]:
    """(meaning, text) of the counted parts of a chat."""
    parts, lines = [], shown.split("\n")
    for line in lines:
        if line.startswith("  > "):
            parts.append((line.partition(", ")[2], []))
        elif line.startswith("    >"):
            parts[-1][1].append(line.removeprefix("    >").removeprefix(" "))
    return [(meaning, "\n".join(text)) for meaning, text in parts]


def test_both_chats_of_a_training_run_with_the_rows_own_trace(rows):
    config = replace(TINY, data=replace(TINY.data, path=rows))
    teacher, student, ends = chats_of(config)
    assert [(meaning.split(":")[0], text) for meaning, text in counted(teacher)] == [
        ("thought", "First 2+3=5.\n\n"),
        ("end tag and end of turn", "<|end_of_explanation|><|im_end|>"),
    ]
    assert [(meaning.split(":")[0], text) for meaning, text in counted(student)] == [
        ("thought", "First 2+3=5.\n\n"),
        ("solution", "5"),
    ]
    assert "    | Be exact.<|im_end|>" in student and "Be exact" not in teacher
    assert ends == "a completion ends at: 420 '<|im_end|>'"


def test_a_row_without_a_trace_has_a_placeholder(rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "What is 2+3?", "solution": "5"}))
    config = GenerateConfig(teacher=TINY.teacher, data=RowsConfig(path=rows), out="unused")
    teacher, ends = chats_of(config)  # no student, no second chat
    assert counted(teacher)[0][1] == "(an explanation stands here)\n\n"
    assert ends.startswith("a completion ends at: ")


def test_a_scored_explanation(rows, tmp_path):
    columns = {name: ROW[name] for name in ("question", "solution", "explanation")}
    (tmp_path / "rows.jsonl").write_text(json.dumps(columns))
    config = ScoreConfig(teacher=TINY.teacher, student=TINY.student, data=rows, out="unused")
    teacher, student, _ = chats_of(config)
    assert [text.strip("\n") for _, text in counted(teacher)] == ["It is 5."]
    assert [text.strip("\n") for _, text in counted(student)] == ["It is 5.", "5"]


@pytest.mark.parametrize(
    ("target", "trained"),
    [
        ("teacher", "First 2+3=5.\n\n<|end_of_explanation|><|im_end|>\n"),
        (
            "student",
            "<|begin_of_thought|>\n\nFirst 2+3=5.\n\n<|end_of_thought|><|begin_of_solution|>5<|end_of_solution|>"
            "<|im_end|>\n",
        ),
    ],
)
def test_what_fine_tuning_trains(rows, target, trained):
    config = SftConfig(model=TINY.teacher, target=target, output_dir="unused", data=DataConfig(path=rows))
    shown, _ = chats_of(config)
    assert [text for _, text in counted(shown)] == [trained]


@pytest.mark.parametrize(
    ("prompt", "end"), [("student", "<|begin_of_thought|>\n    |\n    |"), ("chat", "assistant\n    |")]
)
def test_a_question_as_the_model_is_asked(rows, prompt, end):
    config = EvaluateConfig(model=TINY.student, data=QuestionsConfig(path=rows), out="unused", prompt=prompt)
    shown, _ = chats_of(config)
    assert counted(shown) == []
    assert "row 0, whose answer is '5'" in shown
    text = "\n".join(line for line in shown.split("\n") if line.startswith("    |"))
    assert text.endswith(end)


def test_end_tokens_of_a_base_model_and_an_opened_thought(rows, tmp_path):
    model = shutil.copytree(TINY.teacher, tmp_path / "base")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"))
    config = GenerateConfig(teacher=str(model), data=RowsConfig(path=rows), out="unused")
    teacher, ends = chats_of(config)
    assert "<think>" not in teacher
    assert ends == "a completion ends at: 418 '<|endoftext|>', 420 '<|im_end|>'"


def test_a_row_that_cannot_be_shown_is_named(rows, tmp_path, golden):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "solution": "()", "explanation": "e"}))
    teacher, student = str(golden / "teacher"), str(golden / "student")
    with pytest.raises(UserError, match=r"row 0: solution has no token of its own"):
        chats_of(ScoreConfig(teacher=teacher, student=student, data=rows, out="unused"))
