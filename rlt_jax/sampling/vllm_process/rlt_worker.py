"""Methods for vLLM's worker to receive weights, mixed into its class by `worker_extension_cls`.

Weights arrive in a safetensors file in shared memory, or in a staging buffer on the GPU that the trainer fills.
"""

from math import prod
from typing import Any


class WeightReceiver:
    """Methods that vLLM's collective RPC calls by name on the worker that holds the model."""

    device: Any  # this and model_runner are the worker's own
    model_runner: Any

    def load_file(self, path: str) -> int:
        """Load all tensors of a safetensors file, and return how many there were."""
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
        """Load tensors (name, dtype, shape, offset) from the full buffer, and return how many there were."""
        import torch

        def views():
            for name, dtype, shape, offset in tensors:
                torch_dtype = getattr(torch, dtype)
                size = prod(shape) * torch_dtype.itemsize
                memory = torch.as_tensor(_Memory(int(self._staging) + offset, size), device=self.device)
                yield name, memory.view(torch_dtype).view(*shape)

        self._load(views())
        torch.cuda.synchronize()  # the trainer overwrites the buffer as soon as this returns
        return len(tensors)

    def close_staging(self) -> None:
        """Free the buffer."""
        from cuda.bindings import driver

        _checked(driver.cuMemFree(self._staging))
        del self._staging

    def _load(self, tensors) -> None:
        if self.device.type == "cuda":
            # In place, so that CUDA graphs still read the memory they were captured with.
            self.model_runner.model.load_weights(tensors)
        else:
            # Packs the matrices again for the CPU's kernels.
            self.model_runner.reload_weights(weights_iterator=tensors)


class _Memory:
    """A range of GPU memory, in the form that torch accepts."""

    def __init__(self, address: int, size: int):
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _checked(result: tuple) -> tuple:
    """The values that a CUDA driver call returned, once its status is checked."""
    status, *values = result
    if status.value:
        raise RuntimeError(f"CUDA driver: {status.name}")
    return tuple(values)
