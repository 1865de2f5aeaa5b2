"""The GPU as its driver describes it: name, memory, memory in use, versions."""

import os
from dataclasses import dataclass

from rlt_jax.device.monitor import gpu_memory_reader, visible_gpus


@dataclass(frozen=True)
class Gpu:
    """The NVIDIA GPU with the most memory among those that CUDA_VISIBLE_DEVICES allows."""

    name: str
    count: int  # of GPUs that may be used
    total_bytes: int
    used_bytes: int  # by all processes
    driver: str  # version, such as 580.95
    cuda: tuple[int, int]  # newest CUDA version (major, minor) that the driver supports
    capability: tuple[int, int]  # compute capability (major, minor): (9, 0) is Hopper


def read_gpu() -> Gpu | None:
    """Read the GPU; None without a GPU, its driver or the package nvidia-ml-py."""
    if gpu_memory_reader() is None:  # starts NVML
        return None
    import pynvml

    try:
        handles = visible_gpus(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        memories = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        largest = max(range(len(handles)), key=lambda i: memories[i].total)
        capability = pynvml.nvmlDeviceGetCudaComputeCapability(handles[largest])
        version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Gpu(
            name=pynvml.nvmlDeviceGetName(handles[largest]),
            count=len(handles),
            total_bytes=int(memories[largest].total),
            used_bytes=int(memories[largest].used),
            driver=pynvml.nvmlSystemGetDriverVersion(),
            cuda=(version // 1000, version % 1000 // 10),
            capability=(int(capability[0]), int(capability[1])),
        )
    except pynvml.NVMLError:
        return None
