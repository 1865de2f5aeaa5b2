"""The vLLM process killed in all phases of a run that goes on: the end is that of the undisturbed run.

Selected by `make test-faults`, or `python -m pytest tests/faults -m faults -k engine`; RLT_FAULTS_ENGINE_KILLS sets how
many.
"""

import importlib.util

import pytest

from tests.faults.chains import compare, rng_of
from tests.faults.engine_kills import kill_engines, restarts
from tests.faults.scenes import SEED, VLLM, size

pytestmark = [
    pytest.mark.faults,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: see `make vllm`"),
]

A_RUN = 4
KILLS = size("ENGINE_KILLS", 32)


@pytest.mark.parametrize("number", range(-(-KILLS // A_RUN)))
def test_engine_kills(number, launcher, undisturbed, tried, tmp_path):
    folder = tmp_path / "run"
    rng = rng_of(VLLM, (SEED, number))
    run, hit = kill_engines(launcher, undisturbed, VLLM, folder, kills=A_RUN, first=A_RUN * number, rng=rng)
    assert run.code == 0, "\n".join([*hit, run.output()[-3000:]])
    assert run.left_over() == []
    assert len(hit) == A_RUN and restarts(folder)[-1] >= 1
    compare(tried, VLLM, folder, undisturbed, [f"engine in {place}" for place in hit], hit)
