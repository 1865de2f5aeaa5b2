"""What a trained model's folder says, at the command line: written by sft and train, and held against the flags."""

import json
import shutil
from pathlib import Path

import pytest

from rlt_jax import evaluate as evaluate_command
from rlt_jax import generate as generate_command
from rlt_jax import score as score_command
from rlt_jax import sft as sft_command
from rlt_jax import train as train_command
from rlt_jax.data.model_record import read_record
from rlt_jax.report.partial_file import PartialFile

pytestmark = pytest.mark.slow


def trained(tiny: Path, folder: Path, role: str, **changes: object) -> Path:
    """A copy of a tiny model with other values in its record."""
    shutil.copytree(tiny / role, folder)
    file = folder / "rlt_jax.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.fixture(scope="module")
def rows(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in (tiny / "eval.jsonl").read_text().splitlines()[:8]))
    return path


@pytest.fixture(scope="module")
def explained(rows) -> Path:
    path = rows.with_name("explained.jsonl")
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "explanation": row["reasoning_trace"]}) + "\n" for row in records))
    return path


GENERATE = ("--max-prompt-length", 128, "--dtype", "float32", "--max-completion-length", 48)


def test_a_folders_prompt_is_worth_the_flag(main, tiny, explained, tmp_path):
    models = ("--teacher", tiny / "teacher", "--student", tiny / "student", "--data", explained, "--dtype", "float32")
    explicit = ("--teacher-prompt-file", tiny / "teacher_prompt.txt", "--tags", "bespoke")
    main(score_command, *models, "--out", tmp_path / "default.jsonl")
    main(score_command, *models, *explicit, "--out", tmp_path / "explicit.jsonl")
    plain = trained(tiny, tmp_path / "plain", "teacher")
    (plain / "rlt_jax.json").unlink()
    main(score_command, *models, "--teacher", plain, *explicit, "--out", tmp_path / "plain.jsonl")
    main(score_command, *models, "--teacher", plain, "--out", tmp_path / "other.jsonl")
    default, *same, other = (
        (tmp_path / f"{name}.jsonl").read_bytes() for name in ("default", "explicit", "plain", "other")
    )
    assert same == [default, default]
    assert other != default  # the package's default prompt is not this teacher's


