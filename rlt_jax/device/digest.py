"""A digest of a tree's bits, computed where it lies: whether two states are the same without copying either."""

from typing import Any

import jax
import jax.numpy as jnp

from rlt_jax.device.placement import on_device, on_host


def digest(tree: Any) -> str:
    """Hexadecimal digits that change with any bit of any leaf, but for one chance in 2**64.

    Two sums of the leaves' words, each multiplied by its mixed position, modulo 2**32. Sums of integers do not depend
    on their order, so equal trees have equal digests on every device. The leaves of a tree in pinned host memory are
    copied to the device one after the other.
    """
    leaves = jax.tree.leaves(tree)
    sums = [_visiting_sums(leaf) for leaf in leaves] if on_host(tree) else jax.device_get(_sums(leaves))
    return "".join(f"{int(word):08x}" for leaf in sums for word in leaf)


def _visiting_sums(leaf: jax.Array) -> Any:
    with on_device(leaf) as visiting:
        (sums,) = jax.device_get(_sums([visiting]))
    return sums


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    return [_leaf_sums(leaf) for leaf in leaves]


def _leaf_sums(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):  # not one number per element: a leaf may have more of them than 2**32
        position = _mixed(position ^ jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis))
    return jnp.sum(words * (position | 1)), jnp.sum(_mixed(words ^ position))


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of u32 in which every bit of the input changes about half of the output (MurmurHash3's finaliser)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
