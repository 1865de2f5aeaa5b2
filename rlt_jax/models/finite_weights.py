"""Which tensors of a model hold numbers that are NaN or infinite, by their names in a Hugging Face folder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.finite import MOST_SHOWN, NotFinite, largest
from rlt_jax.models.base import Model, Params
from rlt_jax.models.tensor_names import leaf_of, name_table


def bad_tensors(model: Model, params: Params) -> dict[str, int]:
    """Hugging Face name -> numbers that are not finite, of the tensors that hold any; {} if all are finite.

    Args:
      params: any tree of the parameters' shapes (also gradients), jax or numpy.
    """
    if np.isfinite(largest(params)):
        return {}
    found: dict[str, int] = {}
    for leaf in name_table(model):
        array = leaf_of(params, leaf.path)
        counts = np.atleast_1d(_count(array, stacked=leaf.stacked))
        found |= {name: int(count) for name, count in zip(leaf.names, counts) if count}
    return found


def describe_tensors(found: dict[str, int]) -> str:
    """`model.norm.weight has 1 value that is not finite, ...`"""
    parts = [
        f"{name} has {count} {'value that is' if count == 1 else 'values that are'} not finite"
        for name, count in list(found.items())[:MOST_SHOWN]
    ]
    more = len(found) - MOST_SHOWN
    return ", ".join(parts) + (f", and {more} more tensors" if more > 0 else "")


def check_weights(model: Model, params: Params, what: str) -> None:
    """Check that all parameters are finite.

    Args:
      what: they are of, for the message.
    Raises:
      NotFinite: some are not; it names the tensors.
    """
    if found := bad_tensors(model, params):
        raise NotFinite(f"{what}: {describe_tensors(found)}")


@partial(jax.jit, static_argnames="stacked")
def _count(array: jax.Array, *, stacked: bool) -> jax.Array:
    """Numbers that are not finite, of the whole array or of each layer."""
    axes = tuple(range(1 if stacked else 0, array.ndim))
    return jnp.sum(~jnp.isfinite(array), axis=axes, dtype=jnp.int32)
