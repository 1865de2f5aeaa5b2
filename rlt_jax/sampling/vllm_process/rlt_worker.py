"""What vLLM's worker learns to receive weights: mixed into its class by `worker_extension_cls`.

Two ways in: a safetensors file in shared memory, or a staging buffer on the GPU that the trainer fills.
"""

from math import prod
from typing import Any


class WeightReceiver:
    """Methods of the worker that holds the model; called by name through vLLM's collective RPC."""

    device: Any  # of the worker's own
    model_runner: Any

    def load_file(self, path: str) -> int:
        """Load every tensor of a safetensors file; returns how many."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            self._load((name, file.get_tensor(name)) for name in names)
        return len(names)

    def open_staging(self, size: int) -> bytes:
        """Allocate a buffer of `size` bytes on the GPU and return its CUDA IPC handle."""
        from cuda.bindings import driver

        (self._staging,) = _checked(driver.cuMemAlloc(size))
        (handle,) = _checked(driver.cuIpcGetMemHandle(self._staging))
        return bytes(handle.reserved)

    def load_staged(self, tensors: list) -> int:
        """Load (name, dtype, shape, offset) tensors out of the buffer, which is complete when this is called."""
        import torch

        def views():
            for name, dtype, shape, offset in tensors:
                kind = getattr(torch, dtype)
                size = prod(shape) * kind.itemsize
                memory = torch.as_tensor(_Memory(int(self._staging) + offset, size), device=self.device)
                yield name, memory.view(kind).view(*shape)

        self._load(views())
        torch.cuda.synchronize()  # the trainer overwrites the buffer as soon as it hears from us
        return len(tensors)

    def close_staging(self) -> None:
        """Free the buffer."""
        from cuda.bindings import driver

        _checked(driver.cuMemFree(self._staging))
        del self._staging

    def _load(self, tensors) -> None:
        if self.device.type == "cuda":
            # in place, so that CUDA graphs keep reading the memory they were captured with
            self.model_runner.model.load_weights(tensors)
        else:
            # packs the matrices anew for the CPU's kernels
            self.model_runner.reload_weights(weights_iterator=tensors)


class _Memory:
    """Part of the GPU's memory, as torch takes it."""

    def __init__(self, address: int, size: int):
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _checked(result: tuple) -> tuple:
    """Values of a CUDA driver call, without its status."""
    status, *values = result
    if status.value:
        raise RuntimeError(f"CUDA driver: {status.name}")
    return tuple(values)
