"""What the tests of faults share: how to start runs, the undisturbed ones, and the table of what was tried."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.comparing import checkpoint_steps, weights
from tests.faults.running import Launcher, durations
from tests.faults.scenes import Scene

OUTCOMES = ("exact", "refused", "stopped", "skipped", "failed")


@pytest.fixture(scope="session")
def launcher(tmp_path_factory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("launched"))
    yield launcher
    launcher.close()


class Undisturbed:
    """The undisturbed run of each scene: its folder, and how long its phases take; made when first asked for."""

    def __init__(self, launcher: Launcher, work: Path) -> None:
        self._launcher = launcher
        self._work = work
        self._made: dict[str, dict[str, float]] = {}

    def folder(self, scene: Scene) -> Path:
        folder = self._work / scene.name.replace(" ", "-")
        if scene.name not in self._made:
            run = self._launcher.run(scene, folder)
            assert run.code == 0, run.output()[-3000:]
            assert weights(folder) and checkpoint_steps(folder)
            self._made[scene.name] = durations(run)
        return folder

    def lengths(self, scene: Scene, *, fresh: bool = False) -> dict[str, float]:
        """Phase -> seconds.

        Args:
          fresh: of a new interpreter, whose start-up takes longer.
        """
        self.folder(scene)
        more = {}
        if fresh:
            name = f"{scene.name} fresh"
            if name not in self._made:
                folder = self._work / "fresh"
                run = self._launcher.run(scene, folder, fresh=True)
                self._made[name] = durations(run)
                shutil.rmtree(folder)
            more = {"start-up": self._made[name]["start-up"]}
        return self._made[scene.name] | more


@pytest.fixture(scope="session")
def undisturbed(launcher, tmp_path_factory) -> Undisturbed:
    return Undisturbed(launcher, tmp_path_factory.mktemp("undisturbed"))


Tried = Callable[..., None]


@pytest.fixture
def tried(record_property) -> Tried:
    """tried("SIGKILL", "save", "exact"): a line of the table that the tests end with.

    Args of the function: what was done; where (a phase, a file); what came of it, one of `OUTCOMES`.
    """

    def note(kind: str, where: str, outcome: str, count: int = 1) -> None:
        assert outcome in OUTCOMES
        record_property("fault", json.dumps([kind, where, outcome, count]))

    return note


def pytest_terminal_summary(terminalreporter) -> None:
    """Print what was tried and what came of it; a test process reports to this one through its properties."""
    counted: Counter[tuple[str, str, str]] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for name, value in report.user_properties:
                if name == "fault":
                    kind, where, outcome, count = json.loads(value)
                    counted[kind, where, outcome] += count
    if not counted:
        return
    terminalreporter.section("faults")
    kinds = list(dict.fromkeys(kind for kind, _, _ in counted))
    terminalreporter.write_line(f"{'':44} {'tried':>6} " + " ".join(f"{name:>8}" for name in OUTCOMES))
    for kind in kinds:
        places = list(dict.fromkeys(where for of, where, _ in counted if of == kind))
        for where in [*places, None]:
            row = [
                sum(n for (of, at, what), n in counted.items() if (of, what) == (kind, name) and where in (at, None))
                for name in OUTCOMES
            ]
            label = f"{kind}: all" if where is None else f"{kind}, {where}"
            terminalreporter.write_line(f"{label:44} {sum(row):6} " + " ".join(f"{n:8}" for n in row))
