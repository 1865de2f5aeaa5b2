"""Checkpoints of a run: everything that the next step depends on, so that a resumed run repeats it bit for bit.

Arrays: policy, optimizer (moments, low halves of the masters), reference if the run has one. Facts: step, seed, data
position. All randomness of a run is derived from (seed, step), so seed and step are the state of its random numbers,
and the weights' version is the step.

    checkpoints/STEP/             a whole one, see `stored_arrays.py`
    checkpoints/damaged-STEP/     one that was not whole when a run wanted to resume from it; never deleted
    checkpoints/.STEP.*-PID/      being written or deleted by a process; of a dead one it is removed
"""

import errno
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rlt_jax.checkpoints.manifest import MANIFEST_FILE, Damaged, Manifest, read_manifest, unreadable
from rlt_jax.checkpoints.stored_arrays import Arrays, read_arrays, write_arrays
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.types import GB

log = logging.getLogger("rlt_jax")

_STEP = re.compile(r"0|[1-9][0-9]*")  # how a step is written: neither 01 nor +5
_UNFINISHED = re.compile(r"\.([0-9]+)\.(writing|deleting)-[0-9]+")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Restored(NamedTuple):
    """What a run resumes from."""

    arrays: Arrays
    facts: Mapping[str, Any]
    set_aside: list[Path]  # newer checkpoints that were damaged, where they are now


class Saved(NamedTuple):
    """A checkpoint that was written."""

    step: int
    seconds: float
    size: int  # bytes of its files


