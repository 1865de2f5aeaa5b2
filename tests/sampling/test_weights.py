"""What is sent to an engine: exactly the checkpoint's tensors, in a file or in buffer-fulls."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlt_jax.sampling import weights
from rlt_jax.sampling.weights import (
    ALIGNMENT,
    Tensor,
    _chunks,
    check_tensors,
    remove_leftovers,
    send_on_gpu,
    write_shared_file,
)

STACK = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4)
TABLE = jnp.arange(10, dtype=jnp.bfloat16).reshape(5, 2)
TENSORS = [Tensor("layers.0.w", STACK, 0), Tensor("layers.1.w", STACK, 1), Tensor("embed", TABLE, None)]
SHAPES = {"layers.0.w": (3, 4), "layers.1.w": (3, 4), "embed": (5, 2)}


def test_the_checkpoints_tensors_pass():
    check_tensors(TENSORS, SHAPES)
    assert [tensor.nbytes for tensor in TENSORS] == [48, 48, 20]


@pytest.mark.parametrize(
    ("tensors", "shapes", "message"),
    [
        (TENSORS[1:], SHAPES, "layers.0.w is missing"),
        (TENSORS, {k: v for k, v in SHAPES.items() if k != "embed"}, "embed is not in the checkpoint"),
        (TENSORS, SHAPES | {"embed": (2, 5)}, r"embed is \(5, 2\), in the checkpoint \(2, 5\)"),
        ([*TENSORS, TENSORS[0]], SHAPES, "a name occurs twice"),
    ],
)
def test_anything_else_is_refused_by_name(tensors, shapes, message):
    with pytest.raises(ValueError, match=f"nothing was sent: {message}"):
        check_tensors(tensors, shapes)


def test_a_shared_file_holds_every_tensor_bit_for_bit_and_goes_away():
    with write_shared_file(TENSORS) as path:
        read = load_file(path)
        assert read.keys() == SHAPES.keys()
        np.testing.assert_array_equal(read["layers.1.w"], STACK[1])
        assert read["embed"].dtype == TABLE.dtype
        np.testing.assert_array_equal(read["embed"], np.asarray(TABLE))
    assert not path.parent.exists()


@pytest.mark.parametrize("size", [48, 300, 512, 10**6])
def test_buffer_fulls_hold_every_tensor_once_and_fit(size):
    chunks = list(_chunks(TENSORS, size))
    assert [tensor for chunk in chunks for tensor, _ in chunk] == TENSORS
    for chunk in chunks:
        ends = [offset + tensor.nbytes for tensor, offset in chunk]
        assert max(ends) <= size
        assert all(offset % ALIGNMENT == 0 for _, offset in chunk)
        assert all(end <= offset for end, (_, offset) in zip(ends, chunk[1:]))
    assert len(chunks) == {48: 3, 300: 2, 512: 2, 10**6: 1}[size]


class Driver:
    """CUDA's driver where all memory is the host's: copies bytes between the pointers that it is given."""

    CUipcMemHandle = SimpleNamespace
    CUipcMem_flags = SimpleNamespace(CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS=SimpleNamespace(value=1))
    done = SimpleNamespace(value=0)

    def __init__(self, buffer: ctypes.Array):
        self.buffer = buffer

    def cuIpcOpenMemHandle(self, handle, flags):
        return self.done, ctypes.addressof(self.buffer)

    def cuMemcpyAsync(self, to, source, size, stream):
        ctypes.memmove(to, source, size)
        return (self.done,)

    def cuStreamSynchronize(self, stream):
        return (self.done,)

    def cuIpcCloseMemHandle(self, staging):
        return (self.done,)


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_arrays_are_sent_from_where_they_lie(kind, monkeypatch):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=kind)
    stack, table = (jax.block_until_ready(jax.device_put(leaf, place)) for leaf in (STACK, TABLE))
    tensors = [Tensor("layers.0.w", stack, 0), Tensor("layers.1.w", stack, 1), Tensor("embed", table, None)]
    driver = Driver(ctypes.create_string_buffer(10**4))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    monkeypatch.setattr(weights, "_enter_primary_context", lambda leaf: None)
    opened, received = [], {}

    def load(manifest):
        for name, dtype, shape, offset in manifest:
            found = np.frombuffer(driver.buffer, dtype, int(np.prod(shape)), offset)
            received[name] = found.reshape(shape).copy()
        return len(manifest)

    send_on_gpu(
        tensors, open_remote=lambda size: opened.append(size) or b"", load_remote=load, close_remote=opened.clear
    )
    assert opened == [] and received.keys() == SHAPES.keys()
    for tensor in TENSORS:
        expected = tensor.leaf if tensor.index is None else tensor.leaf[tensor.index]
        np.testing.assert_array_equal(received[tensor.name], np.asarray(expected))


def files_of(path):
    return path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777


def test_a_shared_file_is_for_its_owner_alone():
    tensors = [Tensor("a", jnp.ones(4), None)]
    before = os.umask(0)
    try:
        with write_shared_file(tensors) as path, write_shared_file(tensors) as other:
            assert files_of(path) == files_of(other) == (0o600, 0o700)
            assert path.parent != other.parent
            remove_leftovers()
            assert path.exists() and other.exists()
    finally:
        os.umask(before)
    assert not path.parent.exists() and not other.parent.exists()


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from rlt_jax.sampling.weights import Tensor, write_shared_file
with write_shared_file([Tensor("a", jnp.ones(4), None)]) as path:
    print(path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_trainer_left_is_removed_by_the_next(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert left.exists()
    link = left.parent.with_name(left.parent.name + "-link")  # of that name, but leads elsewhere
    kept = tmp_path / "kept"
    kept.mkdir()
    link.symlink_to(kept)
    try:
        with write_shared_file([Tensor("a", jnp.ones(4), None)]) as path:
            assert not left.parent.exists() and path.exists() and kept.exists() and link.is_symlink()
    finally:
        link.unlink()
