"""Seconds and tokens per second of a step's phases."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class PhaseClock:
    """Adds up the seconds of each phase of a step.

    JAX returns before the device is done, so a phase must end by fetching or waiting for a value (`jax.device_get`,
    `block_until_ready`); otherwise its time counts for the next phase.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """`now`: a clock, in seconds from any fixed point."""
        self._now = now
        self._phase: str | None = None
        self._left_out = 0.0  # seconds of the running phase
        self.reset()

    def reset(self) -> None:
        """Start a new step: all phases are at 0 s."""
        self._seconds: dict[str, float] = {}
        self._start = self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body of the `with` as this phase; repeated phases of a step add up.

        Raises:
          RuntimeError: inside another phase, as the time would count twice.
        """
        if self._phase is not None:
            raise RuntimeError(f"phase {name!r} begins inside phase {self._phase!r}: phases of a step don't nest")
        self._phase, self._left_out = name, 0.0
        start = self._now()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - start - self._left_out
            self._phase = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the body of the `with` out of the running phase, if any."""
        start = self._now()
        try:
            yield
        finally:
            self._left_out += self._now() - start

    def metrics(self, tokens: Mapping[str, int]) -> dict[str, float]:
        """Times and speeds of the step so far.

        Args:
          tokens: phase -> tokens that it processed.
        Returns:
          `seconds/PHASE` for every phase, `seconds/step` since the last reset (including time outside all phases), and
          `tokens_per_second/PHASE` for the phases named in `tokens`.
        Raises:
          ValueError: a phase with tokens did not run.
        """
        unknown = sorted(tokens.keys() - self._seconds.keys())
        if unknown:
            raise ValueError(f"tokens given for phases {unknown}, but only {sorted(self._seconds)} ran in this step")
        metrics = {f"seconds/{name}": seconds for name, seconds in self._seconds.items()}
        metrics["seconds/step"] = self._now() - self._start
        for name, count in tokens.items():
            metrics[f"tokens_per_second/{name}"] = count / max(self._seconds[name], 1e-9)  # a coarse clock may show 0
        return metrics
