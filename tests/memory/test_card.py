"""The card as its driver describes it; the driver is played by a module of its interface."""

import subprocess
import sys

import pytest

from rlt_jax.memory.card import Card, read_card
from rlt_jax.memory.monitor import card_reader

DRIVER = """
from types import SimpleNamespace
class NVMLError(Exception): pass
GIB = 2**30
CARDS = [("NVIDIA small", 24 * GIB, GIB), ("NVIDIA H100 80GB HBM3", 80 * GIB, 3 * GIB)]
def nvmlInit(): pass
def nvmlDeviceGetCount(): return len(CARDS)
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(total=CARDS[handle][1], used=CARDS[handle][2])
def nvmlDeviceGetName(handle): return CARDS[handle][0]
def nvmlSystemGetDriverVersion(): return "580.95"
def nvmlSystemGetCudaDriverVersion_v2(): return 13010
"""


@pytest.fixture
def driver(tmp_path, monkeypatch) -> None:
    """In processes that the test starts."""
    (tmp_path / "pynvml.py").write_text(DRIVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def read() -> Card | None:
    program = "from rlt_jax.memory.card import read_card, Card; print(read_card())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return eval(done.stdout, {"Card": Card})


def test_the_largest_card_of_those_in_sight(driver):
    assert read() == Card("NVIDIA H100 80GB HBM3", 2, 80 * 2**30, 3 * 2**30, "580.95", (13, 1))


def test_a_hidden_card_is_not_counted(driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert read() == Card("NVIDIA small", 1, 24 * 2**30, 2**30, "580.95", (13, 1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert read() is None


@pytest.mark.skipif(card_reader() is not None, reason="there is a card")
def test_without_a_card_there_is_none():
    assert read_card() is None
