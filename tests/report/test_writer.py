"""Metric files: what a line holds, what a resumed run keeps, TensorBoard and W&B as views of the same numbers."""

import json
import logging
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlt_jax.errors import UserError
from rlt_jax.report.step_lines import read_lines
from rlt_jax.report.writer import Writer, open_writer


def open_at(run_dir: Path, resume_step: int = 0, *, tensorboard: bool = False, wandb: bool = False) -> Writer:
    return open_writer(
        run_dir,
        tensorboard=tensorboard,
        wandb=wandb,
        wandb_project="teachers",
        config={"seed": 1},
        resume_step=resume_step,
    )


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(event.step, float(event.tensor_proto.float_val[0])) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    before = time.time()
    with open_at(tmp_path / "new" / "run") as writer:
        writer.write(3, {"reward": np.float32(0.5), "completion_length/max": 7})
        (line,) = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert list(record) == ["step", "time", "reward", "completion_length/max"]
    assert before <= record.pop("time") <= time.time()
    assert record == {"step": 3, "reward": 0.5, "completion_length/max": 7.0}


def test_values_that_are_not_finite_become_null_and_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), open_at(tmp_path, tensorboard=True) as writer:
        writer.write(2, {"a": float("nan"), "b": float("-inf"), "c": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"a": null, "b": null, "c": 1.0' in text
    assert "step 2: a is nan, written as null" in caplog.messages
    assert "step 2: b is -inf, written as null" in caplog.messages
    assert scalars(tmp_path) == {"c": [(2, 1.0)]}


def test_names_that_every_line_has_are_refused(tmp_path):
    with open_at(tmp_path) as writer, pytest.raises(ValueError, match=r"metric names \['step', 'time'\] are taken"):
        writer.write(1, {"time": 1.0, "step": 2.0, "reward": 0.0})


def test_resume_drops_what_lies_behind_the_checkpoint(tmp_path):
    with open_at(tmp_path) as writer:
        writer.write(0, {"eval/reward": -3.0})
        for step in (1, 2, 3):
            writer.write(step, {"reward": float(step)})
            writer.samples(step, [{"text": f"at {step}"}])
    kept_bytes = b"".join((tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:3])
    with open_at(tmp_path, 2) as writer:
        assert (tmp_path / "metrics.jsonl").read_bytes() == kept_bytes
        writer.write(3, {"reward": 30.0})
    assert [(line["step"], line.get("reward")) for line in read_lines(tmp_path / "metrics.jsonl")] == [
        (0, None),
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]
    assert [line["text"] for line in read_lines(tmp_path / "completions.jsonl")] == ["at 1", "at 2"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_new_run_in_an_old_folder_starts_with_empty_files(tmp_path):
    with open_at(tmp_path) as writer:
        writer.write(0, {"eval/reward": -3.0})
        writer.samples(1, [{"text": "old"}])
    with open_at(tmp_path) as writer:
        writer.write(0, {"eval/reward": -2.0})
    assert [line["eval/reward"] for line in read_lines(tmp_path / "metrics.jsonl")] == [-2.0]
    assert (tmp_path / "completions.jsonl").read_bytes() == b""


@pytest.mark.parametrize("torn", [b'{"step": 2, "rew', b'{"step": 2, "text": "\xc3', b'{"step": 1, "a": 1.0}'])
def test_a_torn_last_line_does_not_spoil_the_next_one(tmp_path, torn, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "time": 5.0, "reward": 1.5}\n' + torn)
    with caplog.at_level(logging.WARNING), open_at(tmp_path, 1) as writer:
        writer.write(2, {"reward": 2.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"step": 1, "time": 5.0, "reward": 1.5}
    assert (lines[-1]["step"], lines[-1]["reward"]) == (2, 2.5)
    whole = torn.endswith(b"}")  # only its newline is missing
    assert len(lines) == (3 if whole else 2)
    assert (f"{path}: line 2 is not a JSON object with a step, left out" in caplog.messages) is not whole


def test_samples_keep_texts_and_hold_no_nan(tmp_path):
    text = 'Zoë: 3 × 4\u2028"12"\x85\n'  # line separators that str.splitlines would cut at
    record = {"text": text, "reward": float("nan"), "ids": np.array([1, 2]), "parts": {"kl": np.float32(np.inf)}}
    with open_at(tmp_path) as writer:
        writer.samples(4, [record, {"text": "b"}])
    with open_at(tmp_path, 4):
        pass
    assert read_lines(tmp_path / "completions.jsonl") == [
        {"step": 4, "text": text, "reward": None, "ids": [1, 2], "parts": {"kl": None}},
        {"step": 4, "text": "b"},
    ]


def test_tensorboard_shows_what_the_file_holds_after_a_resume_too(tmp_path):
    with open_at(tmp_path, tensorboard=True) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"reward": step / 4, "seconds/step": 1.0})
    assert scalars(tmp_path)["reward"] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    with open_at(tmp_path, 2, tensorboard=True) as writer:
        writer.write(3, {"reward": 9.0})
    assert scalars(tmp_path) == {"reward": [(1, 0.25), (2, 0.5), (3, 9.0)], "seconds/step": [(1, 1.0), (2, 1.0)]}


def test_tensorboard_is_left_out_when_off(tmp_path):
    with open_at(tmp_path) as writer:
        writer.write(1, {"reward": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]  # no completions, no file


def test_writing_needs_neither_torch_nor_tensorflow(tmp_path):
    program = (
        "import sys; from pathlib import Path; from rlt_jax.report.writer import open_writer\n"
        f"with open_writer(Path({str(tmp_path)!r}), tensorboard=True, wandb=False, wandb_project='', config={{}},"
        " resume_step=0) as writer: writer.write(1, {'reward': 1.0})\n"
        "print([name for name in ('torch', 'tensorflow', 'jax', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_closing_twice_is_fine(tmp_path):
    writer = open_at(tmp_path, tensorboard=True)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed file"):
        writer.write(1, {"reward": 1.0})


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"expected a run folder that can be written, got .*file/run \(Not a directory\)"
    ):
        open_at(tmp_path / "file" / "run")


def test_wandb_that_is_not_installed_is_a_user_error_and_costs_no_lines(tmp_path, monkeypatch):
    with open_at(tmp_path) as writer:
        writer.write(1, {"reward": 1.0})
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python itself does for a module that may not be imported
    with pytest.raises(
        UserError, match=r"expected the package wandb.*not installed: run `pip install 'rlt_jax\[wandb\]'`"
    ):
        open_at(tmp_path, wandb=True)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 1


class RecordingWandb(types.ModuleType):
    """Stands in for the package and its server: records what it is sent."""

    class Error(Exception):
        pass

    def __init__(self, failure: str | None = None) -> None:
        super().__init__("wandb")
        self.failure = failure
        self.inits: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.finished = 0

    def init(self, **arguments) -> "RecordingWandb":
        if self.failure is not None:
            raise self.Error(self.failure)
        self.inits.append(arguments)
        return self

    def log(self, data: dict, step: int) -> None:
        self.logged.append((step, data))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_the_finite_numbers_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    package = RecordingWandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    for resume_step in (0, 1, 0):
        with open_at(tmp_path / "mine", resume_step, wandb=True) as writer:
            writer.write(resume_step + 1, {"reward": 0.5, "kl": float("nan")})
    assert package.logged == [(1, {"reward": 0.5}), (2, {"reward": 0.5}), (1, {"reward": 0.5})]
    assert package.finished == 3
    first, resumed, anew = package.inits
    assert first == resumed
    assert (first["project"], first["name"], first["config"]) == ("teachers", "mine", {"seed": 1})
    assert anew["id"] != first["id"]


def test_wandb_that_refuses_is_a_user_error_and_costs_no_lines(tmp_path, monkeypatch):
    with open_at(tmp_path) as writer:
        writer.write(1, {"reward": 1.0})
    monkeypatch.setitem(sys.modules, "wandb", RecordingWandb("no API key"))
    with pytest.raises(UserError, match="got: no API key: run `wandb login`, or set WANDB_MODE=offline"):
        open_at(tmp_path, wandb=True)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 1
