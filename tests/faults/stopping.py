"""SIGTERM and SIGINT: the run saves, says how to resume, and ends with the code of the signal."""

import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults.comparing import checkpoint_steps, differences, leftovers
from tests.faults.kills import choose, wait_for
from tests.faults.running import Launcher
from tests.faults.scenes import Scene

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 60  # seconds: the default of --stop-grace
AT_ONCE = 5  # seconds that a second signal may take, on a busy machine


@dataclass(frozen=True)
class Stop:
    """A stop that was sent, and what was wrong with what followed."""

    place: str  # phase in which the first signal came
    seconds: float  # until the process had ended
    wrong: list[str]


def stop_and_resume(
    launcher: Launcher,
    undisturbed,
    scene: Scene,
    work: Path,
    *,
    number: int,
    phase: str,
    double: bool,
    rng: np.random.Generator,
    fresh: bool = True,
) -> Stop:
    """Stop a run once or twice in a phase, let it resume to its end, and compare that with the undisturbed run.

    Args:
      number: SIGTERM or SIGINT.
      double: a second signal follows 0.05 to 1 s later.
      fresh: the stopped run is a new interpreter.
    """
    history = []
    for attempt in range(10):
        folder = work / f"run-{attempt}"
        moment = choose(rng, phase, undisturbed.lengths(scene, fresh=fresh))
        run = launcher.start(scene, folder, fresh=fresh)
        history.append(f"{moment}, {'fresh' if fresh else 'forked'}")
        reached = wait_for(run, moment)
        place = run.place()
        if reached and run.send(number) and run.running:
            break
        run.wait()
        shutil.rmtree(folder)
    else:
        raise AssertionError(f"{phase} is never hit: {history}")
    sent = time.monotonic()
    if double:
        time.sleep(float(rng.uniform(0.05, 1.0)))
        second = time.monotonic()
        run.send(number)
    code = run.wait()
    seconds = time.monotonic() - sent
    printed = run.output()
    wrong = []
    finished = code == 0 and place.phase == "summary"  # all was said, and the process was on its way out
    if (
        not finished and code != 128 + number and not (code == -number and place.phase in ("", "start-up"))
    ):  # to a shell, the same
        wrong.append(f"exit code {code}, expected {128 + number}")
    if "Traceback" in printed or "Exception ignored" in printed:
        wrong.append("a traceback")
    if double and time.monotonic() - second > AT_ONCE:
        wrong.append(f"took {time.monotonic() - second:.1f} s after the second signal")
    if seconds > GRACE:
        wrong.append(f"took {seconds:.0f} s")
    if left := run.left_over():
        wrong.append(f"still runs: {left}")
    if not double:
        wrong += _lost(folder, place.step)
        named = (f"--output-dir {folder}", f"--config {folder}", "the run is finished, its files are complete")
        if place.step and not finished and not any(words in printed for words in named):
            wrong.append("no command that resumes is named")
    resumed = launcher.run(scene, folder)
    if resumed.code != 0:
        wrong.append(f"the restart: exit code {resumed.code}: {resumed.output()[-1500:]}")
    else:
        whole = undisturbed.folder(scene)
        wrong += differences(folder, whole) + [f"left over: {name}" for name in leftovers(folder, whole)]
    if wrong:
        wrong += [*history, f"hit {place}", printed[-1500:]]
    else:
        shutil.rmtree(folder)
    return Stop(place.phase or "start-up", seconds, wrong)


def _lost(folder: Path, step: int) -> list[str]:
    """Steps before the one in progress must be in a checkpoint."""
    newest = max(checkpoint_steps(folder), default=0)
    return [f"stopped in step {step}, but the newest checkpoint is of step {newest}"] if newest < step - 1 else []
