"""Two helpers that every loss needs."""

import jax
import jax.numpy as jnp


def at_least_f32(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` in float32, or as it is if it is wider: losses never run in bf16."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
    """Mean of `x` where `mask`; 0 where the mask selects nothing. Unselected values may be NaN."""
    return jnp.sum(x, axis=axis, where=mask) / jnp.maximum(jnp.sum(mask, axis=axis), 1)
