"""Out-of-memory backoff: a phase that runs out of GPU memory is retried with fewer sequences, and the run records it.

Only the sequences of a forward or backward pass and its saved activations are lowered. Groups, batches and losses stay
the same, so results change only by rounding.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import jax

from rlt_jax.device.gpu import read_gpu
from rlt_jax.disk import cannot_write, replace_file
from rlt_jax.errors import UserError

log = logging.getLogger("rlt_jax")

T = TypeVar("T")
Phase = Literal["generate", "score", "update"]

FILE = "backoff.json"  # in the run folder, once something was lowered
SIGNS = ("resource_exhausted", "out of memory")  # in JAX's errors
# What JAX says when a library finds no memory for its handle. A broken installation gives the same message: the free
# memory of the GPU tells them apart.
HANDLE_SIGNS = ("failed to initialize dnn", "failed to initialize blas")
MIN_FREE_BYTES = 1e9  # of the GPU: with less, a handle or a kernel's code may find no room


@dataclass(frozen=True)
class BatchSizes:
    """How much a pass takes in each phase, and whether the update saves activations that it could recompute."""

    generate: int  # sequences of the native sampler; 0 where a vLLM engine decides
    score: int  # tokens
    update: int  # tokens
    save_activations: bool = True


class MemoryBackoff:
    """The batch sizes that a run uses: those of its configuration, lowered when the GPU turns out too small for them.

    Args:
      configured: the batch sizes of the configuration.
      folder: the run folder, which records lowered sizes.
      exhausted: advice for the user if the run does not fit even with the smallest sizes.
    """

    def __init__(self, configured: BatchSizes, folder: Path, *, exhausted: Callable[[], str]) -> None:
        self._file = folder / FILE
        self._exhausted = exhausted
        self.sizes = configured
        if self._file.exists():
            self.sizes = _smaller_of(configured, _read(self._file))
            if self.sizes != configured:
                log.info(
                    "%s: using the batch sizes that fitted before (%s); delete the file to try the configured ones",
                    self._file,
                    _difference(configured, self.sizes),
                )

    def run(self, phase: Phase, call: Callable[[BatchSizes], T], *, least: int = 1) -> T:
        """Return `call(sizes)`, retried with lower sizes for as long as it runs out of GPU memory.

        The call must leave nothing on the GPU when it raises.

        Args:
          least: size below which a pass gets no smaller: 1, or the tokens of the longest row.
        Raises:
          UserError: nothing is left to lower.
        """
        while True:
            try:
                return call(self.sizes)
            except jax.errors.JaxRuntimeError as error:
                if not out_of_memory(error):
                    raise
                reason = _reason(error)
            # Outside the handler, because until its end the error holds the failed call's arrays.
            lowered = _lower(self.sizes, phase, least)
            if lowered is None:
                raise UserError(
                    f"the GPU's memory is too small: {phase} does not fit even with one sequence at a time "
                    f"({reason})\n{self._exhausted()}"
                )
            log.warning(
                "%s: out of memory (%s); retrying with %s, as recorded in %s",
                phase,
                reason,
                _difference(self.sizes, lowered),
                self._file,
            )
            self.sizes = lowered
            try:
                replace_file(self._file, json.dumps(asdict(lowered)) + "\n")
            except OSError as error:
                raise cannot_write(self._file, error, otherwise="remove what is in its place") from error


@contextmanager
def explain_out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    """Turn JAX's out-of-memory error into a UserError with advice, where there is nothing to lower.

    Args:
      explain: advice for the user.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        reason = _reason(error)
        raise UserError(f"the GPU's memory is too small ({reason})\n{explain()}") from error


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether JAX failed because the device ran out of memory."""
    message = str(error)
    return _contains(message, SIGNS) or (_contains(message, HANDLE_SIGNS) and _gpu_is_full())


def _contains(message: str, signs: tuple[str, ...]) -> bool:
    return any(sign in message.lower() for sign in signs)


def _gpu_is_full() -> bool:
    gpu = read_gpu()
    return gpu is not None and gpu.total_bytes - gpu.used_bytes < MIN_FREE_BYTES


def _reason(error: jax.errors.JaxRuntimeError) -> str:
    """The line of the error that mentions memory."""
    lines = str(error).splitlines()
    return next((line.strip() for line in lines if _contains(line, SIGNS)), lines[0])


def _lower(sizes: BatchSizes, phase: Phase, least: int) -> BatchSizes | None:
    """The next lower sizes for a phase, None if there are none. Saved activations go first, as they cost only time."""
    if phase == "update" and sizes.save_activations:
        return replace(sizes, save_activations=False)
    size = getattr(sizes, phase)
    return replace(sizes, **{phase: max((size + 1) // 2, least)}) if size > least else None


def _smaller_of(a: BatchSizes, b: BatchSizes) -> BatchSizes:
    return BatchSizes(
        min(a.generate, b.generate),
        min(a.score, b.score),
        min(a.update, b.update),
        save_activations=a.save_activations and b.save_activations,
    )


def _difference(old: BatchSizes, new: BatchSizes) -> str:
    """What changed, in words."""
    before, after = asdict(old), asdict(new)
    lines = [] if before.pop("save_activations") == after.pop("save_activations") else ["no saved activations"]
    units = {"generate": "sequences", "score": "tokens", "update": "tokens"}
    lines += [f"{name} {before[name]} -> {after[name]} {units[name]}" for name in units if before[name] != after[name]]
    return ", ".join(lines)


def _read(file: Path) -> BatchSizes:
    try:
        sizes = BatchSizes(**json.loads(file.read_text(encoding="utf-8")))
        if not all(type(size) is int and size >= 0 for size in (sizes.generate, sizes.score, sizes.update)):
            raise ValueError("sizes that are no whole numbers")
        if type(sizes.save_activations) is not bool:
            raise ValueError("save_activations that is neither true nor false")
        return sizes
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: expected the batch sizes that a run recorded, got {error}: delete the file") from None
