"""Supervised fine-tuning."""

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32


def sft_loss(logps: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of the trained tokens, all tokens of the batch weighted equally:

        L = - sum_{i,t} mask_it * logp_it / sum_{i,t} mask_it

    Micro-batches add up to the full batch's loss only if each is weighted by its number of trained tokens.

    Args:
      logps: f32[B, T] nats, log-probs of the tokens.
      mask: bool[B, T], True on tokens to train on; or f32[B, T], how often each counts, where rows share tokens.
    Returns:
      f32[] nats per trained token; 0 if there is none.
    """
    logps, counts = at_least_f32(logps), at_least_f32(mask)
    chex.assert_rank([logps, counts], 2)
    chex.assert_equal_shape([logps, counts])
    return -jnp.sum(jnp.where(counts > 0, logps, 0.0) * counts) / jnp.maximum(jnp.sum(counts), 1)
