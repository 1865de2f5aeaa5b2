"""Truncated importance weights: the sampler's distribution is never exactly the trained policy's.

(IMPALA, arXiv 1802.01561, sec. 4.1, truncates ratios of a behaviour policy in the same way.) They correct for the
rounding between two programs, not for the sampler's filters: both log-probs are of the whole distribution.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32, masked_mean


def importance_weights(
    logps: jax.Array,
    sampler_logps: jax.Array,
    mask: jax.Array,
    *,
    correction: Literal["none", "token", "sequence"],
    cap: jax.typing.ArrayLike,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """Importance weights of the policy term per token, and statistics of the mismatch of sampler and policy.

        ratio_t = exp(logp_t - sampler_logp_t)
        none: 1      token: min(ratio_t, cap)      sequence: min(prod_{t in mask} ratio_t, cap), the same for all tokens

    No gradient flows through the weights.

    Args:
      logps: f32[B, T] nats, log-probs of the tokens under the trained policy before its update.
      sampler_logps: f32[B, T] nats, under the sampler's policy: of the whole vocabulary at the temperature of `logps`.
      mask: bool[B, T], True on completion tokens; other slots are not read.
      correction: which of the formulas above.
      cap: > 0, the largest weight.
    Returns:
      f32[B, T] weights, 0 off the mask; f32[] means over rows of each row's mean over its tokens: `sampler_logp_diff`
      (absolute, nats), `importance_ratio`, `importance_capped` (share of tokens whose weight was cut); and f32[] maxima
      over all tokens: `sampler_logp_diff_max`, `importance_ratio_max`.
    """
    logps, sampler_logps, mask = at_least_f32(logps), at_least_f32(sampler_logps), jnp.asarray(mask).astype(bool)
    chex.assert_rank(logps, 2)
    chex.assert_equal_shape([logps, sampler_logps, mask])
    log_ratio = jax.lax.stop_gradient(jnp.where(mask, logps, 0.0) - jnp.where(mask, sampler_logps, 0.0))
    ratio = jnp.exp(log_ratio)
    match correction:
        case "none":
            untruncated = jnp.ones_like(ratio)
            weights = untruncated
        case "token":
            untruncated = ratio
            weights = jnp.minimum(untruncated, cap)
        case "sequence":
            untruncated = jnp.broadcast_to(jnp.exp(log_ratio.sum(axis=1, keepdims=True)), ratio.shape)
            weights = jnp.minimum(untruncated, cap)
    difference = jnp.abs(log_ratio)
    means = {
        "sampler_logp_diff": jnp.mean(masked_mean(difference, mask, axis=1)),
        "importance_ratio": jnp.mean(masked_mean(ratio, mask, axis=1)),
        "importance_capped": jnp.mean(masked_mean((weights < untruncated).astype(jnp.float32), mask, axis=1)),
    }
    maxima = {"sampler_logp_diff_max": difference.max(), "importance_ratio_max": jnp.where(mask, ratio, 0.0).max()}
    return jnp.where(mask, weights, 0.0), means, maxima
