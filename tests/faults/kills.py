"""Signals at seeded moments of a run, by the phase that the run says it is in."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tests.faults.running import Run, watch

OFTEN = {"draw": 4, "score": 4, "update": 3, "sync": 3, "save": 2}  # passes of a phase to choose from


@dataclass(frozen=True)
class Moment:
    """The n-th time that a run passes a phase, and seconds after its start."""

    phase: str
    occurrence: int
    delay: float

    def __str__(self) -> str:
        return f"{self.phase} {self.occurrence} + {1000 * self.delay:.0f} ms"


def choose(rng: np.random.Generator, phase: str, lengths: Mapping[str, float]) -> Moment:
    """A moment of a phase, uniform over its passes and over the length that one has."""
    occurrence = int(rng.integers(1, OFTEN.get(phase, 1) + 1))
    return Moment(phase, occurrence, float(rng.uniform(0, lengths.get(phase, 0.05))))


def wait_for(run: Run, moment: Moment, *, after: int = 0) -> bool:
    """Wait until the moment has come; False if the run ended before it did.

    Args:
      after: changes of the phase before which none is counted.
    """
    passed, seen, writing = 0, after, _writing(run)
    for place in watch(run):
        if place.changes > seen:
            seen = place.changes
            passed += place.phase == moment.phase
        if moment.phase == "save" and _writing(run) - writing:
            passed = moment.occurrence  # in the background, while the run says that it does something else
        if passed >= moment.occurrence:
            time.sleep(moment.delay)
            return run.running
    return False


def kill(run: Run, moment: Moment) -> str | None:
    """Kill a run with SIGKILL at a moment; returns the phase that it hit, None if the run ended before."""
    before = _writing(run)
    if not wait_for(run, moment):
        run.wait()
        return None
    run.send(signal.SIGKILL)
    if run.wait() != -signal.SIGKILL:
        return None
    return "save" if _writing(run) - before else run.place().phase or "start-up"


def _writing(run: Run) -> set[tuple[str, int]]:
    """Checkpoints that have not got their name yet: (name, inode)."""
    try:
        return {
            (path.name, path.stat().st_ino)
            for path in (run.folder / "checkpoints").iterdir()
            if not path.name.isdigit() and "damaged" not in path.name
        }
    except FileNotFoundError:
        return set()
