"""SIGTERM and SIGINT, once and twice, in all phases.

Selected by `make test-faults`, or `python -m pytest tests/faults -m faults -k signals`; RLT_FAULTS_SIGNALS sets how
many.
"""

import importlib.util
import signal

import pytest

from tests.faults.chains import rng_of
from tests.faults.scenes import HOST, SEED, SFT, TRAIN, VLLM, size
from tests.faults.stopping import SIGNALS, stop_and_resume

needs_vllm = (
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: see `make vllm`"),
)
pytestmark = pytest.mark.faults

PLACES = [(scene, phase) for scene in (TRAIN, HOST, SFT) for phase in scene.phases]
PLACES += [(VLLM, "start-up"), (VLLM, "draw"), (VLLM, "sync")]  # with an engine in a process of its own
STOPS = [(number, double) for number in SIGNALS for double in (False, True)]
COUNT = size("SIGNALS", len(PLACES) * len(STOPS))
ORDER = [(place, stop) for stop in STOPS for place in PLACES]  # all phases first, if there are fewer
NEEDS = {scene.name: () for scene in (TRAIN, HOST, SFT)} | {VLLM.name: needs_vllm}
CASES = [
    pytest.param(
        *place,
        *stop,
        i,
        id=f"{place[0].name.replace(' ', '-')}-{place[1]}-{stop[0].name}{'-twice' * stop[1]}-{i}",
        marks=NEEDS[place[0].name],
    )
    for i, (place, stop) in ((i, ORDER[i % len(ORDER)]) for i in range(COUNT))
]


@pytest.mark.parametrize(("scene", "phase", "number", "double", "i"), CASES)
def test_signals(scene, phase, number, double, i, launcher, undisturbed, tried, tmp_path):
    rng = rng_of(scene, (SEED, i))
    stop = stop_and_resume(
        launcher, undisturbed, scene, tmp_path, number=number, phase=phase, double=double, rng=rng, fresh=i % 3 == 0
    )
    name = f"{signal.Signals(number).name}{' twice' * double}"
    tried(name, stop.place, "failed" if stop.wrong else "stopped")
    assert not stop.wrong, "\n".join(stop.wrong)
