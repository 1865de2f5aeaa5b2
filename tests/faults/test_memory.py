"""A long run takes no more memory, threads or files at its end than soon after its start.

Selected by `make test-faults`, or `python -m pytest tests/faults -m faults -k memory`; RLT_FAULTS_STEPS sets how long
after the warm-up.
"""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.faults.comparing import lines
from tests.faults.scenes import TRAIN, size

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("memory")]  # one process: the run is made once

WARM_UP = 250  # steps in which programs are compiled and the allocator's pools fill
STEPS = WARM_UP + size("STEPS", 1250)
LAG = 100  # steps; over 550 of them an allocator makes -1 to +4 MB out of nothing
MOST = 2.0  # MB that a run may grow in them
MOST_IN_ALL = 40.0  # MB, from the first to the last of them: a pool may still be added


@pytest.fixture(scope="module")
def long_run(launcher, tmp_path_factory):
    """(folder, [(seconds, threads, open files)]) of a run that saves and evaluates all the time."""
    folder = tmp_path_factory.mktemp("long") / "run"
    run = launcher.start(TRAIN, folder, "--max-steps", STEPS, "--save-steps", 10, "--eval-steps", 50)
    seen = []
    while run.running:
        try:
            process = psutil.Process(run.pid)
            seen.append((run.place().step, process.num_threads(), process.num_fds()))
        except psutil.Error:
            break
        time.sleep(0.2)
    assert run.wait(1800) == 0, run.output()[-3000:]
    return folder, seen


def test_memory_of_the_host_is_flat(long_run, tried):
    """The median change over 100 steps: what grows steadily, and not the one allocation that stays."""
    mb = 1000 * np.array([gb for _, gb in steady(long_run[0], "memory/host_gb")])
    slope = np.median(mb[LAG:] - mb[:-LAG])
    whole = np.median(mb[-50:]) - np.median(mb[:50])
    print(f"host memory {mb[0]:.0f} -> {mb[-1]:.0f} MB, {slope:+.2f} MB per {LAG} steps")
    flat = slope < MOST and whole < MOST_IN_ALL
    tried(f"host memory, {slope:+.2f} MB per {LAG} steps", f"{STEPS} steps", "exact" if flat else "failed")
    assert flat, (slope, whole)


def test_threads_and_open_files_stay_as_many(long_run, tried):
    """Their median in the second half of what follows the warm-up, and in the first; a save has some for a moment."""
    seen = [(step, counts) for step, *counts in long_run[1] if step > WARM_UP]
    half = len(seen) // 2
    early, late = (np.median([counts for _, counts in part], axis=0) for part in (seen[:half], seen[half:]))
    print(f"threads, open files: {early} -> {late}")
    flat = bool((late <= early + 1).all())
    tried(f"threads and open files {late.tolist()}", f"{STEPS} steps", "exact" if flat else "failed")
    assert flat, (early, late)


def test_a_step_takes_no_longer_at_the_end(long_run):
    """Nothing that a step does grows with the number of steps before it."""
    seconds = steady(long_run[0], "seconds/step")
    third = len(seconds) // 3
    early, late = (np.median([y for _, y in part]) for part in (seconds[:third], seconds[-third:]))
    assert late < 1.5 * early + 0.02, (early, late)


def steady(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric after the warm-up."""
    records = lines(folder / "metrics.jsonl")
    found = [(r["step"], r[name]) for r in records if name in r and r["step"] > WARM_UP]
    assert len(found) == STEPS - WARM_UP
    return found
