"""The commands as a user runs them, with the tiny models that come with the package and sizes that take seconds."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import rlt_jax
from tests.conftest import log_as_it_was

TINY = Path(rlt_jax.__file__).parent / "assets" / "tiny"

SMALL = (  # a whole run in seconds: 8 completions a step, of 16 tokens
    *("--preset", "tiny", "--train-batch-size", "8", "--num-generations", "4", "--per-device-train-batch-size", "4"),
    *("--score-batch-size", "8", "--max-completion-length", "16", "--eval-steps", "0"),
    *("--data.eval-rows", "8", "--learning-rate", "1e-3"),
)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of the tiny models and their data."""
    return TINY


@pytest.fixture(scope="session")
def small() -> tuple:
    """Flags of `rlt_jax.train` for a run that takes seconds."""
    return SMALL


@pytest.fixture(autouse=True)
def leave_the_log_as_it_was(restored_log):
    """A run in this process takes the project's log over."""


@pytest.fixture(autouse=True, scope="module")
def leave_the_log_as_it_was_before_the_file():
    """So does one that a fixture of a whole file makes."""
    with log_as_it_was():
        yield


@pytest.fixture(scope="session")
def command() -> Callable[..., str]:
    """command("train", *flags): `python -m rlt_jax.train` in a process of its own; returns what it printed."""

    def run(name: str, *flags: object) -> str:
        line = [sys.executable, "-m", f"rlt_jax.{name}", *map(str, flags)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def refused(main, capsys) -> Callable[..., str]:
    """refused(module, *flags): what a command says that ends with exit code 2, without a traceback."""

    def run(module: ModuleType, *flags: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main(module, *flags)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and "Traceback" not in said
        return said

    return run


@pytest.fixture
def main(monkeypatch) -> Callable[..., None]:
    """main(module, *flags): a command's entry point in this process, as `python -m` runs it."""

    def run(module: ModuleType, *flags: object) -> None:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
        module.main()

    return run
