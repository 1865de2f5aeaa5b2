"""Skipped steps: how many there were, and what is kept of them for `rlt_jax.replay`.

    RUN/skipped/STEP/fault.json             culprit, stage, batch sizes, device; `state` names the folder below
    RUN/skipped/STEP/batch.safetensors      what the step had: rows, prompts, completions
    RUN/skipped/STEP/values.safetensors     what it computed before it was refused
    RUN/skipped/STEP/config.yaml            the run's settings at that time
    RUN/skipped/state-N/                    the weights after step N, of all steps that were skipped right after it

Of each only the newest are kept. If they cannot be written, the log says so and the run goes on.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlt_jax.checkpoints.manifest import Damaged
from rlt_jax.checkpoints.stored_arrays import Arrays, read_arrays, write_arrays
from rlt_jax.device.placement import nbytes
from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite

log = logging.getLogger("rlt_jax")

SKIPPED_DIR = "skipped"
CONFIG_COPY = "config.yaml"
_FAULT, _BATCH, _VALUES = "fault.json", "batch.safetensors", "values.safetensors"


@dataclass(frozen=True)
class Skips:
    """The skipped steps of a run so far."""

    total: int = 0
    in_a_row: int = 0  # up to `last`
    last: int = 0  # step

    def add(self, step: int) -> "Skips":
        """With one more."""
        return Skips(self.total + 1, self.in_a_row + 1 if self.last == step - 1 else 1, step)

    def facts(self, step: int) -> dict[str, int]:
        """For the checkpoint of a step."""
        return {"skipped_steps": self.total, "skipped_in_a_row": self.in_a_row if self.last == step else 0}


def skips_of(facts: Mapping[str, Any]) -> Skips:
    """Those that a checkpoint's facts count; none in one of an older version."""
    return Skips(facts.get("skipped_steps", 0), facts.get("skipped_in_a_row", 0), facts.get("step", 0))


@dataclass(frozen=True)
class Evidence:
    """What a step had, beside the weights."""

    batch: Mapping[str, np.ndarray]  # name -> array
    facts: Mapping[str, Any]  # command, batch sizes


@dataclass(frozen=True)
class SkippedStep:
    """A step that was kept."""

    step: int
    fault: Mapping[str, Any]  # as in fault.json
    batch: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    state: Path  # folder


def keep_step(
    run: Path, step: int, fault: NotFinite, evidence: Evidence, arrays: Arrays, *, state_of: int, new: bool, keep: int
) -> Path | None:
    """Keep a skipped step, and remove what is older than the `keep` newest; returns its folder, None if it is not kept.

    Args:
      run: the run folder.
      arrays: the weights that the step computed with; written in their own type, finite or not.
      state_of: the last step that changed them.
      new: whether they are not in the folder yet.
      keep: number of steps.
    """
    if keep == 0:
        return None
    folder = run / SKIPPED_DIR
    state, place = folder / f"state-{state_of}", folder / str(step)
    unfinished = folder / f".{step}.writing"
    try:
        if new or not state.is_dir():
            shutil.rmtree(state, ignore_errors=True)
            _write_state(state, arrays)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, arrays_of in ((_BATCH, evidence.batch), (_VALUES, fault.values)):
            save_file({key: np.asarray(x, order="C") for key, x in arrays_of.items()}, unfinished / name)
        device = jax.devices()[0].device_kind
        told = {"step": step, "stage": fault.stage, "culprit": fault.culprit, **evidence.facts, "state": state.name}
        dtype = jax.tree.leaves(arrays)[0].dtype.name
        told |= {"dtype": dtype, "device": device, "jax": jax.__version__, "time": time.time()}
        shutil.copyfile(run / CONFIG_COPY, unfinished / CONFIG_COPY)
        (unfinished / _FAULT).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
        _remove_old(folder, keep)
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("step %d: its batch and weights cannot be kept for rlt_jax.replay (%s)", step, error)
        shutil.rmtree(unfinished, ignore_errors=True)
        return None
    return place


def read_step(run: Path, step: int | None) -> SkippedStep:
    """Read a kept step; None: the newest.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    folder = run / SKIPPED_DIR
    kept = _kept_steps(folder)
    if not kept:
        raise UserError(f"{folder}: expected a skipped step to replay, but there is none: give the folder of a run")
    if step is not None and step not in kept:
        raise UserError(
            f"{folder} holds the skipped steps {', '.join(map(str, kept))}, but not {step}: give one of them"
        )
    place = folder / str(kept[-1] if step is None else step)
    try:
        fault = json.loads((place / _FAULT).read_text(encoding="utf-8"))
        batch, values = load_file(place / _BATCH), load_file(place / _VALUES)
        return SkippedStep(fault["step"], fault, batch, values, folder / fault["state"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{place}: expected a whole skipped step, but it cannot be read ({error}): copy it again"
        ) from None


def joined(name: str, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of different lengths as two arrays of a batch: all their elements, and the lengths."""
    return {name: np.concatenate(rows), f"{name}/lengths": np.array([len(row) for row in rows], np.int32)}


def split(batch: Mapping[str, np.ndarray], name: str) -> list[np.ndarray]:
    """The rows that `joined` joined."""
    return np.split(batch[name], np.cumsum(batch[f"{name}/lengths"])[:-1])


def read_state(folder: Path, like: Arrays) -> Arrays:
    """The kept weights, placed like `like` (ShapeDtypeStructs with shardings).

    Raises:
      UserError: they are missing or damaged, or of another model.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: expected the weights of the skipped step, but there is no such folder: copy it, too"
        )
    try:
        return read_arrays(folder, like)[0]
    except Damaged as error:
        raise UserError(f"{folder}: the weights of the skipped step are damaged ({error}): copy them again") from error


def _write_state(folder: Path, arrays: Arrays) -> None:
    size = nbytes(arrays)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < 1.1 * size:
        raise OSError(f"{size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {folder.parent}")
    write_arrays(folder, arrays, {}, finite=False)


def _kept_steps(folder: Path) -> list[int]:
    return sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdigit())


def _remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest steps, and the weights that none of them needs."""
    steps = _kept_steps(folder)
    for step in steps[:-keep]:
        shutil.rmtree(folder / str(step))
    used = {json.loads((folder / str(step) / _FAULT).read_text(encoding="utf-8"))["state"] for step in steps[-keep:]}
    for state in folder.glob("state-*"):
        if state.name not in used:
            shutil.rmtree(state)
