"""SIGTERM, SIGINT and SIGHUP in every phase of a command: what is saved, said and left, and how it resumes.

Signals that must come at a certain place are sent by the process to itself, where a function of that place is called.
"""

import importlib
import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rlt_jax import generate as generate_command
from rlt_jax import score as score_command
from rlt_jax import sft as sft_command
from rlt_jax import train as train_command
from rlt_jax.configs import parse_train_args
from tests.commands.comparing import without_times
from tests.commands.stopping import leftovers, stop_when

pytestmark = pytest.mark.slow

STEPS = 12


def records(path: Path) -> list[dict]:
    return without_times(json.loads(line) for line in path.read_text().splitlines())


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Bit for bit, but for times."""
    names = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == names
    for name in names & {"eval.jsonl", "completions.jsonl", "check.json"}:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert records(ours / "metrics.jsonl") == records(theirs / "metrics.jsonl")
    weights = Path("final") / "model.safetensors"
    assert (ours / weights).read_bytes() == (theirs / weights).read_bytes()
    assert leftovers(ours) == []


def saved(folder: Path) -> int:
    return max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")), default=0)


@pytest.fixture
def stopped(monkeypatch, main, capsys) -> Callable[..., str]:
    """stopped(module, flags, at="a.b:C.d", number): run until that function is called, then send it a signal.

    Returns:
      The message.
    """

    def run(module, *flags: object, at: str, number: int = signal.SIGTERM, calls: int = 1) -> str:
        where, _, path = at.partition(":")
        owner = importlib.import_module(where)
        *classes, name = path.split(".")
        for part in classes:
            owner = getattr(owner, part)
        original, left = getattr(owner, name), [calls]

        def interrupted(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
        try:
            with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
                patch.setattr(owner, name, interrupted)
                main(module, *flags)
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGHUP, hangup)
        assert handlers == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        shown = capsys.readouterr()
        assert end.value.code == 128 + number, shown
        assert "Traceback" not in shown.out + shown.err and "Exception ignored" not in shown.err
        (message,) = [line for line in shown.err.splitlines() if line.startswith("stopped by ")]
        assert "stopped by " not in shown.out
        assert message.startswith(f"stopped by {signal.Signals(number).name}: ")
        return message

    return run


@pytest.fixture(scope="module")
def flags(small) -> tuple:
    return (
        *(*small, "--max-steps", STEPS, "--save-steps", 0, "--eval-steps", 2, "--log.sample-probability", 1.0),
        *("--ref.ref-model-sync-steps", 2, "--log.no-tensorboard"),
    )


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train_command.train(parse_train_args([*map(str, flags), "--output-dir", str(folder)])[0])


def test_a_run_that_is_stopped_in_each_phase_is_the_same_run(whole, flags, stopped, main, tmp_path):
    """Every start takes one step more; nothing but the step in progress is lost, and an evaluation is made up for."""
    folder = tmp_path / "run"
    line = (*flags, "--output-dir", folder)
    by_phase = (  # (where, the last whole step afterwards, whether a step is given up)
        ("rlt_jax.runs.open_rlt:load_checked_model", 0, False),
        ("rlt_jax.train:evaluation_requests", 0, False),
        ("rlt_jax.sampling.native:NativeSampler._sample", 1, True, 3),  # after the evaluation of step 0
        ("rlt_jax.train:evaluation_requests", 2, False),  # of step 2, which is owed then
        ("rlt_jax.train:evaluation_requests", 2, False),
        ("rlt_jax.runs.session:write_records", 2, False),  # the owed one is written; step 3 is not begun
        ("rlt_jax.rewards.logprobs:_sequence_logprobs", 2, True),
        ("rlt_jax.learner.step:zero_gradients", 3, True, 2),
        ("rlt_jax.runs.rlt:Rlt.move_reference", 4, False),
        ("rlt_jax.sampling.native:NativeSampler.set_weights", 5, False, 2),
        ("rlt_jax.report.writer:Writer.write", 6, False),
        ("rlt_jax.report.writer:Writer.samples", 7, False),
        ("rlt_jax.runs.session:write_records", 8, False),
        ("rlt_jax.runs.session:restore_or_start", 8, False),
        ("rlt_jax.runs.session:open_writer", 8, False),
        ("rlt_jax.models.saving:_write_safetensors", STEPS, False),
        ("rlt_jax.models.saving:_write_weights", STEPS, False),
    )
    for i, (place, done, given_up, *calls) in enumerate(by_phase):
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[i % 3]
        message = stopped(train_command, *line, at=place, number=number, calls=calls[0] if calls else 1)
        assert saved(folder) == done, (place, message)
        assert leftovers(folder.parent) == []
        if not folder.exists():
            assert "before the run began" in message
            continue
        again = shlex.join(["python", "-m", "rlt_jax.train", *map(str, line)])
        kept = f"step {done} is saved; resume with {again}" if done else f"no step is lost; start again with {again}"
        assert message.endswith(kept) and (f"step {done + 1} is given up" in message) == given_up, message
        assert message in (folder / "logs" / "training.log").read_text()
    main(train_command, *line)
    assert_same_run(folder, whole)


def test_without_a_last_checkpoint_the_export_is_finished(flags, stopped, tmp_path):
    """Else the steps since the last one would be lost; a script must not take the run for finished all the same."""
    line = (*flags, "--max-steps", 2, "--checkpoint.no-at-end", "--output-dir", tmp_path / "run")
    message = stopped(train_command, *line, at="rlt_jax.models.saving:_write_safetensors")
    assert message == "stopped by SIGTERM: the run is finished, its files are complete"
    assert (tmp_path / "run" / "final" / "model.safetensors").exists() and leftovers(tmp_path) == []
    assert saved(tmp_path / "run") == 0


def test_never_resume_is_left_out_of_the_command_that_resumes(flags, stopped, tmp_path):
    line = (*flags, "--resume", "never", "--output-dir", tmp_path / "run", "--log.no-progress")
    message = stopped(train_command, *line, at="rlt_jax.learner.step:zero_gradients", calls=2)
    assert " --resume never" not in message
    assert message.endswith(f"--output-dir {tmp_path / 'run'} --log.no-progress --resume auto")


@pytest.fixture(scope="module")
def sft_flags(tiny) -> tuple:
    return (
        *("--target", "teacher", "--model", tiny / "teacher", "--data.path", tiny / "train.jsonl"),
        *("--data.eval-path", tiny / "eval.jsonl", "--data.eval-rows", 8, "--train-batch-size", 4, "--max-steps", 5),
        *("--per-device-train-batch-size", 2, "--eval-steps", 2, "--check-texts", 4, "--log.no-tensorboard"),
    )


def test_a_supervised_run_that_is_stopped_in_each_phase_is_the_same_run(sft_flags, stopped, main, tmp_path):
    folder = tmp_path / "run"
    main(sft_command, *sft_flags, "--output-dir", tmp_path / "whole")
    line = (*sft_flags, "--output-dir", folder)
    for place, done, calls in (
        ("rlt_jax.runs.sft:load_checked_model", 0, 1),
        ("rlt_jax.sft:evaluate", 0, 1),
        ("rlt_jax.learner.step:zero_gradients", 1, 2),
        ("rlt_jax.runs.sft:Sft.held_out_loss", 2, 1),  # of step 2, which is owed then
        ("rlt_jax.report.writer:Writer.write", 2, 1),
        ("rlt_jax.checkpoints.saver:Saver.save", 5, 1),
        ("rlt_jax.sft:check_model", 5, 1),
        ("rlt_jax.sampling.native:NativeSampler._sample", 5, 1),
        ("rlt_jax.models.saving:_write_weights", 5, 1),
    ):
        message = stopped(sft_command, *line, at=place, number=signal.SIGINT, calls=calls)
        assert saved(folder) == done and leftovers(folder.parent) == [], (place, message)
    main(sft_command, *line)
    assert_same_run(folder, tmp_path / "whole")


# Commands in processes of their own.


def test_two_signals_leave_a_folder_that_resumes(whole, flags, main, tmp_path):
    folder = tmp_path / "run"
    line = (*flags, "--output-dir", folder)
    first = stop_when("step  1/", "train", *line, number=signal.SIGINT)
    message = first.check(signal.SIGINT)
    assert first.seconds < 20 and f"step {saved(folder)} is saved; resume with" in message and saved(folder) >= 1
    twice = stop_when("resuming from", "train", *line, again=0.4)
    message = twice.check(signal.SIGTERM)
    assert f"step {saved(folder)} is saved; resume with python -m rlt_jax.train" in message
    starting = stop_when(lambda: True, "train", *line, delay=0.3, number=signal.SIGINT)
    assert starting.check(signal.SIGINT) == "stopped by SIGINT before it began"
    main(train_command, *line)
    assert_same_run(folder, whole)


@pytest.fixture(scope="module")
def rows(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join((tiny / "eval.jsonl").read_text().splitlines(keepends=True)[:6]))
    return path


def test_an_interrupted_file_resumes(tiny, rows, main, stopped, tmp_path):
    flags = ("--teacher", tiny / "teacher", "--data.path", rows, "--rows-per-chunk", 1)
    flags += ("--max-completion-length", 8, "--min-usable", 0, "--on-unfinished", "keep")
    out = tmp_path / "out.jsonl"
    for place, calls, said in (
        ("rlt_jax.generate:load_checked_model", 1, "the same command starts again"),
        (
            "rlt_jax.report.partial_file:LineFile.append",
            4,
            "3 chunks are saved, the same command resumes",
        ),  # after the settings
        ("rlt_jax.generate:sample_explanations", 2, "4 chunks are saved, the same command resumes"),
        ("rlt_jax.report.partial_file:whole_file", 1, f"{out} is complete"),
    ):
        message = stopped(generate_command, *flags, "--out", out, at=place, calls=calls)
        assert message == f"stopped by SIGTERM: {said}"
    main(generate_command, *flags, "--out", tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


def test_scores_are_written_whole_or_not_at_all(tiny, stopped, tmp_path):
    data = tmp_path / "rows.jsonl"
    lines = [json.loads(line) for line in (tiny / "train.jsonl").read_text().splitlines()[:8]]
    data.write_text("".join(json.dumps({**line, "explanation": line["reasoning_trace"]}) + "\n" for line in lines))
    flags = ("--teacher", tiny / "teacher", "--student", tiny / "student", "--data", data, "--score-batch-size", 2)
    flags += ("--out", tmp_path / "out.jsonl", "--selected-out", tmp_path / "kept.jsonl", "--top-fraction", 0.5)
    message = stopped(score_command, *flags, at="rlt_jax.rewards.logprobs:_sequence_logprobs", calls=3)
    assert message == "stopped by SIGTERM: no file is written, the same command starts again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
    message = stopped(score_command, *flags, at="pathlib:Path.replace", number=signal.SIGINT)
    assert message == f"stopped by SIGINT: {tmp_path}/out.jsonl, {tmp_path}/kept.jsonl complete"
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 4
