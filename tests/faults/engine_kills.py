"""Kills of the vLLM process that a run has started, while the run itself lives on."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.faults.comparing import lines
from tests.faults.kills import Moment, wait_for
from tests.faults.running import Launcher, Run
from tests.faults.scenes import Scene

PHASES = ("draw", "sync", "draw", "score", "sync", "update", "save")  # in which the engine has work, twice as often


def engine_of(run: Run) -> int | None:
    """Process id of the run's engine, the leader of its group; None while there is none."""
    found = [pid for pid, line in run.processes() if "rlt_engine.py" in line]
    return min(found, default=None)


def kill_engines(
    launcher: Launcher, undisturbed, scene: Scene, folder: Path, *, kills: int, first: int, rng: np.random.Generator
) -> tuple[Run, list[str]]:
    """Run a scene to its end and kill its engine so many times, not twice before it has worked again.

    Returns:
      The run, and the phases that were hit.
    """
    lengths = undisturbed.lengths(scene)
    run = launcher.start(scene, folder)
    hit: list[str] = []
    wait_for(run, Moment("draw", 1, 0.0))
    for i in range(kills):
        phase = PHASES[(first + i) % len(PHASES)]
        moment = Moment(phase, 1, float(rng.uniform(0, lengths.get(phase, 0.05))))
        if not wait_for(run, moment, after=run.place().changes):
            break
        place, engine = run.place(), engine_of(run)
        if engine is None:
            continue
        os.kill(engine, signal.SIGKILL)
        hit.append(place.phase)
        _wait_until_restarted(run, engine)
    run.wait(1200)
    return run, hit


def restarts(folder: Path) -> Sequence[float]:
    """`engine_restarts` of every step."""
    return [record["engine_restarts"] for record in lines(folder / "metrics.jsonl") if "engine_restarts" in record]


def _wait_until_restarted(run: Run, killed: int, patience: float = 120.0) -> None:
    """Wait for a new engine and for a phase that begins after it has started."""
    until = time.monotonic() + patience
    while run.running and time.monotonic() < until:
        if engine_of(run) not in (None, killed):
            break
        time.sleep(0.1)
    wait_for(run, Moment("log", 1, 0.0), after=run.place().changes)
