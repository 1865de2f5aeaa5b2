"""All metric output of a run behind one object: `writer.write(step, metrics)`.

metrics.jsonl is the record; TensorBoard and Weights & Biases are views of it. A run that resumes from step k first
drops the lines after step k, so that no step appears twice, and rewrites TensorBoard's files from what is left. Weights
& Biases keeps the steps it already has: a resumed run repeats them exactly.
"""

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from tensorboard.summary import Writer as TensorBoardWriter

from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.json_text import json_line, parsed_json

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"
TENSORBOARD_DIR = "tensorboard"
WANDB_ID_FILE = "wandb_id.txt"

log = logging.getLogger("rlt_jax.report")


class WandbRun(Protocol):
    """The methods used of wandb's run object."""

    def log(self, data: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class Writer:
    """The open metric files of one run. Created by `open_writer`; use it in a `with` statement, or call `close`."""

    def __init__(
        self,
        metrics_file: TextIO,
        completions: Path,
        tensorboard: TensorBoardWriter | None,
        wandb_run: WandbRun | None,
    ) -> None:
        self._metrics = metrics_file
        self._completions_path = completions
        self._completions: TextIO | None = None  # opened by the first record: a supervised run has none
        self._tensorboard = tensorboard
        self._wandb = wandb_run

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step everywhere. Values that are not finite become null, with a warning in the log.

        Raises:
          ValueError: a metric is called "step" or "time", which every line has already.
        """
        taken = {"step", "time"} & set(metrics)
        if taken:
            raise ValueError(f"metric names {sorted(taken)} are taken: every line has a step and a time already")
        finite: dict[str, float] = {}
        for name, value in metrics.items():
            if math.isfinite(value):
                finite[name] = float(value)
            else:
                log.warning("step %d: %s is %s, written as null", step, name, float(value))
        line = {"step": int(step), "time": time.time(), **{name: finite.get(name) for name in metrics}}
        _append(self._metrics, line)
        if self._tensorboard is not None:
            _write_scalars(self._tensorboard, line)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(finite, step=int(step))

    def samples(self, step: int, records: Iterable[Mapping[str, object]]) -> None:
        """Append records of completions to completions.jsonl, one line each, starting with the step."""
        for record in records:
            if self._completions is None:
                self._completions = self._completions_path.open("a", encoding="utf-8")
            _append(self._completions, {"step": int(step), **record})

    def close(self) -> None:
        """Close everything; a second call does nothing."""
        self._metrics.close()
        if self._completions is not None:
            self._completions.close()
            self._completions = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_writer(
    run_dir: Path,
    *,
    tensorboard: bool,
    wandb: bool,
    wandb_project: str,
    config: Mapping[str, object],
    resume_step: int,
) -> Writer:
    """Open a run's metric files, after dropping what comes after the step from which it resumes.

    Args:
      run_dir: the run's folder, created if missing.
      tensorboard: write TensorBoard scalars to run_dir/tensorboard.
      wandb: send the metrics to Weights & Biases.
      wandb_project: name of the Weights & Biases project.
      config: the resolved configuration, for Weights & Biases.
      resume_step: the step from which the run resumes; later lines are dropped. 0: a new run, all lines are dropped.
    Raises:
      UserError: the folder cannot be written, or `wandb` is on but not installed or not logged in.
    """
    run_dir = Path(run_dir)
    with writing_to(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    # first, so that old files survive a missing package or login
    wandb_run = _open_wandb(run_dir, wandb_project, config, resume_step) if wandb else None
    with writing_to(run_dir):
        kept = keep_until(run_dir / METRICS_FILE, resume_step)
        keep_until(run_dir / COMPLETIONS_FILE, resume_step)
        metrics_file = (run_dir / METRICS_FILE).open("a", encoding="utf-8")
        tensorboard_writer = _open_tensorboard(run_dir / TENSORBOARD_DIR, kept) if tensorboard else None
    return Writer(metrics_file, run_dir / COMPLETIONS_FILE, tensorboard_writer, wandb_run)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects that a Writer wrote to a file, in order; [] if there is no file.

    A line that is not such an object (an incomplete last line of a killed run) is left out, with a warning.
    """
    if not path.exists():
        return []
    records = []
    text = path.read_text(encoding="utf-8", errors="replace")  # a line may break off inside a character
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: texts may hold other line separators
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif line:
            log.warning("%s: line %d is not a JSON object with a step, left out", path, number)
    return records


def keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop a file's lines after `step` (at 0, all lines) and incomplete ones, atomically; returns the rest."""
    records = read_lines(path)
    # a new run writes its own step 0, so at 0 nothing of an earlier run stays
    kept = [record for record in records if step > 0 and record["step"] <= step]
    text = "".join(map(json_line, kept))
    if path.exists() and path.read_bytes() != text.encode():
        log.info("%s: resuming from step %d, %d of %d lines kept", path, step, len(kept), len(records))
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return kept


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = parsed_json(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _append(file: TextIO, record: Mapping[str, object]) -> None:
    file.write(json_line(record))
    file.flush()  # a killed run keeps every line


def _open_tensorboard(folder: Path, records: Sequence[Mapping[str, Any]]) -> TensorBoardWriter:
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = TensorBoardWriter(str(folder))
    for record in records:
        _write_scalars(writer, record)
    return writer


def _write_scalars(writer: TensorBoardWriter, line: Mapping[str, Any]) -> None:
    for name, value in line.items():
        if name not in ("step", "time") and value is not None:
            writer.add_scalar(name, value, line["step"], wall_time=line["time"])


def _open_wandb(run_dir: Path, project: str, config: Mapping[str, object], resume_step: int) -> WandbRun:
    """Start or resume the run at Weights & Biases. Imports the package here, as it is large and optional."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        raise UserError(
            "expected the package wandb, because Weights & Biases is switched on, but it is not installed: "
            "run `pip install 'rlt_jax[wandb]'` or `pip install wandb`, or switch it off"
        ) from error
    run_id = _wandb_id(run_dir / WANDB_ID_FILE, resume_step)
    try:
        run = wandb.init(
            project=project,
            name=run_dir.resolve().name,
            dir=str(run_dir),
            id=run_id,
            resume="allow",
            config=dict(config),
        )
    except wandb.Error as error:
        raise UserError(
            f"expected Weights & Biases to start a run, got: {error}: "
            "run `wandb login`, or set WANDB_MODE=offline, or switch it off"
        ) from error
    with writing_to(run_dir):
        (run_dir / WANDB_ID_FILE).write_text(run_id + "\n", encoding="utf-8")
    return run


def _wandb_id(path: Path, resume_step: int) -> str:
    """The run's id at Weights & Biases: the saved one when resuming, else a new one."""
    if resume_step > 0 and path.exists():
        return path.read_text(encoding="utf-8").strip()
    return uuid.uuid4().hex[:8]
