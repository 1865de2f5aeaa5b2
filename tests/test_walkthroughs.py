"""The changes that docs/development.md walks through: each patch in tests/walkthroughs applies and works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.models.conftest import oracle_logits, save_mistral

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git applies the patches"),
]

REPOSITORY = Path(__file__).parents[1]
PATCHES = REPOSITORY / "tests" / "walkthroughs"
NAMES = ("loss", "reward", "family", "command")


def touched(name: str) -> list[str]:
    """Files of the package that a patch changes or adds."""
    return re.findall(r"^\+\+\+ b/(rlt_jax/.*)$", (PATCHES / f"{name}.patch").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "most"), [("loss", 3), ("reward", 3)])
def test_few_files_are_touched(name, most):
    assert len(touched(name)) <= most


def test_a_family_is_one_folder():
    assert touched("family") == ["rlt_jax/models/mistral/__init__.py"]


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A copy of the tree with all four changes."""
    copy = tmp_path_factory.mktemp("walkthroughs")
    shutil.copytree(REPOSITORY / "rlt_jax", copy / "rlt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "tests/test_architecture.py", "tests/conftest.py"):
        (copy / file).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / file, copy / file)
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    for name in NAMES:
        patch = PATCHES / f"{name}.patch"
        subprocess.run(["git", "apply", "-C1", patch], cwd=copy, check=True, env=environment)
    return copy


def environment_of(copy: Path) -> dict[str, str]:
    """The environment in which the package is that of the copy."""
    paths = [str(copy), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(copy: Path, *line: object) -> str:
    """What a Python program prints, with the package of the copy."""
    environment = environment_of(copy)
    done = subprocess.run(
        [sys.executable, *map(str, line)], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_house_stands(changed):
    said = run(changed, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "tests/test_architecture.py")
    assert "failed" not in said


def test_the_loss_and_the_reward_term_have_flags(changed, tmp_path):
    flags = ["--preset", "tiny", "--max-steps", "2", "--train-batch-size", "8", "--num-generations", "4"]
    flags += ["--per-device-train-batch-size", "4", "--eval-steps", "0", "--checkpoint.no-export"]
    lines = []
    for name, more in (("usual", []), ("changed", ["--loss.imitation-coeff", "0.5", "--reward.length-coeff", "100"])):
        run(changed, "-m", "rlt_jax.train", *flags, "--output-dir", tmp_path / name, *more)
        lines.append([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    usual, other = lines
    assert "component/length_reward" not in usual[0]
    assert other[0]["component/length_reward"] < -1
    assert other[0]["reward"] == pytest.approx(usual[0]["reward"] + other[0]["component/length_reward"], abs=1e-4)
    assert other[0]["grad_norm"] != pytest.approx(usual[0]["grad_norm"], rel=1e-2)


def test_the_family_is_read(changed, tmp_path):
    oracle = save_mistral(tmp_path)
    program = "import sys, numpy; from rlt_jax.models import load_model\n"
    program += "m, p = load_model(sys.argv[1], dtype='float32')\n"
    program += "numpy.save(sys.argv[2], m.logits(p, numpy.arange(24).reshape(2, 12)))"
    run(changed, "-c", program, tmp_path, tmp_path / "logits.npy")
    ids = np.arange(24).reshape(2, 12)
    assert np.abs(np.load(tmp_path / "logits.npy") - oracle_logits(oracle, ids, np.ones_like(ids))).max() < 1e-4


def test_the_familys_window_is_refused(changed, tmp_path):
    save_mistral(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["sliding_window"]  # transformers then takes 4096, of 131072 positions
    file.write_text(json.dumps(values | {"max_position_embeddings": 131072}))
    program = "import sys\nfrom rlt_jax.errors import UserError\nfrom rlt_jax.models import load_model\n"
    program += "try: load_model(sys.argv[1])\nexcept UserError as error: print(error)"
    assert "asks for what is not supported: sliding_window=4096 (every layer" in run(changed, "-c", program, tmp_path)


def test_the_command_runs_and_refuses(changed):
    tiny = changed / "rlt_jax" / "assets" / "tiny"
    said = run(changed, "-m", "rlt_jax.count", "--teacher", tiny / "teacher", "--data", tiny / "eval.jsonl")
    assert re.fullmatch(r"[\d,]+ tokens in 256 prompts\n", said)
    done = subprocess.run(
        [sys.executable, "-m", "rlt_jax.count", "--teacher", tiny / "teacher", "--data", "nowhere.jsonl"],
        cwd=changed,
        env=environment_of(changed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
