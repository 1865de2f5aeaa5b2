"""The lines at the start of every command, word for word."""

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
from rlt_jax.runs.announce import (
    attention_line,
    evaluate_lines,
    evaluated_rows,
    evaluation_line,
    generate_lines,
    score_lines,
    sft_lines,
    train_lines,
)
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.types import Row

TINY = PRESETS["tiny"]
PLAIN = [Row(number=i, question="q", solution="s", reasoning_trace=None, system=None) for i in range(3)]
OWN = [replace(row, system="Think about the steps, then give the result.") for row in PLAIN]
TEACHER = 'teacher\'s from its folder "You see a question and its ..."'
STUDENT = 'from its folder "Think about the steps, then give ..."'
DEFAULT = 'student\'s default "Solve the exercise in two parts. ..."'  # of a model that was trained as a teacher
BESPOKE = "tags bespoke (<|begin_of_explanation|> ...)"


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    path.write_text("Explain it.\n")
    return str(path)


def train_of(data: DataConfig, rows: list[Row], **changes) -> list[str]:
    config = replace(TINY, data=data, max_steps=40, **changes)
    return train_lines(config, chat_format_of(config), trained=24, skipped=1, held_out=6, rows=rows)


def test_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not above the package, whose paths would be shown shorter
    assert train_of(DataConfig(path="units.jsonl"), PLAIN) == [
        f"training the teacher {TINY.teacher} on 24 rows of units.jsonl (1 skipped), 40 steps of 8 questions x 8 "
        f"completions; the frozen student {TINY.student} gives the reward",
        "evaluating every 10 steps on 6 rows at the end of units.jsonl, which are not trained on",
        f"prompts: {TEACHER}, student's {STUDENT}; {BESPOKE}",
    ]


def test_prompts_and_tags(prompt_file):
    own = "student's the rows' own `system` \"Think about the steps, then give ...\""
    assert train_of(DataConfig(path="a", tags="r1", teacher_prompt_file=prompt_file, on_contradiction="warn"), OWN)[
        2
    ] == (f'prompts: teacher\'s from {prompt_file} "Explain it.", {own}; tags r1 (<explanation> ...)')
    assert train_of(DataConfig(path="a"), [OWN[0], *PLAIN])[2] == (
        f"prompts: {TEACHER}, {own}, for rows without one {STUDENT}; {BESPOKE}"
    )
    # a file for the student comes before the rows' own
    assert train_of(DataConfig(path="a", student_prompt_file=prompt_file, on_contradiction="warn"), OWN)[2] == (
        f'prompts: {TEACHER}, student\'s from {prompt_file} "Explain it."; {BESPOKE}'
    )


@pytest.mark.parametrize(
    ("data", "eval_steps", "held_out", "line"),
    [
        ({}, 5, 1, "evaluating every 5 steps on 1 row at the end of a.jsonl, which are not trained on"),
        ({"split": "x"}, 5, 2, "evaluating every 5 steps on 2 rows at the end of a.jsonl (split x), which are not tr"),
        ({"eval_path": "e.jsonl"}, 5, 9, "evaluating every 5 steps on 9 rows of e.jsonl"),
        ({"eval_path": "e", "eval_split": "dev"}, 5, 9, "evaluating every 5 steps on 9 rows of e (split dev)"),
        ({"eval_split": "test"}, 5, 9, "evaluating every 5 steps on 9 rows of a.jsonl (split test)"),
        ({}, 0, 0, "no evaluation"),
        ({}, 0, 4, "no evaluation; 4 rows at the end of a.jsonl are held out, and not trained on"),
        ({"eval_path": "e.jsonl"}, 0, 4, "no evaluation"),
    ],
)
def test_evaluation(data, eval_steps, held_out, line):
    came = evaluation_line(DataConfig(path="a.jsonl", **data), eval_steps, held_out)
    assert came.startswith(line) and (came == line or line.endswith("not tr"))


def test_the_source_of_held_out_rows_for_the_summary():
    assert evaluated_rows(DataConfig(path="a.jsonl")) == "at the end of a.jsonl"
    assert evaluated_rows(DataConfig(path="a.jsonl", eval_path="eval.jsonl")) == "of eval.jsonl"


def test_paths_below_the_working_folder_are_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluated_rows(DataConfig(path=str(tmp_path / "d" / "a.jsonl"))) == "at the end of d/a.jsonl"


@pytest.mark.parametrize(
    ("target", "first", "prompt"),
    [
        ("teacher", "teacher M to write explanations, given question and solution", TEACHER),
        ("student", "student M to write thoughts and solutions, given the question", DEFAULT),
    ],
)
def test_fine_tuning(target, first, prompt):
    config = SftConfig(
        model=TINY.teacher, output_dir="o", data=DataConfig(path="a"), target=target, train_batch_size=16
    )
    chat = chat_format_of(config)
    named = replace(config, model="M")
    assert sft_lines(named, chat, trained=64, skipped=2, held_out=0, steps=40, rows=PLAIN) == [
        f"fine-tuning the {first}, on 64 training examples of a (2 skipped), 40 steps of 16 rows",
        "no evaluation",
        f"prompts: {prompt}; {BESPOKE}",
    ]


def test_generating():
    config = GenerateConfig(teacher=TINY.teacher, data=RowsConfig(path="a", split="test"), out="o")
    chat = chat_format_of(config)
    named = replace(config, teacher="T")
    assert generate_lines(named, chat, explained=5, skipped=0) == [
        "the teacher T explains 5 rows of a (split test) (0 skipped), 1 explanation each; no student, so no rewards",
        f"prompts: {TEACHER}; {BESPOKE}",
    ]
    first, _ = generate_lines(replace(named, student="S", samples=4), chat, explained=5, skipped=0)
    assert first.endswith("4 explanations each; the frozen student S gives the reward")


def test_scoring():
    config = ScoreConfig(teacher=TINY.teacher, student=TINY.student, data="a.jsonl", out="o")
    chat = chat_format_of(config)
    assert score_lines(replace(config, teacher="T", student="S"), chat, rows=OWN, skipped=3) == [
        "scoring 3 rows of a.jsonl (3 skipped): teacher T, frozen student S",
        f"prompts: {TEACHER}, student's the rows' own `system` \"Think about the steps, then give ...\"; {BESPOKE}",
    ]


def test_asking(prompt_file):
    config = EvaluateConfig(model=TINY.student, data=QuestionsConfig(path="a", answer_column="x"), out="o", samples=2)
    chat = chat_format_of(config)
    named = replace(config, model="M")
    first = "asking M 7 questions of a (1 skipped), 2 answers each; answers are the column x"
    assert evaluate_lines(named, chat, asked=7, skipped=1) == [
        first,
        f"prompts: {STUDENT} (rows with a `system` keep it); {BESPOKE}",
    ]
    assert evaluate_lines(replace(named, prompt="chat"), chat, asked=7, skipped=1) == [
        first,
        "prompts: the model's own chat, no system prompt",
    ]
    config = replace(config, system_prompt_file=prompt_file, prompt="chat")
    assert evaluate_lines(config, chat_format_of(config), asked=7, skipped=1)[1] == (
        f'prompts: the model\'s own chat, from {prompt_file} "Explain it."'
    )


def test_attention():
    assert attention_line({"teacher": "xla", "student": "xla"}) == "attention: xla"
    both = {"teacher": "flash-attn3", "student": "cudnn"}
    assert attention_line(both) == "attention: flash-attn3 for the teacher, cudnn for the student"
