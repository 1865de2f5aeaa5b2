"""Per-token estimates of KL(policy || reference) from tokens that the policy sampled."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(logps: jax.Array, ref_logps: jax.Array, *, kind: KLKind) -> jax.Array:
    """Sampled KL estimates (J. Schulman, "Approximating KL Divergence", 2020), d = ref_logps - logps:

        k1 = -d             unbiased, signed, high variance
        k2 = d^2 / 2        biased, >= 0
        k3 = exp(d) - d - 1 unbiased, >= 0, low variance while d is small

    Args:
      logps: f32[...] nats, log-probs of the sampled tokens under the policy.
      ref_logps: f32[...] nats, the same tokens under the reference.
      kind: which estimate.
    Returns:
      f32[...] nats per token; gradients flow through both arguments. k3 overflows to inf where d > 88.
    Raises:
      ValueError: an unknown kind.
    """
    logps, ref_logps = at_least_f32(logps), at_least_f32(ref_logps)
    chex.assert_equal_shape([logps, ref_logps])
    d = ref_logps - logps
    match kind:
        case "k1":
            return -d
        case "k2":
            return 0.5 * jnp.square(d)
        case "k3":
            return jnp.expm1(d) - d  # exp(d) - d - 1 would cancel to below zero near d = 0
        case _:
            raise ValueError(f"kind={kind!r}: expected one of 'k1', 'k2', 'k3'")
