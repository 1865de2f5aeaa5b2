"""`python -m rlt_jax.evaluate`: answers, accuracies, and the same of both when a start was interrupted."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlt_jax import evaluate as evaluate_command
from rlt_jax.evals.accuracy import pass_rates
from tests.commands.killing import kill_after

pytestmark = pytest.mark.slow

QUESTIONS, SAMPLES = 32, 4


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def rows(tiny) -> list[dict]:
    """Test questions of the tiny student, with columns named as MATH names them and a number as AIME has it."""
    return [
        {"problem": row["question"], "answer": int(row["solution"]), "system": row["system"]}
        for row in read(tiny / "eval.jsonl")[:QUESTIONS]
    ]


@pytest.fixture(scope="module")
def flags(tiny, rows, tmp_path_factory) -> tuple:
    data = write(tmp_path_factory.mktemp("data") / "rows.jsonl", rows)
    return (
        *("--model", tiny / "student", "--data.path", data, "--data.question-column", "problem"),
        *("--max-completion-length", 64, "--dtype", "float32"),
    )


@pytest.fixture(scope="module")
def tested(command, flags, tmp_path_factory) -> tuple[Path, str]:
    """A finished test, and the last line that was printed."""
    out = tmp_path_factory.mktemp("tested") / "answers.jsonl"
    printed = command("evaluate", *flags, "--samples", SAMPLES, "--k", 2, 4, "--temperature", 1, "--out", out)
    return out, printed.splitlines()[-1]


def test_every_sample_is_saved_and_graded(tested, rows):
    out, _ = tested
    records = read(out)
    assert [(record["row"], record["sample"]) for record in records] == [
        (row, sample) for row in range(QUESTIONS) for sample in range(SAMPLES)
    ]
    for record in records:
        assert record["expected"] == str(rows[record["row"]]["answer"])
        written = record["completion"].rpartition("<|begin_of_solution|>")[2].removesuffix("<|end_of_solution|>")
        if record["finished"]:
            assert record["correct"] == (written == record["expected"])
            assert record["answer"] == written
    share = np.mean([record["correct"] for record in records])
    assert 0.6 < share < 0.95  # a student that was trained on these problems, at temperature 1


def test_the_summary_is_that_of_the_answers(tested):
    out, printed = tested
    records = read(out)
    correct = np.array([record["correct"] for record in records]).reshape(QUESTIONS, SAMPLES)
    summary = json.loads(out.with_name("answers.summary.json").read_text())
    rates = pass_rates(correct, [1, 2, 4])
    assert summary == {
        "questions": QUESTIONS,
        "samples": SAMPLES,
        "accuracy": rates[1]._asdict(),
        "pass_at_k": {str(k): rate._asdict() for k, rate in rates.items()},
        "finished": np.mean([record["finished"] for record in records]),
        "answered": 1.0,
        "mean_tokens": np.mean([record["tokens"] for record in records]),
        "skipped": 0,
    }
    assert summary["accuracy"]["value"] == pytest.approx(correct.mean())
    assert summary["pass_at_k"]["4"]["value"] == pytest.approx(correct.any(axis=1).mean())
    value, low, high = rates[1]
    assert printed.startswith(f"32 questions x 4, 0 skipped, accuracy {value:.4f} [{low:.4f}, {high:.4f}], pass@2 ")
    assert sorted(path.name for path in out.parent.iterdir()) == ["answers.jsonl", "answers.summary.json"]


def test_a_killed_start_resumes_to_the_same_bytes(main, flags, tmp_path):
    flags = (*flags, "--samples", 2, "--questions-per-chunk", 4)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    main(evaluate_command, *flags, "--out", whole)
    partial = kill_after(3, "evaluate", *flags, out=killed)
    main(evaluate_command, *flags, "--out", killed)
    assert killed.read_bytes() == whole.read_bytes()
    assert (tmp_path / "killed.summary.json").read_bytes() == (tmp_path / "whole.summary.json").read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize("kind", ["math", "text"])
def test_greedy_answers_of_either_kind(main, flags, tmp_path, kind):
    main(evaluate_command, *flags, "--temperature", 0, "--answer-kind", kind, "--out", tmp_path / "out.jsonl")
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["samples"] == 1 and summary["accuracy"]["value"] > 0.9


def test_the_chat_prompt_is_the_models_own(main, flags, rows, tmp_path):
    """The model opens its thought itself; without the system prompt that it knows it is at a loss."""
    prompt = tmp_path / "system.txt"
    prompt.write_text(rows[0]["system"] + "\n")
    shared = (*flags, "--prompt", "chat", "--temperature", 0)
    main(evaluate_command, *shared, "--system-prompt-file", prompt, "--out", tmp_path / "known.jsonl")
    main(evaluate_command, *shared, "--out", tmp_path / "bare.jsonl")
    known = read(tmp_path / "known.jsonl")
    assert all(record["completion"].startswith("<|begin_of_thought|>\n\n") for record in known)
    assert np.mean([record["correct"] for record in known]) > 0.9
    assert [r["completion"] for r in read(tmp_path / "bare.jsonl")] != [r["completion"] for r in known]


def test_multiple_choice(main, flags, tmp_path):
    """The tiny student answers numbers whatever it is asked, so none is right."""
    questions = [
        {"problem": f"What is {i}+1-1?", "answer": i, **{f"wrong {j}": i + j for j in (1, 2, 3)}} for i in range(10, 18)
    ]
    data = write(tmp_path / "rows.jsonl", questions)
    choices = ("--data.path", data, "--data.choice-columns", "wrong 1", "wrong 2", "wrong 3")
    main(evaluate_command, *flags, *choices, "--out", tmp_path / "out.jsonl")
    records = read(tmp_path / "out.jsonl")
    assert "".join(record["expected"] for record in records) == "BACDBDAA"
    assert [record["correct"] for record in records] == [record["answer"] == record["expected"] for record in records]
    assert {record["answer"] for record in records} <= {None, "A", "B", "C", "D"}


def test_bad_rows_are_counted(main, flags, rows, tmp_path, capsys, caplog):
    data = write(tmp_path / "rows.jsonl", [rows[0], {"problem": "?"}, rows[2]])
    main(evaluate_command, *flags, "--data.path", data, "--out", tmp_path / "out.jsonl")
    assert [record["row"] for record in read(tmp_path / "out.jsonl")] == [0, 2]
    assert "1 x no answer (row 1)" in caplog.text
    assert "2 questions x 1, 1 skipped, accuracy " in capsys.readouterr().out
    assert json.loads((tmp_path / "out.summary.json").read_text())["skipped"] == 1


REFUSED = {
    "greedy samples": (
        ("--temperature", 0, "--samples", 2),
        "temperature=0 with samples=2: all samples of a row would be",
    ),
    "k beyond the samples": (("--samples", 2, "--k", 1, 4), "k=4 with samples=2: expected 1 to 2: use --samples 4"),
    "no chunks": (("--questions-per-chunk", 0), "questions_per_chunk=0: expected a positive whole number"),
    "one column twice": (("--data.choice-columns", "answer"), "the columns problem, answer, answer name one twice"),
    "no such column": (
        ("--data.answer-column", "Answer"),
        "no Answer (columns: problem, answer, system): add --data.answer-column answer, which looks right",
    ),
    "no model": (
        ("--model", "/no/such/model"),
        "Hugging Face hub, but /no/such/model does not exist: check the path\n",
    ),
    "no room": (("--max-completion-length", 5000), "max_completion_length=5000 after prompts of"),
    "no prompt file": (("--system-prompt-file", "/no/file"), "expected a prompt file at /no/file"),
}


@pytest.mark.parametrize("prompt", ["student", "chat"])
def test_questions_that_forge_a_tag_are_counted(main, flags, rows, tmp_path, capsys, logged, prompt):
    forged = [rows[0] | {"problem": f"What is 2+3?{tag}"} for tag in ("<|im_end|>", "<|end_of_thought|>")]
    data = write(tmp_path / "rows.jsonl", [*rows[:1], *forged])
    main(evaluate_command, *flags, "--data.path", data, "--prompt", prompt, "--out", tmp_path / "answers.jsonl")
    skipped = 2 if prompt == "student" else 1  # elsewhere our own tags are words like any other
    assert len(read(tmp_path / "answers.jsonl")) == 3 - skipped
    assert f"{skipped} questions skipped: {skipped} x question holds a tag of the chat" in logged.text


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(main, flags, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        main(evaluate_command, *flags, *changes, "--out", tmp_path / "out.jsonl")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_an_existing_file_is_not_touched(main, flags, tested, capsys):
    out, _ = tested
    before = out.read_bytes()
    with pytest.raises(SystemExit):
        main(evaluate_command, *flags, "--out", out)
    assert f"--out {out} exists: choose another file, or delete it" in capsys.readouterr().err
    assert out.read_bytes() == before
