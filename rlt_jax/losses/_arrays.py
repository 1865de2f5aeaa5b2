"""Helpers shared by the losses."""

import jax
import jax.numpy as jnp


def at_least_f32(x: jax.typing.ArrayLike) -> jax.Array:
    """Cast `x` to float32 unless it is wider already: losses never run in bf16."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
    """Mean of `x` over the slots that `mask` selects; 0 if it selects none. Other slots may be NaN."""
    return jnp.sum(x, axis=axis, where=mask) / jnp.maximum(jnp.sum(mask, axis=axis), 1)
