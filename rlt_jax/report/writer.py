"""All metric output of a run behind one object: `writer.write(step, metrics)`.

metrics.jsonl is the record; TensorBoard and Weights & Biases are views of it, without which a run goes on. A run that
resumes from step k first drops the lines after step k, so that no step appears twice, and TensorBoard takes its later
steps back. Weights & Biases keeps the steps it already has: a resumed run repeats them exactly.
"""

import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from rlt_jax.disk import LineFile, replace_file
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.json_text import json_line
from rlt_jax.report.step_lines import iter_lines, keep_until
from rlt_jax.report.tensorboard_file import TensorBoardFile, open_tensorboard
from rlt_jax.secrets import redacted_values

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
        folder: Path,
        metrics_file: LineFile,
        tensorboard: TensorBoardFile | None,
        wandb_run: WandbRun | None,
    ) -> None:
        self._folder = folder
        self._metrics = metrics_file
        self._completions: LineFile | None = None  # opened by the first record: a supervised run has none
        self._tensorboard = tensorboard
        self._wandb = wandb_run

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step everywhere. Values that are not finite become null, with a warning in the log.

        Raises:
          ValueError: a metric is called "step" or "time", which every line has already.
          UserError: metrics.jsonl cannot be written. A view of it that fails is given up with a warning.
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
        with writing_to(self._folder):
            self._metrics.append(json_line(line).encode())
        tensorboard, run = self._tensorboard, self._wandb
        if tensorboard is not None and not _view("TensorBoard", partial(tensorboard.write, line)):
            self._close_tensorboard()
        if run is not None and not _view("Weights & Biases", partial(run.log, finite, step=int(step))):
            self._wandb = None

    def samples(self, step: int, records: Iterable[Mapping[str, object]]) -> None:
        """Append records of completions to completions.jsonl, one line each, starting with the step.

        Raises:
          UserError: it cannot be written.
        """
        lines = b"".join(json_line({"step": int(step), **record}).encode() for record in records)
        if not lines:
            return
        with writing_to(self._folder):
            if self._completions is None:
                self._completions = LineFile(self._folder / COMPLETIONS_FILE)
            self._completions.append(lines)

    def sync(self) -> None:
        """Return once all lines are on disk: a checkpoint must not be older than the lines that it continues.

        Raises:
          UserError: the disk does not take them.
        """
        with writing_to(self._folder):
            for file in (self._metrics, self._completions):
                if file is not None:
                    file.sync()

    def close(self) -> None:
        """Close everything; a second call does nothing."""
        self._metrics.close()
        if self._completions is not None:
            self._completions.close()
            self._completions = None
        self._close_tensorboard()
        if (run := self._wandb) is not None:
            self._wandb = None
            _view("Weights & Biases", run.finish)

    def open_tensorboard(self, resume_step: int) -> None:
        """Write TensorBoard's files, too, from a step on. Raises OSError."""
        lines = iter_lines(self._folder / METRICS_FILE)
        self._tensorboard = open_tensorboard(self._folder / TENSORBOARD_DIR, resume_step=resume_step, lines=lines)

    def _close_tensorboard(self) -> None:
        if (tensorboard := self._tensorboard) is not None:
            self._tensorboard = None
            _view("TensorBoard", tensorboard.close)

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
        keep_until(run_dir / METRICS_FILE, resume_step)
        keep_until(run_dir / COMPLETIONS_FILE, resume_step)
        metrics_file = LineFile(run_dir / METRICS_FILE)
    writer = Writer(run_dir, metrics_file, None, wandb_run)
    if tensorboard:
        _view("TensorBoard", lambda: writer.open_tensorboard(resume_step))
    return writer


def _view(name: str, write: Callable[[], object]) -> bool:
    """Write to a view of the metrics; if that fails, say so once: the run is worth more, and has its record.

    Returns:
      Whether it worked.
    """
    try:
        write()
    except Exception as error:  # the disk's, the network's, those of the packages
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        log.warning("%s cannot be written (%s): going on without, %s has everything", name, reason, METRICS_FILE)
        return False
    return True


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
            config=redacted_values(dict(config)),
        )
    except wandb.Error as error:
        raise UserError(
            f"expected Weights & Biases to start a run, got: {error}: "
            "run `wandb login`, or set WANDB_MODE=offline, or switch it off"
        ) from error
    with writing_to(run_dir):
        replace_file(run_dir / WANDB_ID_FILE, run_id + "\n")
    return run


def _wandb_id(path: Path, resume_step: int) -> str:
    """The run's id at Weights & Biases: the saved one when resuming, else a new one."""
    if resume_step > 0 and path.is_file():
        saved = path.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch(r"[A-Za-z0-9_-]+", saved):
            return saved
        log.warning("%s is damaged: Weights & Biases shows the steps from here on as another run", path)
    return uuid.uuid4().hex[:8]
