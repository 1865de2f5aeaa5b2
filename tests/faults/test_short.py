"""The short version of what `make test-faults` does hundreds of times: a few kills, corruptions and signals."""

import signal

import pytest

from tests.faults.chains import killed_again_and_again, rng_of
from tests.faults.damaged import corrupt_and_resume, killed_folder
from tests.faults.scenes import TRAIN
from tests.faults.stopping import stop_and_resume

pytestmark = pytest.mark.slow

CORRUPTIONS = 20
STOPS = ((signal.SIGTERM, "update", False), (signal.SIGINT, "draw", False), (signal.SIGTERM, "save", True))


def test_kills(launcher, undisturbed, tried, tmp_path):
    """In update, sync and save."""
    killed_again_and_again(launcher, undisturbed, tried, TRAIN, tmp_path, seed=(0, 1), kills=3)


def test_corruptions(launcher, undisturbed, tried, tmp_path):
    base, whole, failed = killed_folder(launcher, TRAIN, tmp_path / "base", at="export"), undisturbed.folder(TRAIN), []
    for i in range(CORRUPTIONS):
        verdict = corrupt_and_resume(launcher, TRAIN, base, whole, tmp_path, rng=rng_of(TRAIN, (i,)), number=i)
        tried("corruption", verdict.where, verdict.outcome)
        if verdict.outcome == "failed":
            failed.append(f"corruption {i}: {verdict.what}: {verdict.why}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.parametrize(("number", "phase", "double"), STOPS, ids=["SIGTERM", "SIGINT", "SIGTERM-twice"])
def test_signals(number, phase, double, launcher, undisturbed, tried, tmp_path):
    rng = rng_of(TRAIN, (number,))
    stop = stop_and_resume(
        launcher, undisturbed, TRAIN, tmp_path, number=number, phase=phase, double=double, rng=rng, fresh=False
    )
    tried(f"{number.name}{' twice' * double}", stop.place, "failed" if stop.wrong else "stopped")
    assert not stop.wrong, "\n".join(stop.wrong)
