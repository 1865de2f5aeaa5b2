"""Seconds and tokens per second of a step's phases."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Shares = Mapping[str, Mapping[str, float]]  # name of a utilisation -> phase -> seconds


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

    def metrics(self, tokens: Mapping[str, int], *, at_peak: Shares | None = None) -> dict[str, float]:
        """Times and speeds of the step so far.

        Args:
          tokens: phase -> tokens that it processed.
          at_peak: seconds that phases would take if the device did nothing but compute, as fast as it can.
        Returns:
          `seconds/PHASE` for every phase, `seconds/step` since the last reset (including time outside all phases), and
          `tokens_per_second/PHASE` for the phases named in `tokens`, and `NAME/PHASE` for those of the utilisations:
          seconds at the peak over seconds.
        Raises:
          ValueError: a phase that is named did not run.
        """
        rates = {"tokens_per_second": tokens, **(at_peak or {})}
        unknown = sorted({phase for phases in rates.values() for phase in phases} - self._seconds.keys())
        if unknown:
            raise ValueError(f"amounts given for phases {unknown}, but only {sorted(self._seconds)} ran in this step")
        metrics = {f"seconds/{name}": seconds for name, seconds in self._seconds.items()}
        metrics["seconds/step"] = self._now() - self._start
        for rate, phases in rates.items():
            for phase, amount in phases.items():
                metrics[f"{rate}/{phase}"] = amount / max(self._seconds[phase], 1e-9)  # a coarse clock may show 0
        return metrics
