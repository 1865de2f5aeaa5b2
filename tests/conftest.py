"""What all tests share: where the golden cases lie, and a compilation cache so that nothing is compiled twice."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # before JAX is imported; workers and subprocesses inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rlt_jax-tests-xla-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the numbers recorded from the original system, and its two tiny checkpoints."""
    return Path(__file__).parent / "golden"
