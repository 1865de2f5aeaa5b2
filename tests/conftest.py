"""What all tests share: where the golden cases lie, and a compilation cache so that nothing is compiled twice."""

import atexit
import logging
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


@pytest.fixture
def logged(caplog):
    """Records the project's log; it may have been cut off from the root by a run in this process."""
    logger = logging.getLogger("rlt_jax")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, logger="rlt_jax"):
        yield caplog
    logger.propagate = before
