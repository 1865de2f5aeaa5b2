"""What a run does with a damaged folder: it repeats itself exactly, or it is refused with words."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults.comparing import RECORDS, checkpoint_steps, differences, lines, without_times
from tests.faults.corrupting import DAMAGES, damage_folder, files_of
from tests.faults.kills import Moment, kill
from tests.faults.running import Launcher, Run
from tests.faults.scenes import Scene

PARTS = ("newest checkpoint", "older checkpoint", "other files", "a whole folder")
SHARES = (0, 0, 2, 0, 1, 2, 0, 3)  # part of every eighth corruption


@dataclass(frozen=True)
class Verdict:
    where: str  # part of the folder
    what: str  # file, and what was done to it
    outcome: str  # "exact", "refused" or "failed"
    why: str  # it failed


def killed_folder(launcher: Launcher, scene: Scene, folder: Path, *, at: str) -> Path:
    """A run folder with two checkpoints, killed in a phase: "export", or one of a late step."""
    for occurrence in (1,) if at == "export" else (8, 6, 7, 9):  # a busy machine may see one pass less
        for _ in range(5):
            run = launcher.start(scene, folder)
            if kill(run, Moment(at, occurrence, 0.0)) and len(checkpoint_steps(folder)) >= 2:
                return folder
            shutil.rmtree(folder, ignore_errors=True)
    raise AssertionError(f"no run of {scene.name} could be killed in {at}")


def corrupt_and_resume(
    launcher: Launcher, scene: Scene, base: Path, whole: Path, work: Path, *, rng: np.random.Generator, number: int
) -> Verdict:
    """Damage a copy of a killed run's folder, resume it, and compare its end with the undisturbed run.

    A record of the past (a line of metrics.jsonl, ...) may stay damaged: the weights, all other files and all lines
    after the checkpoint must be right.
    """
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, symlinks=True)
    part = SHARES[number % len(SHARES)]
    what = ""
    if part == 3:
        what = damage_folder(folder, rng)
    while not what:
        files = files_of(folder)[part]
        name = files[int(rng.integers(len(files)))]
        damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
        if done := damage(folder / name, rng):
            what = f"{name}: {done}"
    damaged = [name for name in RECORDS if _read(folder / name) != _read(base / name)]
    run = launcher.run(scene, folder)
    outcome, why = judge(run, folder, whole, damaged=damaged)
    return Verdict(PARTS[part], what, outcome, why)


def judge(run: Run, folder: Path, whole: Path, *, damaged: Sequence[str]) -> tuple[str, str]:
    """(outcome, what is wrong) of a run that has ended."""
    printed = run.output()
    if "Traceback" in printed or "Exception ignored" in printed:
        return "failed", f"exit code {run.code} and a traceback:\n{printed[-2500:]}"
    if run.code == 2:
        return ("refused", "") if "error: " in printed else ("failed", f"exit code 2 without a message:\n{printed}")
    if run.code != 0:
        return "failed", f"exit code {run.code}:\n{printed[-2500:]}"
    found = differences(folder, whole, damaged=damaged)
    resumed = re.search(r"resuming from step (\d+)", printed)
    for name in damaged:
        found += _lines_after_damage(folder / name, whole / name, step=int(resumed[1]) if resumed else 0)
    return ("failed", f"silently other: {'; '.join(found)}\n{printed[:1500]}") if found else ("exact", "")


def _lines_after_damage(ours: Path, theirs: Path, *, step: int) -> list[str]:
    """Of a damaged file of records: whether the lines of the last step, which came after, are there and right.

    Args:
      step: from which the run resumed. If that was the last one, no lines came after.
    """
    last = lines(theirs)[-1]["step"]
    if last <= step:
        return []
    expected, found = (_without_alarms(without_times(lines(file))) for file in (theirs, ours))
    expected = [record for record in expected if record["step"] == last]
    return [] if found[-len(expected) :] == expected else [f"{ours.name}: the lines after"]


def _without_alarms(records: Sequence[dict]) -> list[dict]:
    """Alarms say how the lines before went, which are damaged."""
    return [{key: value for key, value in record.items() if not key.startswith("alarm/")} for record in records]


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
