"""A long run takes no more memory, threads or files at its end than soon after its start.

Selected by `make test-faults`, or `python -m pytest tests/faults -m faults -k memory`; RLT_FAULTS_STEPS sets how long.
"""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy.stats import theilslopes

from tests.faults.comparing import lines
from tests.faults.scenes import TRAIN, size

pytestmark = pytest.mark.faults

STEPS = size("STEPS", 600)
WARM_UP = 0.25  # share of the steps in which programs are compiled and pools fill
MOST = 2.0  # MB per 100 steps


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
    """The slope by Theil and Sen (the median over all pairs of steps), which single steps do not move."""
    gb = steady(long_run[0], "memory/host_gb")
    slope, _, low, high = theilslopes(1000 * np.array([y for _, y in gb]), np.array([x for x, _ in gb]))
    print(f"host memory {1000 * gb[0][1]:.0f} -> {1000 * gb[-1][1]:.0f} MB, {100 * slope:+.2f} MB per 100 steps")
    tried(f"{STEPS} steps, host memory {100 * slope:+.2f} MB per 100 steps", "all", "exact")
    assert 100 * slope < MOST, (slope, low, high)


def test_threads_and_open_files_stay_as_many(long_run, tried):
    """Their median in the second half of what follows the warm-up, and in the first; a save has some for a moment."""
    seen = [(step, counts) for step, *counts in long_run[1] if step > WARM_UP * STEPS]
    half = len(seen) // 2
    early, late = (np.median([counts for _, counts in part], axis=0) for part in (seen[:half], seen[half:]))
    print(f"threads, open files: {early} -> {late}")
    tried(f"{STEPS} steps, threads and open files {late.tolist()}", "all", "exact")
    assert (late <= early + 1).all()


def test_a_step_takes_no_longer_at_the_end(long_run):
    """Nothing that a step does grows with the number of steps before it."""
    seconds = steady(long_run[0], "seconds/step")
    third = len(seconds) // 3
    early, late = (np.median([y for _, y in part]) for part in (seconds[:third], seconds[-third:]))
    assert late < 1.5 * early + 0.02, (early, late)


def steady(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric after the warm-up."""
    records = lines(folder / "metrics.jsonl")
    found = [(r["step"], r[name]) for r in records if name in r and r["step"] > WARM_UP * STEPS]
    assert len(found) > 0.7 * STEPS
    return found
