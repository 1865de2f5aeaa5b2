"""Saving while a run goes on: what it costs, and what a failure means."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from rlt_jax.checkpoints.store import Checkpoints, metrics_of
from rlt_jax.checkpoints.stored_arrays import Arrays
from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite
from rlt_jax.report.timing import PhaseClock

log = logging.getLogger("rlt_jax")


class Saver:
    """Writes checkpoints in the background, one at a time."""

    step: int  # of the newest whole checkpoint; 0: none
    begun: int  # of the newest that is whole or being written

    def __init__(self, checkpoints: Checkpoints, clock: PhaseClock, *, step: int) -> None:
        self.step = self.begun = step
        self._checkpoints = checkpoints
        self._clock = clock
        self._held_up = 0.0  # seconds by saves since the last line of metrics

    def save(self, step: int, arrays: Arrays, facts: Mapping[str, Any], *, metric: float | None) -> None:
        """Start to write a checkpoint, which reads the arrays until `wait` returns; see `Checkpoints.save`."""
        self.wait()  # a save in progress
        self._checkpoints.save(step, arrays, facts, metric=metric)
        self.begun = step

    def wait(self) -> None:
        """Wait until the checkpoint being written, if any, is whole. The running phase is not charged for it.

        Raises:
          UserError: it could not be written, or holds numbers that are not finite.
        """
        if not self._checkpoints.saving:
            return
        start = time.perf_counter()
        try:
            with self._clock.pause():
                self._checkpoints.wait()
        except NotFinite as error:
            raise UserError(
                f"expected finite numbers, but {error.culprit} of the state to be saved holds an infinity or a NaN: no "
                f"checkpoint of it is written, {self._checkpoints.folder} holds those of earlier steps: lower "
                "--learning-rate, or look for what went wrong in metrics.jsonl"
            ) from error
        self._held_up += time.perf_counter() - start
        self.step = self.begun

    def metrics(self) -> dict[str, float]:
        """What saving cost since the last line of metrics; {} without a save."""
        saved, self._checkpoints.last_saved = self._checkpoints.last_saved, None
        held_up, self._held_up = self._held_up, 0.0
        return {} if saved is None else {"seconds/save": held_up, **metrics_of(saved)}

    def left(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for a save in progress when the run is left: it reads arrays that what follows may free."""
        try:
            self.wait()
            self._checkpoints.close()
        except UserError as failure:
            if error is None:
                raise
            log.error("%s", failure)
