"""Every file of a run folder, damaged between a kill and the restart: an exact resume or a refusal, nothing else.

Selected by `make test-faults`, or `python -m pytest tests/faults -m faults -k corruptions`; RLT_FAULTS_CORRUPTIONS sets
how many. A corruption that fails is named by its number, which with RLT_FAULTS_SEED decides all of it.
"""

import pytest

from tests.faults.chains import rng_of
from tests.faults.damaged import corrupt_and_resume, killed_folder
from tests.faults.scenes import HOST, SEED, SFT, TRAIN, size

pytestmark = pytest.mark.faults

A_TEST = 10
CORRUPTIONS = size("CORRUPTIONS", 320)
STATES = (  # what was killed, and where: in the middle, or after the last step
    *((TRAIN, "score"), (TRAIN, "export"), (HOST, "score"), (TRAIN, "score"), (TRAIN, "export"), (SFT, "update")),
)
CASES = [
    pytest.param(*STATES[i % len(STATES)], i, id=f"{STATES[i % len(STATES)][0].name}-{i}".replace(" ", "-"))
    for i in range(-(-CORRUPTIONS // A_TEST))
]


@pytest.fixture(scope="module")
def base(launcher, tmp_path_factory):
    made = {}

    def of(scene, phase):
        if (scene.name, phase) not in made:
            folder = tmp_path_factory.mktemp("base") / "run"
            made[scene.name, phase] = killed_folder(launcher, scene, folder, at=phase)
        return made[scene.name, phase]

    return of


@pytest.mark.parametrize(("scene", "phase", "number"), CASES)
def test_corruptions(scene, phase, number, base, launcher, undisturbed, tried, tmp_path):
    failed = []
    for i in range(number * A_TEST, (number + 1) * A_TEST):
        rng = rng_of(scene, (SEED, i))
        verdict = corrupt_and_resume(
            launcher, scene, base(scene, phase), undisturbed.folder(scene), tmp_path, rng=rng, number=i
        )
        tried(f"corruption {scene.name}", verdict.where, verdict.outcome)
        if verdict.outcome == "failed":
            failed.append(f"corruption {i}: {verdict.what}: {verdict.why}")
    assert not failed, "\n\n".join(failed)
