"""The GPU as its driver describes it: name, size, what is in use, versions."""

import os
from dataclasses import dataclass

from rlt_jax.device.monitor import gpu_memory_reader, visible_gpus


@dataclass(frozen=True)
class Gpu:
    """The NVIDIA GPU with the most memory of those that CUDA_VISIBLE_DEVICES allows."""

    name: str
    count: int  # GPUs that may be used
    total_bytes: int
    used_bytes: int  # by all processes
    driver: str  # its version, such as 580.95
    cuda: tuple[int, int]  # newest CUDA (major, minor) that the driver runs


def read_gpu() -> Gpu | None:
    """The GPU; None without one, its driver or the package nvidia-ml-py."""
    if gpu_memory_reader() is None:  # starts NVML
        return None
    import pynvml

    try:
        handles = visible_gpus(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        memories = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        place = max(range(len(handles)), key=lambda i: memories[i].total)
        version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Gpu(
            name=pynvml.nvmlDeviceGetName(handles[place]),
            count=len(handles),
            total_bytes=int(memories[place].total),
            used_bytes=int(memories[place].used),
            driver=pynvml.nvmlSystemGetDriverVersion(),
            cuda=(version // 1000, version % 1000 // 10),
        )
    except pynvml.NVMLError:
        return None
