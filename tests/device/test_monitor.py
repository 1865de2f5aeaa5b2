"""Memory figures: this process's, the GPU's when there is one, the peak of each phase."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from rlt_jax.device.monitor import PeakMonitor, gpu_memory_reader, memory_metrics, visible_gpus

needs_no_gpu = pytest.mark.skipif(gpu_memory_reader() is not None, reason="there is a GPU")


def test_host_memory_is_this_process_s_in_gb_of_1e9_bytes():
    before = memory_metrics()["memory/host_gb"]
    assert before == pytest.approx(psutil.Process().memory_info().rss / 1e9, abs=0.02)
    block = np.ones(25_000_000)  # 0.2 GB, touched
    assert memory_metrics()["memory/host_gb"] - before == pytest.approx(block.nbytes / 1e9, abs=0.03)


@needs_no_gpu
def test_without_a_gpu_there_is_no_figure_and_no_thread():
    assert set(memory_metrics()) == {"memory/host_gb"}
    threads = threading.active_count()
    with PeakMonitor() as monitor, monitor.phase("update"):
        assert threading.active_count() == threads
    assert monitor.metrics() == {}


@pytest.mark.gpu
@pytest.mark.skipif(gpu_memory_reader() is None, reason="there is no GPU")
def test_the_gpu_s_peak_sees_an_allocation():
    import jax.numpy as jnp

    with PeakMonitor() as monitor:
        with monitor.phase("before"):
            pass
        with monitor.phase("allocate"):
            block = jnp.ones(500_000_000, jnp.float32).block_until_ready()  # 2 GB
        peaks = monitor.metrics()
        block.delete()
    grown = peaks["memory/peak_gpu_gb/allocate"] - peaks["memory/peak_gpu_gb/before"]
    assert grown >= 1.9  # more when JAX takes its whole pool at once
    assert memory_metrics()["memory/gpu_gb"] > 0


def test_without_the_package_there_is_no_figure():
    program = (
        "import sys; sys.modules['pynvml'] = None\n"
        "from rlt_jax.device.monitor import memory_metrics; print(sorted(memory_metrics()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['memory/host_gb']"


class Gauge:
    """A GPU whose use is set by hand, and which says when the thread has read it."""

    def __init__(self) -> None:
        self.used: float | None = 1.0
        self.reads = threading.Semaphore(0)

    def __call__(self) -> float | None:
        if threading.current_thread().name == "memory-monitor":
            self.reads.release()
        return self.used

    def wait_for_a_read(self) -> None:
        for _ in range(2):  # the first may have begun before the caller changed `used`
            assert self.reads.acquire(timeout=30), "the monitor's thread does not read"


def test_the_thread_finds_a_peak_in_the_middle_of_a_phase():
    gauge = Gauge()
    with PeakMonitor(interval=0.001, read=gauge) as monitor:
        with monitor.phase("update"):
            gauge.used = 7.5
            while gauge.reads.acquire(blocking=False):
                pass
            gauge.wait_for_a_read()
            gauge.used = 1.0
        with monitor.phase("score"):
            gauge.used = 2.0
        gauge.used = 99.0  # outside every phase
    assert monitor.metrics() == {"memory/peak_gpu_gb/update": 7.5, "memory/peak_gpu_gb/score": 2.0}
    assert not [thread for thread in threading.enumerate() if thread.name == "memory-monitor"]


def test_a_phase_keeps_its_highest_until_reset():
    gauge = Gauge()
    monitor = PeakMonitor(read=gauge)  # not entered: read at the ends of phases alone
    for used in (3.0, 5.0, 4.0):
        gauge.used = used
        with monitor.phase("update"):
            pass
    assert monitor.metrics() == {"memory/peak_gpu_gb/update": 5.0}
    monitor.reset()
    assert monitor.metrics() == {}


def test_a_gpu_that_is_lost_leaves_the_peaks_that_were_read():
    gauge = Gauge()
    monitor = PeakMonitor(read=gauge)
    with monitor.phase("update"):
        gauge.used = None
    with monitor.phase("score"):
        pass
    assert monitor.metrics() == {"memory/peak_gpu_gb/update": 1.0}


def test_phases_do_not_nest_and_close_after_an_error():
    monitor = PeakMonitor(read=Gauge())
    with (
        pytest.raises(RuntimeError, match="phase 'score' begins inside phase 'eval'"),
        monitor.phase("eval"),
        monitor.phase("score"),
    ):
        pass
    with monitor.phase("score"):
        pass
    assert monitor.metrics()["memory/peak_gpu_gb/score"] == 1.0


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["index 0", "index 1"]),
        ("1", ["index 1"]),
        ("1, 0", ["index 1", "index 0"]),
        ("GPU-ab,MIG-cd", ["uuid GPU-ab", "uuid MIG-cd"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["index 0"]),
    ],
)
def test_gpus_are_those_that_cuda_may_use(visible, expected):
    nvml = SimpleNamespace(  # the three calls of NVML that it takes
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: f"index {index}",
        nvmlDeviceGetHandleByUUID=lambda uuid: f"uuid {uuid}",
    )
    assert visible_gpus(nvml, visible) == expected
