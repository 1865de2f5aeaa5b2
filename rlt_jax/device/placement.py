"""Device memory and pinned host memory: where parameter trees lie, and how they move.

Pinned memory is slow to allocate (a second per GB), and JAX never returns it to the system. So a tree that goes to the
host again must reuse its buffers: code that takes a tree off the host for good frees it there before it comes back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
from jax.sharding import SingleDeviceSharding

Tree = TypeVar("Tree")


def device_memory() -> SingleDeviceSharding:
    """The memory of the device that JAX computes on: main memory if that is a CPU."""
    return SingleDeviceSharding(jax.devices()[0])


def pinned_host() -> SingleDeviceSharding:
    """Host memory that a GPU copies from and to directly."""
    return SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")


def nbytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free(tree: Any) -> None:
    """Free a tree's memory now, even if it is still referenced."""
    for leaf in jax.tree.leaves(tree):
        leaf.delete()


def move_to_host(tree: Tree) -> Tree:
    """Move a tree to pinned memory, leaf by leaf; the original arrays are freed."""

    def move(leaf: jax.Array) -> jax.Array:
        moved = jax.block_until_ready(jax.device_put(leaf, pinned_host()))
        leaf.delete()
        return moved

    return jax.tree.map(move, tree)


def on_host(tree: Any) -> bool:
    """Whether a tree lies in pinned host memory."""
    return jax.tree.leaves(tree)[0].sharding.memory_kind == "pinned_host"


def to_device(tree: Tree) -> Tree:
    """The tree on the device: itself if it lies there, else a copy."""
    return jax.device_put(tree, device_memory()) if on_host(tree) else tree


@contextmanager
def on_device(tree: Tree) -> Iterator[Tree]:
    """The tree on the device: itself if it lies there, else a copy that is freed when the context ends."""
    if not on_host(tree):
        yield tree
        return
    copy = to_device(tree)
    try:
        yield copy
    finally:
        jax.block_until_ready(copy)
        free(copy)
