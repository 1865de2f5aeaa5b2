"""Completions of a run on disk, before they are used: RUN/rollouts/NAME.safetensors, one file per draw.

A draw that is used for several gradient steps has a second one, RUN/rollouts/NAME-batch.safetensors, with rewards,
log-probs and advantages by the weights that the first of these steps has changed: a run that is resumed between them
reads it, and its checkpoint knows its checksum.

A batch of completions is the most expensive part of a step. A run that is killed while it scores or updates reads them
when it is started again, instead of drawing them again. A completion depends on weights, prompt, seed and sampling
parameters, and so does the key by which a draw is found again: after a change of any, it is another draw.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rlt_jax.checkpoints.checksums import array_checksum, checksum
from rlt_jax.device.digest import digest
from rlt_jax.disk import replace_file, to_disk
from rlt_jax.models import Params
from rlt_jax.report.folder import writing_to
from rlt_jax.report.owner import remove_empty
from rlt_jax.report.partial_file import fingerprint
from rlt_jax.types import Completion, Request

FOLDER = "rollouts"  # in the run folder
SUFFIX = ".safetensors"

Groups = list[tuple[Completion, ...]]  # one group of completions per request

log = logging.getLogger("rlt_jax")


class Rollouts(NamedTuple):
    """The draws of a run."""

    folder: Path
    settings: str  # a fingerprint of all that shapes completions besides weights, prompts and seeds

    def drawn_once(self, name: str, requests: Sequence[Request], weights: Params, draw: Callable[[], Groups]) -> Groups:
        """The completions of some requests: those on disk under this name and key, else `draw()`'s, then on disk.

        Args:
          name: `STEP`, or `STEP-eval` for the evaluation after a step.
          weights: that the completions are drawn with.
        Raises:
          UserError: they cannot be written.
        """
        path = self.folder / f"{name}{SUFFIX}"
        asked = ((request.prompt_ids.tolist(), request.seeds) for request in requests)
        key = fingerprint([self.settings, digest(weights), *asked])
        if (completions := read_rollout(path, key=key)) is not None:
            log.info("%s: using the %d completions that were drawn before the interruption", path, len(completions))
        else:
            completions = [completion for group in draw() for completion in group]
            with writing_to(self.folder.parent):
                self.folder.mkdir(exist_ok=True)
                write_rollout(path, completions, key=key)
        left = iter(completions)
        return [tuple(next(left) for _ in request.seeds) for request in requests]

    def keep_batch(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Write what several gradient steps read of a draw; returns its checksum.

        Raises:
          UserError: it cannot be written.
        """
        key = _checksum(arrays)
        with writing_to(self.folder.parent):
            self.folder.mkdir(exist_ok=True)
            replace_file(self._batch(name), save(dict(arrays), metadata={"checksum": key}))
            to_disk(self.folder)
        return key

    def kept_batch(self, name: str, *, key: str) -> dict[str, np.ndarray] | None:
        """The arrays that `keep_batch` wrote; None (logged) if they are not there or have another checksum."""
        path = self._batch(name)
        try:
            arrays = _read(path)[0]
            if _checksum(arrays) != key:
                raise ValueError("its checksum is another one")
        except (OSError, SafetensorError, ValueError) as error:
            log.warning("%s cannot be used (%s): drawing its completions again", path, error)
            return None
        log.info("%s: using the completions that were drawn before the interruption", path)
        return arrays

    def _batch(self, name: str) -> Path:
        return self.folder / f"{name}-batch{SUFFIX}"

    def drop(self, *, until: int, steps_per_draw: int = 1) -> None:
        """Remove the draws that led to the weights of a step, and what a killed process left half written.

        Args:
          until: the step.
          steps_per_draw: gradient steps that use a draw, of which it has the name of the first.
        """
        if not self.folder.is_dir():
            return
        for file in self.folder.iterdir():
            number, _, kind = file.name.removesuffix(SUFFIX).partition("-")
            lasts = 1 if kind == "eval" else steps_per_draw
            past = number.isdigit() and int(number) + lasts - 1 < until + (kind != "eval")
            if past or file.name.startswith("."):
                with suppress(OSError):
                    file.unlink()
        remove_empty([self.folder])


def arrays_of(completions: Sequence[Completion]) -> dict[str, np.ndarray]:
    """Completions as arrays, which `completions_of` turns back."""
    return {
        "token_ids": np.concatenate([np.empty(0, np.int32), *(one.token_ids for one in completions)]).astype(np.int32),
        "logps": np.concatenate([np.empty(0, np.float32), *(one.logps for one in completions)]).astype(np.float32),
        "lengths": np.array([len(one.token_ids) for one in completions], np.int32),
        "finished": np.array([one.finished for one in completions], np.uint8),
        "weight_versions": np.array([one.weight_version for one in completions], np.int64),
    }


def completions_of(arrays: Mapping[str, np.ndarray]) -> list[Completion]:
    """The completions of `arrays_of`."""
    ends = np.cumsum(arrays["lengths"])[:-1]
    columns = (np.split(arrays["token_ids"], ends), np.split(arrays["logps"], ends))
    return [
        Completion(ids, logps, bool(finished), int(version))
        for ids, logps, finished, version in zip(*columns, arrays["finished"], arrays["weight_versions"])
    ]


def write_rollout(path: Path, completions: Sequence[Completion], *, key: str) -> None:
    """Write completions to a safetensors file, which has its name when it is whole and on disk.

    Tensors: token_ids i32[sum N], logps f32[sum N], lengths i32[B], finished u8[B], weight_versions i64[B].

    Raises:
      OSError: it cannot be written.
    """
    arrays = arrays_of(completions)
    replace_file(path, save(arrays, metadata={"key": key, "checksum": _checksum(arrays)}))
    to_disk(path.parent)


def read_rollout(path: Path, *, key: str | None = None) -> list[Completion] | None:
    """The completions of a file; None if there is none, if its key is another one, or if it is damaged (logged)."""
    if not path.exists():
        return None
    try:
        arrays, metadata = _read(path)
        if metadata.get("checksum") != _checksum(arrays):
            raise ValueError("its checksum is another one")
        completions = completions_of(arrays)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        log.warning("%s is damaged (%s): drawing its completions again", path, error)
        return None
    return completions if key in (None, metadata.get("key")) else None


def _read(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """Tensors and metadata of a file."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  not a dict


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    parts = [(name, x.dtype.name, x.shape, array_checksum(x)) for name, x in sorted(arrays.items())]
    return checksum(json.dumps(parts).encode())
