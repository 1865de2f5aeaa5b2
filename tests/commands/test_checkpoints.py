"""Checkpoints of whole runs: what damage costs, which stay, a full disk, an update that fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlt_jax.configs import SftConfig, parse_command
from rlt_jax.errors import UserError
from rlt_jax.learner.optimizer import open_optimizer
from rlt_jax.runs import sft as sft_run
from rlt_jax.sft import sft

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(tiny) -> tuple:
    """A run of seconds with a checkpoint of 7 MB after each step."""
    return (
        *("--target", "teacher", "--model", tiny / "teacher", "--data.path", tiny / "train.jsonl"),
        *("--data.eval-path", tiny / "eval.jsonl", "--data.eval-rows", 8, "--check-texts", 0, "--dtype", "float32"),
        *("--data.teacher-prompt-file", tiny / "teacher_prompt.txt", "--train-batch-size", 4, "--max-steps", 4),
        *("--per-device-train-batch-size", 4, "--save-steps", 1, "--eval-steps", 1, "--learning-rate", 1e-3),
        *("--log.no-tensorboard", "--checkpoint.no-export"),
    )


def run(*flags) -> Path:
    return sft(parse_command(SftConfig, list(map(str, flags)), command="sft", description="")[0])


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def log_of(folder: Path) -> str:
    return (folder / "logs" / "training.log").read_text()


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    """A run that keeps its two newest checkpoints and the best."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run(*flags, "--checkpoint.keep-best", "eval/loss", "--output-dir", folder)


def array_sums(folder: Path, step: int) -> list:
    manifest = json.loads((folder / "checkpoints" / str(step) / "manifest.json").read_text())
    return [(array["name"], array["checksum"]) for array in manifest["arrays"]]


def test_the_newest_and_the_best_stay(whole):
    losses = {line["step"]: line["eval/loss"] for line in lines(whole) if "eval/loss" in line and line["step"]}
    best = min(losses, key=losses.__getitem__)
    assert steps(whole) == sorted({"3", "4", str(best)})
    record = json.loads((whole / "checkpoints" / "4" / "manifest.json").read_text())
    facts = record["facts"]
    assert facts["seed"] == 42 and facts["step"] == 4 and facts["skipped_steps"] == 0
    assert facts["metric"] == {"name": "eval/loss", "value": losses[4]}
    assert facts["inputs"] == json.loads((whole / "inputs.json").read_text())


def test_what_a_save_took_is_written_with_the_next_step(whole):
    saves = [{name: x for name, x in line.items() if "save" in name or "checkpoint" in name} for line in lines(whole)]
    saves = [save for line, save in zip(lines(whole), saves) if "loss" in line]
    assert saves[0] == {}
    for save in saves[1:]:
        assert save.keys() == {"seconds/save", "checkpoint/seconds", "checkpoint/gb"}
        assert save["seconds/save"] > 0 and save["checkpoint/seconds"] > 0
        assert save["checkpoint/gb"] == pytest.approx(0.0069, rel=0.02)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(whole, flags, tmp_path):
    """The run ends with the same bits, and the damaged one is still there."""
    folder = shutil.copytree(whole, tmp_path / "run")
    file = max((folder / "checkpoints" / "4" / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    run(*flags, "--output-dir", folder)
    assert array_sums(folder, 4) == array_sums(whole, 4)
    assert steps(folder) == ["3", "4", "damaged-4"]
    log = log_of(folder)
    name = file.relative_to(folder / "checkpoints" / "4").as_posix()
    assert f"checkpoints/4: a damaged checkpoint ({name} does not match its checksum): it is now damaged-4\n" in log
    assert "the checkpoint of step 3 is whole: step 4 is lost and will be repeated\n" in log
    held_out = [[line["eval/loss"] for line in lines(of) if "eval/loss" in line] for of in (folder, whole)]
    assert held_out[0] == held_out[1]


def test_a_metric_that_no_evaluation_reports_is_refused_before_the_first_step(flags, tmp_path):
    with pytest.raises(UserError) as refusal:
        run(*flags, "--checkpoint.keep-best", "eval/reward", "--output-dir", tmp_path / "run")
    assert str(refusal.value) == (
        "checkpoint.keep_best=eval/reward: no metric of the evaluation: expected one of eval/loss"
    )
    assert [line["step"] for line in lines(tmp_path / "run")] == [0]


def test_a_run_that_crashes_after_a_save_leaves_a_whole_checkpoint(flags, tmp_path, monkeypatch):
    """The save is still running when the next step fails."""
    real = sft_run.open_optimizer

    def failing(*args, **options):
        optimizer, calls = real(*args, **options), []

        def apply(state, gradients):
            calls.append(1)
            if len(calls) == 3:
                raise ZeroDivisionError
            return optimizer.apply(state, gradients)

        return optimizer._replace(apply=apply)

    assert real is open_optimizer
    monkeypatch.setattr(sft_run, "open_optimizer", failing)
    with pytest.raises(ZeroDivisionError):
        run(*flags, "--output-dir", tmp_path / "run")
    assert steps(tmp_path / "run") == ["1", "2"]
    monkeypatch.undo()
    run(*flags, "--output-dir", tmp_path / "run")
    assert "resuming from step 2\n" in log_of(tmp_path / "run")


def test_a_full_disk_ends_the_run_with_one_message_and_room_lets_it_continue(whole, flags, tmp_path):
    """A file system of 18 MB holds two checkpoints of 7 MB, and none is deleted before the third is whole."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs a small file system of its own (unshare, mount)")
    place = tmp_path / "disk"
    place.mkdir()
    words = " ".join(map(str, [sys.executable, "-m", "rlt_jax.sft", *flags, "--output-dir", place / "run"]))
    script = f"mount -t tmpfs -o size=18m tmpfs {place} && ({words}; echo code $?; cp -r {place}/run {tmp_path}/copy)"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("code 2\n"), done.stdout + done.stderr
    assert done.stderr == (
        f"error: no space left for {place}/run/checkpoints (No space left on device): the checkpoint of step 3 is not "
        "written, the one of step 2 is whole: make room and repeat the command\n"
    )
    assert "Traceback" not in done.stdout
    assert steps(tmp_path / "copy") == ["1", "2"]
    run(*flags, "--output-dir", tmp_path / "copy")
    assert array_sums(tmp_path / "copy", 4) == array_sums(whole, 4)
