"""Supervised fine-tuning."""

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32, masked_mean


def sft_loss(logps: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of the trained tokens, all tokens of the batch weighted equally:

        L = - sum_{i,t} mask_it * logp_it / sum_{i,t} mask_it

    Micro-batches add up to the full batch's loss only if each is weighted by its number of trained tokens.

    Args:
      logps: f32[B, T] nats, log-probs of the tokens.
      mask: bool[B, T], True on tokens to train on.
    Returns:
      f32[] nats per trained token; 0 if there is none.
    """
    logps, mask = at_least_f32(logps), jnp.asarray(mask).astype(bool)
    chex.assert_rank([logps, mask], 2)
    chex.assert_equal_shape([logps, mask])
    return -masked_mean(logps, mask)
