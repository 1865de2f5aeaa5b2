"""What JAX will compute on, known without starting it where an NVIDIA GPU is in the machine."""

import os
import subprocess
import sys

import pytest

PYNVML = """
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
class _Memory: used = 0
def nvmlDeviceGetMemoryInfo(handle): return _Memory
"""
PROGRAM = (
    "from jax._src import xla_bridge; from rlt_jax.device.jax_setup import computes_on; "
    "print(computes_on(), xla_bridge.backends_are_initialized())"
)


@pytest.fixture
def ask(tmp_path):
    """ask(gpu=..., plugin=..., platforms=...): the device, and whether JAX was started, in a process of its own."""

    def run(*, gpu: bool, plugin: bool, platforms: str = "", visible: str | None = None) -> list[str]:
        (tmp_path / "pynvml.py").write_text(PYNVML if gpu else "raise ModuleNotFoundError('pynvml')")
        if plugin:
            (tmp_path / "jax_plugins" / "xla_cuda13").mkdir(parents=True)
            (tmp_path / "jax_plugins" / "xla_cuda13" / "__init__.py").write_text("")
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
        environment["JAX_PLATFORMS"] = platforms
        if visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    return run


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({"gpu": True, "plugin": True}, ["gpu", "False"]),
        ({"gpu": True, "plugin": True, "platforms": "cuda,cpu"}, ["gpu", "False"]),
        ({"gpu": True, "plugin": True, "platforms": "cpu"}, ["cpu", "False"]),
        ({"gpu": True, "plugin": False}, ["cpu", "False"]),
        ({"gpu": False, "plugin": False}, ["cpu", "True"]),
        ({"gpu": True, "plugin": True, "visible": "-1", "platforms": "cpu"}, ["cpu", "True"]),
    ],
    ids=["gpu", "gpu first", "cpu asked for", "jax for cpus", "no gpu", "gpu hidden"],
)
def test_the_device(ask, machine, expected):
    assert ask(**machine) == expected
