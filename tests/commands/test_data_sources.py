"""Where commands take rows from: what a folder's splits and subsets are, tables, and what is said about it."""

import csv
import json
from pathlib import Path

import pytest

from rlt_jax import evaluate as evaluate_command
from rlt_jax import generate as generate_command
from rlt_jax import plan as plan_command
from rlt_jax import score as score_command
from rlt_jax import sft as sft_command

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(tiny) -> list[dict]:
    return [json.loads(line) for line in (tiny / "train.jsonl").read_text().splitlines()[:16]]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def units(tmp_path, rows) -> Path:
    """Two subsets with a split each for training and testing, and a hidden copy."""
    for name, start in (("main", 0), ("socratic", 8)):
        write(tmp_path / "units" / name / "train" / "part-0.jsonl", rows[start : start + 6])
        write(tmp_path / "units" / name / "test" / "part-0.csv", rows[start + 6 : start + 8])
    write(tmp_path / "units" / "main" / "train" / ".ipynb_checkpoints" / "part-0-checkpoint.jsonl", rows)
    return tmp_path / "units"


def sft_flags(tiny, folder: Path, run: Path) -> tuple:
    return (
        *("--target", "teacher", "--model", tiny / "teacher", "--data.path", folder, "--output-dir", run),
        *("--max-steps", 1, "--train-batch-size", 2, "--dtype", "float32"),
        *("--checkpoint.no-at-end", "--checkpoint.no-export"),
    )


def test_training_takes_one_split_of_one_subset_and_says_so(main, units, tiny, tmp_path, capsys):
    flags = ("--data.subset", "main", "--data.eval-split", "test", "--data.eval-rows", 2, "--eval-steps", 1)
    main(sft_command, *sft_flags(tiny, units, tmp_path / "run"), *flags)
    log = (tmp_path / "run" / "logs" / "training.log").read_text()
    others = "main/test/part-0.csv, socratic/test/part-0.csv, socratic/train/part-0.jsonl"
    assert f"{units}: 6 rows of main/train/part-0.jsonl (subset main); not read: {others}" in log
    assert f"{units}: 2 rows of main/test/part-0.csv (subset main); not read: " in log
    assert f" on 6 training examples of {units} (0 skipped), 1 steps of 2 rows" in log
    assert f"evaluating every 1 steps on 2 rows of {units} (split test)" in log


def refused(main, capsys, command, *flags) -> str:
    with pytest.raises(SystemExit) as end:
        main(command, *flags)
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_two_subsets_are_refused_by_every_command_with_its_own_flag(main, units, tiny, tmp_path, capsys):
    out = ("--out", tmp_path / "out.jsonl")
    sft = sft_flags(tiny, units, tmp_path / "run")
    what = f"error: expected one data set in {units}, but it holds the subsets main, socratic: choose with"
    models = ("--teacher", tiny / "teacher", "--student", tiny / "student")
    for command, flag, *flags in (
        (sft_command, "--data.subset", *sft, "--eval-steps", 0, "--data.eval-rows", 0),
        (
            *(sft_command, "--data.eval-subset", *sft, "--data.path", units / "main", "--eval-steps", 1),
            *("--data.eval-path", units, "--data.eval-split", "test", "--data.eval-rows", 1),
        ),
        (generate_command, "--data.subset", *models, "--data.path", units, *out),
        (score_command, "--subset", *models, "--data", units, *out),
        (evaluate_command, "--data.subset", "--model", tiny / "student", "--data.path", units, *out),
    ):
        assert refused(main, capsys, command, *flags).startswith(f"{what} {flag} main")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_plan_refuses_what_the_run_would(main, units, small, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(plan_command, *small, "--data.path", units, "--output-dir", tmp_path / "run")
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "but it holds the subsets main, socratic: choose with --data.subset main" in " ".join(printed.split())
    assert printed.splitlines()[-1] == "Cannot start: data (see above)"


def test_tables_go_through_every_command(main, tiny, tmp_path, rows, capsys):
    """The same scores and answers from a table as from JSON Lines."""
    explained = [{**row, "explanation": row["reasoning_trace"]} for row in rows[:4]]
    models = ("--teacher", tiny / "teacher", "--student", tiny / "student", "--dtype", "float32")
    prompt = ("--teacher-prompt-file", tiny / "teacher_prompt.txt")
    results: dict[str, list] = {}
    for form in ("jsonl", "csv"):
        folder = tmp_path / form
        data = write(folder / "in" / "sub" / f"test.{form}", explained).parents[1]
        write(folder / "in" / "other" / f"test.{form}", rows)
        main(score_command, *models, *prompt, "--data", data, "--split", "test", "--subset", "sub",
             "--out", folder / "scores.jsonl")  # fmt: skip
        main(evaluate_command, "--model", tiny / "student", "--data.path", data, "--data.split", "test",
             "--data.subset", "sub", "--data.answer-column", "solution", "--max-completion-length", 16,
             "--temperature", 0, "--dtype", "float32", "--out", folder / "answers.jsonl")  # fmt: skip
        said = f"{data}: 4 rows of sub/test.{form} (subset sub); not read: other/test.{form}\n"
        assert capsys.readouterr().out.count(said) == 2
        results[form] = [(folder / name).read_text() for name in ("scores.jsonl", "answers.jsonl")]
    assert results["csv"] == results["jsonl"]
