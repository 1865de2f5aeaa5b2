"""SIGKILL at seeded moments of all phases: every restart continues, and the end is that of the undisturbed run.

Selected by `make test-faults`, or `python -m pytest tests/faults -m faults -k kills`; RLT_FAULTS_KILLS sets how many.
"""

import pytest

from tests.faults.chains import KILLS_A_CHAIN, killed_again_and_again
from tests.faults.scenes import HOST, SEED, SFT, TRAIN, size

pytestmark = pytest.mark.faults

KILLS = size("KILLS", 210)
SHARES = ((TRAIN, 0.6), (HOST, 0.25), (SFT, 0.15))
CHAINS = [
    pytest.param(scene, number, id=f"{scene.name.replace(' ', '-')}-{number}")
    for scene, share in SHARES
    for number in range(-(-round(KILLS * share) // KILLS_A_CHAIN))
]


@pytest.mark.parametrize(("scene", "number"), CHAINS)
def test_kills(scene, number, launcher, undisturbed, tried, tmp_path):
    killed_again_and_again(launcher, undisturbed, tried, scene, tmp_path, seed=(SEED, number))
