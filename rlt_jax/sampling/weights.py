"""Send weights from JAX arrays to an engine in another process: by shared memory, or on the GPU by CUDA IPC."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

STAGING_BYTES = 2_000_000_000  # of the buffer on the GPU that weights pass through
SHARED_MEMORY = "/dev/shm"
PREFIX = "rlt_jax-weights-of-"  # of folders in it that hold weights on their way
ALIGNMENT = 256  # bytes, of tensors in that buffer


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model, and where it lies in the parameter tree."""

    name: str  # Hugging Face name
    leaf: Any  # jax.Array of the tree
    index: int | None  # the tensor is this index of the leaf's axis 0 (stacked layers); None: it is the whole leaf

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape if self.index is None else self.leaf.shape[1:]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.leaf.dtype.itemsize


def check_tensors(tensors: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse to send anything but the checkpoint's tensors, since an engine would silently accept some of them.

    Raises:
      ValueError: a name is missing, unknown or occurs twice, or a shape differs.
    """
    given = {tensor.name: tensor.shape for tensor in tensors}
    problems = [f"{name} is missing" for name in shapes.keys() - given.keys()]
    problems += [f"{name} is not in the checkpoint" for name in given.keys() - shapes.keys()]
    problems += [
        f"{name} is {given[name]}, in the checkpoint {tuple(shape)}"
        for name, shape in shapes.items()
        if name in given and given[name] != tuple(shape)
    ]
    if len(given) < len(tensors):
        problems.append("a name occurs twice")
    if problems:
        raise ValueError(f"weights that are not the checkpoint's, nothing was sent: {'; '.join(sorted(problems))}")


@contextlib.contextmanager
def write_shared_file(tensors: Sequence[Tensor]) -> Iterator[Path]:
    """Write a safetensors file of the tensors, in memory if there is room; it is deleted when the context ends."""
    leaves = {id(tensor.leaf): np.asarray(tensor.leaf) for tensor in tensors}  # one transfer per leaf
    arrays = {
        tensor.name: leaves[id(tensor.leaf)] if tensor.index is None else leaves[id(tensor.leaf)][tensor.index]
        for tensor in tensors
    }
    remove_leftovers()
    with _private_folder(_roomy_folder(sum(tensor.nbytes for tensor in tensors))) as folder:
        path = folder / "model.safetensors"
        path.touch(mode=0o600)
        save_file(arrays, path)
        path.chmod(0o600)
        yield path


def remove_leftovers() -> None:
    """Remove what trainers of this user left that were killed while they sent weights: the memory of a model."""
    for folder in {SHARED_MEMORY, tempfile.gettempdir()}:
        for left in Path(folder).glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # another one removes it, or it is another user's
                if left.is_symlink() or left.stat().st_uid != os.getuid():
                    continue
                lock = os.open(left, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its owner lives
                    shutil.rmtree(left)
                finally:
                    os.close(lock)


@contextlib.contextmanager
def _private_folder(parent: str | None) -> Iterator[Path]:
    """A folder of mode 0700 with a random name, locked while it is used, so that leftovers can be told from it."""
    made = Path(tempfile.mkdtemp(prefix=".rlt_jax-", dir=parent))
    lock = os.open(made, os.O_RDONLY)
    folder = made.with_name(PREFIX + made.name.removeprefix(".rlt_jax-"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made.rename(folder)  # only now it has the name that is looked for
        yield folder
    finally:
        for left in (made, folder):
            shutil.rmtree(left, ignore_errors=True)
        os.close(lock)


def _roomy_folder(size: int) -> str | None:
    """Shared memory if `size` bytes fit; else None, for the system's temporary folder."""
    with contextlib.suppress(OSError):
        room = os.statvfs(SHARED_MEMORY)
        if room.f_bavail * room.f_frsize > 1.05 * size:
            return SHARED_MEMORY
    return None


def send_on_gpu(
    tensors: Sequence[Tensor],
    *,
    open_remote: Callable[[int], bytes],
    load_remote: Callable[[list[tuple[str, str, tuple[int, ...], int]]], int],
    close_remote: Callable[[], None],
) -> None:
    """Copy tensors from JAX's memory into a buffer of another process on the same GPU, one buffer-full at a time.

    The other process owns the buffer, so JAX's memory need not be exportable, and no framework but JAX is needed here.
    Arrays must be ready (`jax.block_until_ready`), on one GPU or in host memory pinned for it.

    Args:
      open_remote: size in bytes -> the CUDA IPC handle of a fresh buffer.
      load_remote: called with each buffer-full's (name, dtype, shape, offset); returns how many tensors it loaded.
      close_remote: frees the buffer.
    Raises:
      RuntimeError: CUDA failed, or the other side loaded another number of tensors.
    """
    from cuda.bindings import driver

    size = max(STAGING_BYTES, *(tensor.nbytes for tensor in tensors))
    size = min(size, sum(_aligned(tensor.nbytes) for tensor in tensors))
    _enter_primary_context(tensors[0].leaf)
    handle = driver.CUipcMemHandle()
    handle.reserved = open_remote(size)
    try:
        flags = driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS.value
        (staging,) = _checked(driver.cuIpcOpenMemHandle(handle, flags))
        try:
            for chunk in _chunks(tensors, size):
                for tensor, offset in chunk:
                    source = tensor.leaf.unsafe_buffer_pointer() + (tensor.index or 0) * tensor.nbytes
                    _checked(driver.cuMemcpyAsync(int(staging) + offset, source, tensor.nbytes, 0))
                _checked(driver.cuStreamSynchronize(0))
                manifest = [(t.name, t.leaf.dtype.name, t.shape, offset) for t, offset in chunk]
                loaded = load_remote(manifest)
                if loaded != len(chunk):
                    raise RuntimeError(f"the engine loaded {loaded} of {len(chunk)} tensors")
        finally:
            _checked(driver.cuIpcCloseMemHandle(staging))
    finally:
        close_remote()


def _chunks(tensors: Sequence[Tensor], size: int) -> Iterator[list[tuple[Tensor, int]]]:
    """Split tensors into buffer-fulls of at most `size` bytes, with their offsets."""
    chunk: list[tuple[Tensor, int]] = []
    end = 0
    for tensor in tensors:
        if chunk and end + tensor.nbytes > size:
            yield chunk
            chunk, end = [], 0
        chunk.append((tensor, end))
        end += _aligned(tensor.nbytes)
    if chunk:
        yield chunk


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _enter_primary_context(array: Any) -> None:
    """Make JAX's CUDA context current in this thread."""
    from cuda.bindings import driver

    _checked(driver.cuInit(0))
    (device,) = _checked(driver.cuDeviceGet(next(iter(array.devices())).local_hardware_id))
    (context,) = _checked(driver.cuDevicePrimaryCtxRetain(device))
    _checked(driver.cuCtxSetCurrent(context))


def _checked(result: tuple) -> tuple:
    """The values that a CUDA driver call returned, once its status is checked."""
    status, *values = result
    if status.value:
        raise RuntimeError(f"CUDA driver: {status.name}")
    return tuple(values)
