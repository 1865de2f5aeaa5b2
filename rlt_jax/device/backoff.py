"""When the GPU is too small: a pass takes fewer sequences, is done again, and the run remembers it.

Only the sequences of a forward or backward pass are lowered, and what it keeps for speed. Groups, batches and losses
stay what they are: the results change by rounding alone.
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
from rlt_jax.errors import UserError

log = logging.getLogger("rlt_jax")

T = TypeVar("T")
Pass = Literal["generate", "score", "update"]

FILE = "backoff.json"  # in the run folder; there once something was lowered
SIGNS = ("resource_exhausted", "out of memory")  # in JAX's errors
# All that JAX says where a library finds no memory for its handle. A broken installation says the same: ask the GPU.
HANDLE_SIGNS = ("failed to initialize dnn", "failed to initialize blas")
FULL_BYTES = 1e9  # of the GPU, free: with less, a handle or a kernel's code may find no room


@dataclass(frozen=True)
class BatchSizes:
    """Sequences of a pass, by phase, and whether the update keeps activations of layers that it could compute again."""

    generate: int  # of the native sampler; 0 where an engine decides
    score: int
    update: int
    save_activations: bool = True


class MemoryBackoff:
    """The sizes that a run computes with: those of its configuration, until the GPU turns out too small for them.

    Args:
      configured: what the run was told to use.
      folder: the run folder, where lowered sizes are found again.
      exhausted: what to tell a user whose run does not fit with the smallest sizes either.
    """

    def __init__(self, configured: BatchSizes, folder: Path, *, exhausted: Callable[[], str]) -> None:
        self._file = folder / FILE
        self._exhausted = exhausted
        self.sizes = configured
        if self._file.is_file():
            self.sizes = _smaller_of(configured, _read(self._file))
            if self.sizes != configured:
                log.info(
                    "%s: with the sizes that fitted before (%s); delete the file to try those of the configuration",
                    self._file,
                    _difference(configured, self.sizes),
                )

    def run(self, phase: Pass, call: Callable[[BatchSizes], T]) -> T:
        """`call(sizes)`, again with lower sizes as long as the GPU's memory is too small for it.

        The call must leave nothing on the GPU when it raises.

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
            # Out of the handler: until its end the error holds the failed call's arrays.
            lower = _lowered(self.sizes, phase)
            if lower is None:
                raise UserError(
                    f"the GPU's memory is too small: {phase} does not fit with one sequence at a time either "
                    f"({reason})\n{self._exhausted()}"
                )
            log.warning(
                "%s: out of memory (%s); going on with less (%s), which %s remembers",
                phase,
                reason,
                _difference(self.sizes, lower),
                self._file,
            )
            self.sizes = lower
            self._file.write_text(json.dumps(asdict(lower)) + "\n", encoding="utf-8")


@contextmanager
def explain_out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    """A UserError in place of JAX's own where the GPU's memory is too small and nothing could be lowered.

    Args:
      explain: what to tell the user.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        reason = _reason(error)
        raise UserError(f"the GPU's memory is too small ({reason})\n{explain()}") from error


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether JAX failed for want of memory on the device."""
    message = str(error)
    return _says(message, SIGNS) or (_says(message, HANDLE_SIGNS) and _gpu_is_full())


def _says(message: str, signs: tuple[str, ...]) -> bool:
    return any(sign in message.lower() for sign in signs)


def _gpu_is_full() -> bool:
    gpu = read_gpu()
    return gpu is not None and gpu.total_bytes - gpu.used_bytes < FULL_BYTES


def _reason(error: jax.errors.JaxRuntimeError) -> str:
    """The line of the error that says so."""
    lines = str(error).splitlines()
    return next((line.strip() for line in lines if _says(line, SIGNS)), lines[0])


def _lowered(sizes: BatchSizes, phase: Pass) -> BatchSizes | None:
    """The next smaller sizes for a phase; None when there are none. What costs nothing but time goes first."""
    if phase == "update" and sizes.save_activations:
        return replace(sizes, save_activations=False)
    size = getattr(sizes, phase)
    return replace(sizes, **{phase: (size + 1) // 2}) if size > 1 else None


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
    return ", ".join(
        "no saved activations" if name == "save_activations" else f"{name} {before[name]} -> {after[name]} sequences"
        for name in before
        if before[name] != after[name]
    )


def _read(file: Path) -> BatchSizes:
    try:
        return BatchSizes(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: expected the sizes that a run remembered, got {error}: delete the file") from None