def test_a_teacher_writes_what_it_was_trained_to_write(main, tiny, rows, tmp_path):
    flags = ("--teacher", tiny / "teacher", "--data.path", rows, *GENERATE)
    main(generate_command, *flags, "--out", tmp_path / "default.jsonl")
    main(
        generate_command,
        *flags,
        "--data.teacher-prompt-file",
        tiny / "teacher_prompt.txt",
        "--out",
        tmp_path / "b.jsonl",
    )
    assert (tmp_path / "default.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes() != b""


def test_another_prompt_is_refused_before_anything_is_sampled(refused, tiny, rows, tmp_path):
    (tmp_path / "prompt.txt").write_text("Explain.")
    flags = ("--teacher", tiny / "teacher", "--data.path", rows, *GENERATE, "--out", tmp_path / "out.jsonl")
    message = refused(generate_command, *flags, "--data.teacher-prompt-file", tmp_path / "prompt.txt")
    assert "the teacher's prompt is 'Explain.'" in message and "leave out --data.teacher-prompt-file" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompt.txt"]


def test_training_with_other_tags_or_swapped_models(refused, small, tiny, tmp_path):
    message = refused(train_command, *small, "--data.tags", "r1", "--output-dir", tmp_path / "run")
    assert "--data.tags r1, but --teacher" in message and "--data.on-contradiction warn" in message
    swapped = ("--teacher", tiny / "student", "--student", tiny / "teacher", "--data.teacher-prompt-file", "None")
    message = refused(train_command, *small, *swapped, "--output-dir", tmp_path / "run")
    assert f"are they swapped? give --teacher {tiny}/teacher --student {tiny}/student" in message


def test_scoring_with_models_of_other_tags(refused, tiny, explained, tmp_path):
    student = trained(tiny, tmp_path / "student", "student", tags="r1")
    flags = ("--teacher", tiny / "teacher", "--student", student, "--data", explained, "--out", tmp_path / "out.jsonl")
    assert "give models that were trained with the same tags" in refused(score_command, *flags)


def test_evaluating_with_a_damaged_record(refused, tiny, rows, tmp_path):
    student = trained(tiny, tmp_path / "student", "student", tags="xml")
    flags = ("--model", student, "--data.path", rows, "--data.answer-column", "solution", "--out", tmp_path / "o.jsonl")
    message = refused(evaluate_command, *flags)
    assert "rlt_jax.json: expected what rlt_jax writes" in message and "tags='xml' is not 'bespoke' or 'r1'" in message


def test_a_half_is_not_resumed_in_another_format(refused, main, tiny, rows, tmp_path, monkeypatch):
    """With prompt chat the tags are in no prompt, but they decide what an answer is."""
    student, out = trained(tiny, tmp_path / "student", "student"), tmp_path / "o.jsonl"
    flags = (
        "--model",
        student,
        "--data.path",
        rows,
        "--data.answer-column",
        "solution",
        "--prompt",
        "chat",
        "--out",
        out,
    )
    flags = (*flags, "--max-completion-length", 8, "--dtype", "float32", "--answer-kind", "text")

    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(PartialFile, "finish", killed)  # after all chunks
    with pytest.raises(SystemExit):
        main(evaluate_command, *flags)
    monkeypatch.undo()
    assert out.with_name("o.jsonl.partial").exists()
    trained_again = json.loads((student / "rlt_jax.json").read_text()) | {"tags": "r1"}
    (student / "rlt_jax.json").write_text(json.dumps(trained_again))
    assert "was started with other settings: tags=bespoke (now r1)" in refused(evaluate_command, *flags)


def test_a_fine_tuned_folder_says_what_it_is(main, refused, tiny, rows, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("Explain, then say {explanation_end}.\n")
    run = tmp_path / "run"
    flags = ("--model", tiny / "teacher", "--data.path", rows, "--output-dir", run, "--max-steps", 1)
    flags = (*flags, "--train-batch-size", 2, "--dtype", "float32", "--max-length", 256)
    main(sft_command, *flags, "--data.tags", "r1", "--data.teacher-prompt-file", tmp_path / "prompt.txt")
    record = read_record(run / "final")
    assert record is not None
    assert (record.role, record.tags, record.prompt) == ("teacher", "r1", "Explain, then say {explanation_end}.")
    assert [training.command for training in record.training] == ["sft", "sft"]
    assert "    Explain, then say </explanation>.<|im_end|>\n" in (run / "final" / "README.md").read_text()
    log = (run / "logs" / "training.log").read_text()
    assert "WARNING rlt_jax: --data.tags r1, but --model" in log and "fine-tuning teaches it anew" in log

    capsys.readouterr()
    main(generate_command, "--teacher", run / "final", "--data.path", rows, "--out", tmp_path / "o", "--show-chat")
    shown = capsys.readouterr().out
    assert "Explain, then say </explanation>." in shown and "<solution>" in shown
    assert "--data.tags bespoke, but" in refused(
        generate_command,
        "--teacher",
        run / "final",
        "--data.path",
        rows,
        "--out",
        tmp_path / "o",
        "--data.tags",
        "bespoke",
    )

    again = tmp_path / "again"
    student = ("--target", "student", "--model", run / "final", "--output-dir", again, "--data.path", rows)
    main(sft_command, *student, "--max-steps", 1, "--train-batch-size", 2, "--dtype", "float32", "--max-length", 256)
    record = read_record(again / "final")
    assert record is not None and (record.role, record.tags, record.prompt_of_rows) == ("student", "r1", True)
    assert record.prompt == "Think about the steps, then give the result." and record.student_gap == "as-row"


def test_training_warns_where_no_explanation_closes_its_tags_and_exports_a_teacher(main, small, tiny, tmp_path):
    run, plain = tmp_path / "run", tmp_path / "plain"
    shutil.copytree(tiny / "teacher", plain, ignore=shutil.ignore_patterns("rlt_jax.json"))
    main(train_command, *small, "--teacher", plain, "--max-completion-length", 2, "--max-steps", 2, "--output-dir", run)
    warnings = [line for line in (run / "logs" / "training.log").read_text().splitlines() if "close their tags" in line]
    assert len(warnings) == 1  # of two steps
    assert "step 1: only 0 of 8 explanations close their tags" in warnings[0]
    assert "raise --max-completion-length" in warnings[0]
    record = read_record(run / "final")
    assert record is not None and (record.role, record.training[-1].command) == ("teacher", "train")


@pytest.fixture
def mostly_cut(tiny, rows):
    """Flags with which about a quarter of the explanations can be used."""
    lengths = ("--max-prompt-length", 128, "--dtype", "float32", "--max-completion-length", 24, "--redraws", 0)
    return ("--teacher", tiny / "teacher", "--data.path", rows, "--samples", 4, *lengths, "--rows-per-chunk", 4)


def test_too_few_usable_explanations(main, refused, mostly_cut, tmp_path, caplog, capsys):
    out = tmp_path / "out.jsonl"
    message = refused(generate_command, *mostly_cut, "--min-usable", 0.9, "--out", out)
    assert "of the first 16 explanations can be used (" in message and "fewer than --min-usable 0.9): give" in message
    assert list(tmp_path.iterdir()) == []
    main(generate_command, *mostly_cut, "--min-usable", 0, "--out", out)
    written = len(out.read_text().splitlines())
    assert 0 < written < 16
    assert f"{32 - written} of 32 explanations were unusable after the last try" in caplog.text
    assert f"8 rows, {written} explanations" in capsys.readouterr().out


def test_nothing_usable_is_never_written(refused, mostly_cut, tmp_path):
    flags = (*mostly_cut, "--max-completion-length", 2, "--min-usable", 0, "--out", tmp_path / "out.jsonl")
    assert "none of 32 explanations can be used (32 cut off), so there is nothing to write" in refused(
        generate_command, *flags
    )
    assert not (tmp_path / "out.jsonl").exists()