class Checkpoints:
    """The checkpoints of a run. Made by `open_checkpoints`."""

    def __init__(self, folder: Path, *, keep: int, keep_best: str | None) -> None:
        self.folder = folder
        self.last_saved: Saved | None = None  # by this process
        self._keep = keep
        self._keep_best = keep_best
        self._writer: threading.Thread | None = None
        self._written = threading.Event()  # the writer reads the arrays no more
        self._waited = True
        self._failure: Exception | None = None

    def steps(self) -> list[int]:
        """The steps of which there is something under the name of a checkpoint, the newest last."""
        return checkpoint_steps(self.folder)

    @property
    def saving(self) -> bool:
        """Whether a save was begun for which nobody has waited."""
        return not self._waited

    def save(self, step: int, arrays: Arrays, facts: Mapping[str, Any], *, metric: float | None = None) -> None:
        """Start to write the checkpoint of a step in the background; saving a step twice is a no-op.

        The arrays are read where they lie: until `wait` has returned they must not be donated or freed.

        Args:
          facts: plain values, to be read back with the arrays; the step is added.
          metric: value of `keep_best` at this step; None: not known.
        Raises:
          What `wait` does, about the save before.
        """
        self.close()
        if step in self.steps():
            return
        facts = {**facts, "step": step}
        if self._keep_best is not None and metric is not None and math.isfinite(metric):
            facts["metric"] = {"name": self._keep_best, "value": float(metric)}
        # no daemon: JAX and Orbax crash where a thread of theirs outlives the interpreter
        self._writer = threading.Thread(target=self._write, args=(step, arrays, facts), name=f"checkpoint {step}")
        self._waited = False
        self._written.clear()
        self._writer.start()

    def wait(self) -> None:
        """Wait until the save in progress, if any, is whole and published; older ones may still be being deleted.

        Raises:
          NotFinite: an array was not finite.
          UserError: no space, or the folder cannot be written.
        Then nothing of that checkpoint is left behind.
        """
        if self._waited:
            return
        self._written.wait()
        self._waited = True
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait also until older checkpoints are deleted.

        Raises:
          What `wait` does.
        """
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.join()
                self._writer = None

    def restore(self, like: Arrays, *, seed: int, max_steps: int) -> Restored:
        """The newest whole checkpoint, placed like `like` (arrays or ShapeDtypeStructs).

        Damaged ones that are newer are renamed, and named in the log with what is lost.

        Raises:
          UserError: none is whole; the newest whole one has arrays of other names, shapes or types than this run's
            (another model, dtype or optimizer), was written under another seed, so that data order and sampling would
            not continue where they stopped, or is later than the run's last step; or of another version. Nothing is
            renamed then.
        """

        def check(manifest: Manifest) -> None:
            self._check_facts(step, manifest.facts, seed=seed, max_steps=max_steps)

        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            folder = self.folder / str(step)
            try:
                self._refuse_old_layout(folder)
                arrays, facts = read_arrays(folder, like, check=check)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            self._remove_unfinished()
            return Restored(arrays, facts, self._set_aside(damaged, step))
        listed = "".join(f"\n  {step}: {reason}" for step, reason in damaged.items())
        raise UserError(
            f"{self.folder}: expected a whole checkpoint, but none of {len(damaged)} is:{listed}\nput back what is "
            "missing or damaged from a copy, or choose another --output-dir to start over"
        )

    def _check_facts(self, step: int, facts: Mapping[str, Any], *, seed: int, max_steps: int) -> None:
        where = self.folder / str(step)
        if facts.get("step") != step or not isinstance(facts.get("seed"), int):
            raise Damaged(f"{MANIFEST_FILE} is that of step {facts.get('step')}, seed {facts.get('seed')}")
        if facts["seed"] != seed:
            raise UserError(
                f"{where}: expected seed {seed}, but the checkpoint was written with seed {facts['seed']}: resume with "
                f"--seed {facts['seed']}, or choose another --output-dir"
            )
        if step > max_steps:
            raise UserError(
                f"{where}: expected a checkpoint of at most step {max_steps}, the run's last: raise --max-steps, or "
                "choose another --output-dir"
            )

    def _refuse_old_layout(self, folder: Path) -> None:
        try:
            old = (folder / "facts").exists() and not (folder / MANIFEST_FILE).exists()
        except OSError as error:
            raise unreadable(folder, error) from error
        if old:
            raise UserError(
                f"{folder}: expected a checkpoint with checksums, but it was written by an older version of rlt_jax, "
                "without: resume it with that version, or choose another --output-dir"
            )

    def _set_aside(self, damaged: Mapping[int, str], whole: int) -> list[Path]:
        """Rename damaged checkpoints, and say what follows from that."""
        renamed = []
        for step, reason in damaged.items():
            path = self.folder / str(step)
            place, count = self.folder / f"damaged-{step}", 1
            while place.exists() or place.is_symlink():
                count += 1
                place = self.folder / f"damaged-{step}-{count}"
            with writing_to(self.folder):
                path.rename(place)
            log.warning("%s: a damaged checkpoint (%s): it is now %s", path, reason, place.name)
            renamed.append(place)
        if damaged:
            newest = max(damaged)
            lost = f"step {newest} is" if newest == whole + 1 else f"steps {whole + 1} to {newest} are"
            log.warning("the checkpoint of step %d is whole: %s lost and will be repeated", whole, lost)
        return renamed

    def _write(self, step: int, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Write, publish, and delete what is no longer kept; what goes wrong is kept for `wait`."""
        begin = time.perf_counter()
        try:
            self._remove_unfinished()
            manifest = write_arrays(self.folder / str(step), arrays, facts)
            self.last_saved = Saved(step, time.perf_counter() - begin, manifest.size)
        except OSError as error:
            self._failure = self._explained(step, error)
        except Exception as error:
            self._failure = error.with_traceback(None)  # its frames hold the arrays
        whole = self._failure is None  # asked here: `wait` takes it away
        del arrays
        self._written.set()
        if whole:
            self._prune()

    def _explained(self, step: int, error: OSError) -> UserError:
        last = max((other for other in self.steps() if other != step), default=None)
        whole = "there is none before it" if last is None else f"the one of step {last} is whole"
        if error.errno in _FULL:
            return UserError(
                f"no space left for {self.folder} ({error.strerror}): the checkpoint of step {step} is not written, "
                f"{whole}: make room and repeat the command"
            )
        return UserError(
            f"{self.folder} cannot be written ({error.strerror or error}): the checkpoint of step {step} is not "
            f"written, {whole}: make it writable and repeat the command"
        )

    def _prune(self) -> None:
        """Delete what is neither among the newest nor the best."""
        try:
            steps = self.steps()
            kept = {*steps[-self._keep :], *self._best(steps)}
            for step in steps:
                if step not in kept:
                    self._delete(self.folder / str(step))
        except OSError as error:
            log.warning("%s: an older checkpoint cannot be deleted (%s)", self.folder, error.strerror)

    def _best(self, steps: list[int]) -> list[int]:
        """The step whose metric is best, the newest of equal ones; [] if no metric is known."""
        values = {step: value for step in steps if (value := self._metric(step)) is not None}
        if not values:
            return []
        sign = -1 if lower_is_better(self._keep_best or "") else 1
        return [max(values, key=lambda step: (sign * values[step], step))]

    def _metric(self, step: int) -> float | None:
        """The value of `keep_best` at a checkpoint; None if it is not known."""
        if self._keep_best is None:
            return None
        try:
            metric = read_manifest(self.folder / str(step)).facts.get("metric")
        except (Damaged, UserError):
            return None
        if not isinstance(metric, dict) or metric.get("name") != self._keep_best:
            return None
        value = metric.get("value")
        return value if isinstance(value, float) else None

    def _delete(self, path: Path) -> None:
        """Delete a checkpoint; under its own name it is whole or gone, whenever the process is killed."""
        hidden = path.with_name(f".{path.name}.deleting-{os.getpid()}")
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _remove_unfinished(self) -> None:
        """Remove what dead processes left: the run folder is locked, so there is no other living one."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if _UNFINISHED.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)


def open_checkpoints(folder: Path, *, keep: int, keep_best: str | None = None) -> Checkpoints:
    """Open the checkpoints of `folder` (created if missing).

    Args:
      keep: how many of the newest stay.
      keep_best: also keeps the one with the best value of this metric.
    Raises:
      UserError: `folder` is a file, or cannot be created.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"expected a folder for checkpoints, but {folder} is a file: move it, or choose another run folder"
        )
    with writing_to(folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
    return Checkpoints(folder, keep=keep, keep_best=keep_best)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of which there is something in `folder` under the name of a checkpoint, whole or not, in order.

    Raises:
      OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _STEP.fullmatch(path.name))


def damaged_checkpoints(folder: Path) -> list[str]:
    """The names of what was set aside in `folder`."""
    return sorted(path.name for path in folder.glob("damaged-*")) if folder.is_dir() else []


def lower_is_better(metric: str) -> bool:
    """Whether the lowest value of a metric is the best."""
    return metric.endswith("loss")


def check_metric(name: str | None, metrics: Mapping[str, float]) -> None:
    """Refuse a `keep_best` that an evaluation does not report.

    Raises:
      UserError: with the names of those that it does.
    """
    if name is not None and name not in metrics:
        known = ", ".join(sorted(metric for metric in metrics if metric.startswith("eval/")))
        raise UserError(f"checkpoint.keep_best={name}: no metric of the evaluation: expected one of {known}")


def metrics_of(saved: Saved) -> dict[str, float]:
    """How long a checkpoint took, and how large it is."""
    return {"checkpoint/seconds": saved.seconds, "checkpoint/gb": saved.size / GB}
