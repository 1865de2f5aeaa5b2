"""The names of a model's tensors in a Hugging Face checkpoint: one table for loading, saving and weight sync.

Nothing is transposed: matrices are [out, in] on both sides.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from rlt_jax.models.base import Model, Params


class Leaf(NamedTuple):
    """One array of the parameter tree and the checkpoint tensors it holds."""

    path: tuple[str, ...]  # keys into the tree
    names: tuple[str, ...]  # Hugging Face names: one per layer below "layers", else a single one
    shape: tuple[int, ...]  # of one tensor
    stacked: bool  # whether the array stacks the layers on axis 0


def name_table(model: Model) -> tuple[Leaf, ...]:
    """The mapping between the parameter tree and Hugging Face tensor names."""
    table = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(model.shapes("float32")):
        path = tuple(key.key for key in keys)
        if path[0] == "layers":
            tail = ".".join(path[1:])
            names = tuple(f"model.layers.{index}.{tail}" for index in range(model.config.num_hidden_layers))
            table.append(Leaf(path, names, leaf.shape[1:], stacked=True))
        else:
            name = ".".join(path)
            table.append(Leaf(path, (name if path[0] == "lm_head" else f"model.{name}",), leaf.shape, stacked=False))
    return tuple(table)


def named_tensors(model: Model, params: Params) -> Iterator[tuple[str, jax.Array | np.ndarray]]:
    """Every tensor with its Hugging Face name, [out, in] as in a checkpoint; layers are sliced lazily.

    Args:
      params: any tree of the parameters' shapes, with jax or numpy arrays.
    """
    for name, array, index in placed_tensors(model, params):
        yield name, array if index is None else _slice(array, index)


def placed_tensors(model: Model, params: Params) -> Iterator[tuple[str, jax.Array | np.ndarray, int | None]]:
    """Every tensor as (Hugging Face name, the leaf that holds it, its index on axis 0 or None for the whole leaf)."""
    for leaf in name_table(model):
        array = leaf_of(params, leaf.path)
        for index, name in enumerate(leaf.names):
            yield name, array, index if leaf.stacked else None


def leaf_of(tree: Params, path: tuple[str, ...]):
    """What a tree holds at a path of keys, such as a `Leaf` has."""
    for key in path:
        tree = tree[key]
    return tree


def _slice(array: jax.Array | np.ndarray, index: int) -> jax.Array | np.ndarray:
    if isinstance(array, np.ndarray):
        return array[index]
    return jax.lax.dynamic_index_in_dim(array, index, keepdims=False)  # array[index] would compile for every index
