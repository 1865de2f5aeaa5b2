"""Compare measured memory with budget and plan. Readings are those of `device.monitor.PeakMonitor`, GB of 1e9 bytes."""

from collections.abc import Iterator, Mapping
from typing import Any

from rlt_jax.device.monitor import PEAK
from rlt_jax.types import GB

WARNING_SHARE = 0.9  # of the budget


class BudgetWatch:
    """Warn when a phase comes near the budget: once per phase, and again when it needs another GB."""

    def __init__(self, budget_gb: float | None) -> None:
        """`budget_gb` None: never warns."""
        self._budget = budget_gb
        self._warned: dict[str, float] = {}

    def __call__(self, metrics: Mapping[str, float]) -> Iterator[str]:
        """Warnings about the peaks among a step's metrics."""
        if self._budget is None:
            return
        for phase, peak in _peaks(metrics).items():
            if peak > WARNING_SHARE * self._budget and peak > self._warned.get(phase, 0.0) + 1.0:
                self._warned[phase] = peak
                yield (
                    f"{phase} took {peak:.1f} GB of GPU memory, {peak / self._budget:.0%} of the budget of "
                    f"{self._budget:g} GB"
                )


def plan_and_measured(planned: Mapping[Any, float], metrics: Mapping[str, float]) -> Iterator[str]:
    """Yield a line that compares the plan with the peaks among a step's metrics; nothing if nothing was measured.

    Args:
      planned: phase -> bytes.
    """
    peaks = _peaks(metrics)
    parts = [
        f"{phase} {peaks[phase]:.1f} ({size / GB:.1f} planned, {peaks[phase] / (size / GB) - 1:+.1%})"
        for phase, size in planned.items()
        if phase in peaks
    ]
    if parts:
        yield f"GPU, GB, measured in the first step: {', '.join(parts)}"


def _peaks(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(PEAK): value for name, value in metrics.items() if name.startswith(PEAK)}
