"""What all tests share: where the golden cases lie, and a compilation cache so that a second run is quick."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the numbers recorded from the original system, and its two tiny checkpoints."""
    return Path(__file__).parent / "golden"
