"""The moving reference policy."""

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32


def mix_reference(reference: chex.ArrayTree, policy: chex.ArrayTree, alpha: jax.typing.ArrayLike) -> chex.ArrayTree:
    """Soft update of the reference (TR-DPO, arXiv 2404.09656, eq. 5):

        ref <- alpha * policy + (1 - alpha) * ref

    Args:
      reference, policy: trees of parameters with equal structure and shapes.
      alpha: f32[] in [0, 1]; 1 copies the policy.
    Returns:
      The new reference, in the reference's dtypes; computed in float32, so that bf16 rounds once.
    """
    chex.assert_trees_all_equal_shapes(reference, policy)
    share = jnp.asarray(alpha)

    def mix(ref: jax.Array, new: jax.Array) -> jax.Array:
        return (share * at_least_f32(new) + (1 - share) * at_least_f32(ref)).astype(ref.dtype)

    return jax.tree.map(mix, reference, policy)
