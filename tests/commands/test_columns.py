"""Rows under their owner's column names, through every command: read alike, or refused with the flag to type."""

import json
from pathlib import Path

import pytest

from rlt_jax import evaluate as evaluate_command
from rlt_jax import generate as generate_command
from rlt_jax import plan as plan_command
from rlt_jax import score as score_command
from rlt_jax import sft as sft_command
from rlt_jax import train as train_command

ROWS = [(f"What is {i}+1?", i + 1, f"One more than {i}.") for i in range(10, 30)]

COMMANDS = {  # command, its prefix of flags, the part that a solution is
    "train": (train_command, "data.", "solution"),
    "plan": (plan_command, "data.", "solution"),
    "sft": (sft_command, "data.", "solution"),
    "generate": (generate_command, "data.", "solution"),
    "score": (score_command, "", "solution"),
    "evaluate": (evaluate_command, "data.", "answer"),
}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    def refuse(token: str) -> None:
        raise AssertionError(f"a bare {token}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def named(question: str, solution: str, trace: str, system: str) -> list[dict]:
    return [{question: q, solution: s, trace: t, system: f"Add, {s}."} for q, s, t in ROWS]


@pytest.fixture
def flags(tiny, tmp_path, small):
    """flags(command, data): a command line without names of columns."""

    def of(command: str, data: Path) -> list:
        models = ["--teacher", tiny / "teacher", "--student", tiny / "student"]
        prompt = tiny / "teacher_prompt.txt"
        out = ["--out", tmp_path / f"{command}-{data.stem}.jsonl"]
        return {
            "train": [*small, "--data.path", data, "--output-dir", tmp_path / "run"],
            "plan": [*small, "--data.path", data, "--output-dir", tmp_path / "run"],
            "sft": [
                *("--model", tiny / "teacher", "--output-dir", tmp_path / f"sft-{data.stem}", "--data.path", data),
                *("--data.teacher-prompt-file", prompt, "--train-batch-size", 4, "--max-steps", 1),
            ],
            "generate": [
                *models[:2], "--data.path", data, "--data.teacher-prompt-file", prompt, *out,
                "--max-completion-length", 8, "--max-prompt-length", 128, "--on-unfinished", "keep", "--redraws", 0,
            ],
            "score": [*models, "--data", data, "--teacher-prompt-file", prompt, "--dtype", "float32", *out],
            "evaluate": ["--model", tiny / "student", "--data.path", data, *out, "--max-completion-length", 8],
        }[command]  # fmt: skip

    return of


def mapping(command: str, **columns: str) -> list[str]:
    _, prefix, solution = COMMANDS[command]
    names = {solution if part == "solution" else part: column for part, column in columns.items()}
    if command == "evaluate":
        names.pop("trace")
    if command == "score":
        names["explanation"] = names.pop("trace")
    return [word for part, column in names.items() for word in (f"--{prefix}{part}-column", column)]


MINE = {"question": "the problem", "solution": "result", "trace": "thinking", "system": "persona"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_chat_is_the_same_under_other_names(command, flags, main, tmp_path, capsys):
    """Of the row as each model reads it."""
    trace = "explanation" if command == "score" else "reasoning_trace"
    solution = "answer" if command == "evaluate" else "solution"
    usual = write(tmp_path / "usual.jsonl", named("question", solution, trace, "system"))
    mine = write(tmp_path / "mine.jsonl", named(*MINE.values()))
    main(COMMANDS[command][0], *flags(command, usual), "--show-chat")
    expected = capsys.readouterr().out
    main(COMMANDS[command][0], *flags(command, mine), *mapping(command, **MINE), "--show-chat")
    assert capsys.readouterr().out == expected
    assert "What is 10+1?" in expected
    assert ("Add, 11." in expected) == (command not in ("sft", "generate"))  # those show no student's chat here


@pytest.mark.parametrize("command", COMMANDS)
def test_the_hint_is_the_flag_to_type(command, flags, main, tmp_path, capsys):
    """A line of flags from the message makes the command work."""
    trace = "explanation" if command == "score" else "reasoning_trace"
    data = write(tmp_path / "rows.jsonl", named("problem", "Final Answer", trace, "system"))
    module, prefix, solution = COMMANDS[command]
    with pytest.raises(SystemExit) as end:
        main(module, *flags(command, data), "--show-chat")
    assert end.value.code == 2
    hint = f"--{prefix}question-column problem --{prefix}{solution}-column 'Final Answer'"
    assert f": add {hint}, which looks right, or give rows with" in capsys.readouterr().err
    found = [f"--{prefix}question-column", "problem", f"--{prefix}{solution}-column", "Final Answer"]
    main(module, *flags(command, data), *found, "--show-chat")
    assert "What is 10+1?" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(command, flags, main, tmp_path, capsys):
    trace = "explanation" if command == "score" else "reasoning_trace"
    solution = "answer" if command == "evaluate" else "solution"
    data = write(tmp_path / "rows.jsonl", named("question", solution, trace, "persona"))
    module, prefix, _ = COMMANDS[command]
    with pytest.raises(SystemExit) as end:
        main(module, *flags(command, data), f"--{prefix}system-column", "persna", "--show-chat")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"expected the column persna (--{prefix}system-column persna), but no row has it" in error
    assert f"{trace}, persona: did you mean --{prefix}system-column persona?" in error


def test_plan_finds_the_column_too(flags, main, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", named("question", "answer", "reasoning_trace", "system"))
    names = ["--data.solution-column", "answer"]
    statuses = []
    for more in ([], names):
        with pytest.raises(SystemExit):  # there is no GPU, or the plan fits and nothing is raised
            main(plan_command, *flags("plan", data), *more, "--json")
            raise SystemExit(0)
        report = json.loads(capsys.readouterr().out)
        check = next(check for check in report["checks"] if check["name"] == "data")
        statuses.append(check["status"])
        if not more:
            assert "add --data.solution-column answer, which looks right" in check["advice"]
    assert statuses == ["problem", "ok"]


def test_sft_names_the_trace(flags, main, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", named("question", "solution", "Chain of Thought", "system"))
    for more in ([], ["--show-chat"]):
        with pytest.raises(SystemExit) as end:
            main(sft_command, *flags("sft", data), *more)
        assert end.value.code == 2
        assert (
            "expected rows with a reasoning trace, but none of 20 has one: add --data.trace-column 'Chain of Thought', "
            "which looks right, or give rows with a reasoning_trace"
        ) in capsys.readouterr().err
    assert not (tmp_path / "sft-rows" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("train", ["--data.solution-column", ""], "data.solution_column is empty: expected the name of a column"),
        ("generate", ["--data.trace-column", "x", "--data.solution-column", "x"],
         "data.solution_column and data.trace_column name the same column, x: give each its own"),
        ("score", ["--explanation-column", "x", "--completion-column", "y"], "a row has one of them: name only one"),
        ("score", ["--explanation-column", "x", "--question-column", "x"],
         "question_column and explanation_column name the same column, x"),
        ("evaluate", ["--data.system-column", " "], "data.system_column is empty: expected the name of a column"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_meant(command, more, message, flags, main, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", named("question", "solution", "reasoning_trace", "system"))
    with pytest.raises(SystemExit) as end:
        main(COMMANDS[command][0], *flags(command, data), *more)
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_each_command_with_named_columns(flags, main, tmp_path):
    """Held-out rows of another file have the same columns; what is written has the usual names."""
    data = write(tmp_path / "rows.jsonl", named(*MINE.values()))
    held_out = ["--data.eval-path", write(tmp_path / "eval.jsonl", named(*MINE.values()))]
    main(train_command, *flags("train", data), *mapping("train", **MINE), *held_out, "--max-steps", 1)
    assert (tmp_path / "run" / "final").exists()
    main(sft_command, *flags("sft", data), *mapping("sft", **MINE), *held_out, "--data.eval-rows", 4, "--eval-steps", 1)
    assert (tmp_path / "sft-rows" / "final").exists()
    main(generate_command, *flags("generate", data), *mapping("generate", **MINE))
    record = read(tmp_path / "generate-rows.jsonl")[0]
    columns = {"question": "What is 10+1?", "solution": "11", "reasoning_trace": "One more than 10."}
    assert record | columns | {"system": "Add, 11."} == record
    main(evaluate_command, *flags("evaluate", data), *mapping("evaluate", **MINE))
    assert [answer["expected"] for answer in read(tmp_path / "evaluate-rows.jsonl")] == [str(s) for _, s, _ in ROWS]


@pytest.mark.slow
def test_scores_are_the_same_and_selected_rows_keep_their_columns_and_digits(flags, main, tmp_path):
    usual = write(tmp_path / "usual.jsonl", named("question", "solution", "explanation", "system"))
    mine = tmp_path / "mine.jsonl"
    numbers = '"note": 0.12345678901234567890, "mass": 1.2345678901234568e20, "big": 100000000000000000000000001'
    lines = [json.dumps(row) for row in named(*MINE.values())]
    mine.write_text("".join(f'{line[:-1]}, {numbers}, "gap": NaN, "deep": [Infinity]}}\n' for line in lines))
    main(score_command, *flags("score", usual))
    selected = tmp_path / "selected.jsonl"
    main(score_command, *flags("score", mine), *mapping("score", **MINE), "--selected-out", selected)
    assert read(tmp_path / "score-mine.jsonl") == read(tmp_path / "score-usual.jsonl")
    kept = read(selected)
    assert len(kept) == len(ROWS) and all(numbers in line for line in selected.read_text().splitlines())
    assert kept[0]["the problem"] == "What is 10+1?" and kept[0]["result"] == 11
    assert kept[0]["gap"] is None and kept[0]["deep"] == [None]
