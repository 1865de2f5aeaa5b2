"""The GPU as its driver describes it; the driver is played by a module of its interface."""

import subprocess
import sys

import pytest

from rlt_jax.device.gpu import Gpu, read_gpu
from rlt_jax.device.monitor import gpu_memory_reader

DRIVER = """
from types import SimpleNamespace
class NVMLError(Exception): pass
GIB = 2**30
GPUS = [("NVIDIA small", 24 * GIB, GIB), ("NVIDIA H100 80GB HBM3", 80 * GIB, 3 * GIB)]
def nvmlInit(): pass
def nvmlDeviceGetCount(): return len(GPUS)
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(total=GPUS[handle][1], used=GPUS[handle][2])
def nvmlDeviceGetName(handle): return GPUS[handle][0]
def nvmlDeviceGetCudaComputeCapability(handle): return [(8, 6), (9, 0)][handle]
def nvmlSystemGetDriverVersion(): return "580.95"
def nvmlSystemGetCudaDriverVersion_v2(): return 13010
"""


@pytest.fixture
def driver(tmp_path, monkeypatch) -> None:
    """In processes that the test starts."""
    (tmp_path / "pynvml.py").write_text(DRIVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def read() -> Gpu | None:
    program = "from rlt_jax.device.gpu import read_gpu, Gpu; print(read_gpu())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return eval(done.stdout, {"Gpu": Gpu})


def test_the_largest_gpu_of_those_in_sight(driver):
    assert read() == Gpu("NVIDIA H100 80GB HBM3", 2, 80 * 2**30, 3 * 2**30, "580.95", (13, 1), (9, 0))


def test_a_hidden_gpu_is_not_counted(driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert read() == Gpu("NVIDIA small", 1, 24 * 2**30, 2**30, "580.95", (13, 1), (8, 6))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert read() is None


@pytest.mark.skipif(gpu_memory_reader() is not None, reason="there is a GPU")
def test_without_a_gpu_there_is_none():
    assert read_gpu() is None
