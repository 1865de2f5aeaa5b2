"""One run folder that is disturbed several times in a row, and then finished and compared."""

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.faults.comparing import differences, leftovers, tensorboard_steps
from tests.faults.kills import choose, kill
from tests.faults.running import Launcher
from tests.faults.scenes import Scene

KILLS_A_CHAIN = 5


def rng_of(scene: Scene, seed: Sequence[int]) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(scene.name.encode()), *seed])


def killed_again_and_again(
    launcher: Launcher, undisturbed, tried, scene: Scene, work: Path, *, seed: Sequence[int], kills: int = KILLS_A_CHAIN
) -> None:
    """Kill a run and its restarts so many times, finish it, and compare it with the undisturbed run.

    The chain starts with a fresh interpreter, the other starts are forks. Which phases are hit goes round from chain to
    chain.
    """
    rng = rng_of(scene, seed)
    first = seed[-1] * kills
    phases = [scene.phases[(first + i) % len(scene.phases)] for i in range(kills)]
    phases.sort(key=lambda phase: (phase == "export", rng.random()))  # after an export there is little left to hit
    folder = work / "run"
    hit: list[str] = []
    history: list[str] = []
    for number, phase in enumerate(phases):
        for _ in range(10):
            fresh = number == 0
            moment = choose(rng, phase, undisturbed.lengths(scene, fresh=fresh))
            run = launcher.start(scene, folder, fresh=fresh)
            place = kill(run, moment)
            history.append(f"{moment}: hit {place}")
            if place is not None:
                hit.append(place)
                break
            assert run.code == 0, "\n".join([*history, run.output()[-3000:]])
            compare(tried, scene, folder, undisturbed, hit, history)
            hit, folder = [], work / f"run-{len(history)}"
        else:
            raise AssertionError(f"{phase} is never hit: {history}")
    run = launcher.run(scene, folder)
    assert run.code == 0, "\n".join([*history, run.output()[-3000:]])
    left = run.left_over()
    assert left == [], history
    compare(tried, scene, folder, undisturbed, hit, history)


def compare(tried, scene: Scene, folder: Path, undisturbed, hit: Sequence[str], history: Sequence[str]) -> None:
    """Compare a finished run with the undisturbed one, and note the kills that it has survived."""
    whole = undisturbed.folder(scene)
    found = differences(folder, whole) + [f"left over: {name}" for name in leftovers(folder, whole)]
    if tensorboard_steps(folder, scene.shown) != tensorboard_steps(whole, scene.shown):
        found.append(f"tensorboard: steps {tensorboard_steps(folder, scene.shown)}")
    for place in hit:
        tried(f"SIGKILL {scene.name}", place, "failed" if found else "exact")
    assert found == [], "\n".join([*found, *history, str(folder)])
    shutil.rmtree(folder)
