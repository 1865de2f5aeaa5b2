"""Measure the memory a run really takes: this process on the host, and the whole GPU as its driver reports it.

The GPU's figure comes from NVML, not from an allocator: allocators leave out pools, contexts, CUDA graphs and other
processes (such as vLLM's), all of which take GPU memory. Units are GB of 1e9 bytes.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psutil

from rlt_jax.types import GB

PEAK = "memory/peak_gpu_gb/"  # prefix of the phase in metric names

ReadGpuMemory = Callable[[], float | None]  # GB in use; None if the GPU can no longer be read


def memory_metrics() -> dict[str, float]:
    """Read the memory in use now.

    Returns:
      `memory/host_gb`: resident memory of this process; `memory/gpu_gb`: used memory of the whole GPU (the fullest
      of those that CUDA_VISIBLE_DEVICES allows), absent without an NVIDIA GPU.
    """
    metrics = {"memory/host_gb": psutil.Process().memory_info().rss / GB}
    read = gpu_memory_reader()
    used = read() if read is not None else None
    if used is not None:
        metrics["memory/gpu_gb"] = used
    return metrics


@cache  # NVML is initialised once, and stays so until the process ends
def gpu_memory_reader() -> ReadGpuMemory | None:
    """A function that reads the GPU's used memory, GB; None without a GPU, its driver or the package nvidia-ml-py."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        handles = visible_gpus(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except pynvml.NVMLError:  # no driver, no GPU, no permission
        return None
    if not handles:
        return None

    def read() -> float | None:
        try:
            return max(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles) / GB
        except pynvml.NVMLError:  # the GPU fell off the bus, or its driver was unloaded
            return None

    return read if read() is not None else None


def visible_gpus(nvml: Any, visible: str | None) -> list[Any]:
    """NVML handles of the GPUs that CUDA may use; NVML itself lists all GPUs."""
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for entry in filter(None, map(str.strip, visible.split(","))):
        if entry.startswith(("GPU-", "MIG-")):
            handles.append(nvml.nvmlDeviceGetHandleByUUID(entry))
        elif entry.isdigit():
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(entry)))
        else:
            break  # like CUDA, ignore the first entry that names no GPU (-1) and all after it
    return handles


class PeakMonitor:
    """The peak GPU memory of each phase, read by a thread every 10 ms.

        with PeakMonitor() as monitor:
            with monitor.phase("update"):
                ...
            writer.write(step, monitor.metrics())

    Without a GPU it starts no thread and reports nothing. Short phases are read at their start and end.
    """

    def __init__(self, *, interval: float = 0.01, read: ReadGpuMemory | None = None) -> None:
        """`interval` in seconds; `read` replaces NVML's reader."""
        self._interval = interval
        self._read = read if read is not None else gpu_memory_reader()
        self._phase: str | None = None
        self._peaks: dict[str, float] = {}
        # Covers reading and recording together: a value read in one phase must not be recorded for the next.
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "PeakMonitor":
        if self._read is not None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, name="memory-monitor", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record what is read inside the `with` for this phase.

        Raises:
          RuntimeError: another phase is open.
        """
        if self._phase is not None:
            raise RuntimeError(f"phase {name!r} begins inside phase {self._phase!r}: phases of a step don't nest")
        self._switch(name)
        try:
            yield
        finally:
            self._switch(None)

    def metrics(self) -> dict[str, float]:
        """`memory/peak_gpu_gb/PHASE`: the peaks since the last reset."""
        with self._lock:
            return {f"{PEAK}{name}": peak for name, peak in self._peaks.items()}

    def reset(self) -> None:
        """Forget the peaks."""
        with self._lock:
            self._peaks.clear()

    def _switch(self, name: str | None) -> None:
        with self._lock:
            self._record()  # at the end of the previous phase
            self._phase = name
            self._record()  # at the start of this one

    def _record(self) -> None:
        """Read the GPU once for the current phase; the caller holds the lock."""
        if self._phase is None or self._read is None:
            return
        used = self._read()
        if used is not None:
            self._peaks[self._phase] = max(used, self._peaks.get(self._phase, 0.0))

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            with self._lock:
                self._record()
