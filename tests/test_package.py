"""The package as others install it: its face, its wheel in an empty environment, its console commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rlt_jax
from rlt_jax import PRESETS, RewardInputs, Rewards, TrainConfig

REPOSITORY = Path(rlt_jax.__file__).parents[1]
COMMANDS = ("train", "sft", "generate", "score", "evaluate", "plan", "ablate", "pipeline")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_face():
    assert isinstance(PRESETS["tiny"], TrainConfig)
    assert {"reward", "components", "terms"} == set(Rewards._fields) and "logprobs" in RewardInputs._fields
    assert rlt_jax.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'trainer'"):
        _ = rlt_jax.trainer


def test_the_package_is_quick_to_import():
    """`train` stays a module, and nothing large is loaded before it is asked for."""
    program = "import sys, rlt_jax; print([name for name in ('jax', 'tyro', 'numpy') if name in sys.modules])\n"
    program += "from rlt_jax import PRESETS; print('jax' in sys.modules)\n"
    program += "from rlt_jax.train import train; import rlt_jax.train as module; print(module.train is train)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False", "True"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The bin folder of an empty environment into which the wheel of this tree was installed."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"  # a copy, as building writes into the tree
    shutil.copytree(REPOSITORY / "rlt_jax", source / "rlt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for line in (
        [*pip, "wheel", "--no-deps", "--wheel-dir", folder / "wheel", source],
        [sys.executable, "-m", "venv", folder / "venv"],
    ):
        subprocess.run(line, check=True, env=ENVIRONMENT, cwd=folder)
    (wheel,) = (folder / "wheel").glob("rlt_jax-*.whl")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, *pip[1:], "install", wheel], check=True, env=ENVIRONMENT, cwd=folder)
    return python.parent


@pytest.mark.slow
def test_the_wheel_trains_outside_the_repository(installed, tmp_path):
    train = subprocess.run(
        [installed / "rlt-train", "--preset", "tiny", "--max-steps", "2", "--output-dir", "run"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert train.returncode == 0, train.stderr[-3000:]
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    assert "solution_logp/mean" in train.stdout
    where = "import rlt_jax; print(rlt_jax.__file__)"
    found = subprocess.run(
        [installed / "python", "-c", where], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(installed.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_console_commands(installed, tmp_path, name):
    done = subprocess.run(
        [installed / f"rlt-{name}", "--help"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert f"usage: rlt-{name}" in done.stdout


@pytest.mark.slow
def test_the_studies_of_the_package_are_found_anywhere(installed, tmp_path):
    flags = ["--study", "tiny", "--work", "work", "--stages", "evaluate"]
    done = subprocess.run(
        [installed / "rlt-pipeline", *flags], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "run the stages before evaluate first" in done.stderr
