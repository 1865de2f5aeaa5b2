"""Importance weights: the sampler's distribution is never exactly the trained policy's.

(IMPALA, arXiv 1802.01561, sec. 4.1, truncates ratios of a behaviour policy in the same way.) They correct for the
rounding between two programs, not for the sampler's filters: both log-probs are of the whole distribution.
"""

from typing import get_args

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32, masked_mean
from rlt_jax.types import ImportanceCorrection, OutsideBounds


def importance_weights(
    logps: jax.Array,
    sampler_logps: jax.Array,
    mask: jax.Array,
    *,
    correction: ImportanceCorrection,
    cap: jax.typing.ArrayLike,
    low: jax.typing.ArrayLike | None = None,
    outside: OutsideBounds = "truncate",
    rows: jax.typing.ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """Importance weights of the policy term per token, and statistics of the mismatch of sampler and policy.

        ratio_t = exp(logp_t - sampler_logp_t)
        none:           1
        token:          ratio_t
        sequence:       prod_{t in mask} ratio_t, the same for all tokens: of T tokens its logarithm spreads as sqrt(T)
        sequence_mean:  its T-th root, the geometric mean, which stays near 1 however long the sequence

    and what lies outside [low, cap] is set to the nearer bound (truncate) or to 0 (mask, which drops the token or the
    sequence). No gradient flows through the weights.

    Args:
      logps: f32[B, T] nats, log-probs of the tokens under the trained policy before its update.
      sampler_logps: f32[B, T] nats, under the sampler's policy: of the whole vocabulary at the temperature of `logps`.
        NaN: the sampler has none for this token, whose ratio counts as 1.
      mask: bool[B, T], True on completion tokens; other slots are not read.
      correction: which of the formulas above.
      cap: > 0, the largest weight.
      low: the least weight, at most cap. None: no lower bound.
      outside: what becomes of the others.
      rows: completions of the step of which this is a micro-batch; its means then add up to the step's, and rows that
        only fill it up do not count. None: B.
    Returns:
      f32[B, T] weights, 0 off the mask; f32[] means over rows of each row's mean over its tokens: `sampler_logp_diff`
      (absolute, nats), `importance_ratio`, `importance_capped` (share of tokens whose weight was out of bounds) and,
      with outside="mask", `importance_masked` (share of tokens whose weight is 0); and f32[] maxima over all tokens:
      `sampler_logp_diff_max`, `importance_ratio_max`.
    Raises:
      ValueError: an unknown correction or outside.
    """
    for name, value, names in (
        ("correction", correction, get_args(ImportanceCorrection)),
        ("outside", outside, get_args(OutsideBounds)),
    ):
        if value not in names:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, names))}")
    logps, sampler_logps, mask = at_least_f32(logps), at_least_f32(sampler_logps), jnp.asarray(mask).astype(bool)
    chex.assert_rank(logps, 2)
    chex.assert_equal_shape([logps, sampler_logps, mask])
    known = mask & ~jnp.isnan(sampler_logps)
    log_ratio = jax.lax.stop_gradient(jnp.where(known, logps, 0.0) - jnp.where(known, sampler_logps, 0.0))
    ratio = jnp.exp(log_ratio)
    match correction:
        case "none":
            unbounded = jnp.ones_like(ratio)
        case "token":
            unbounded = ratio
        case "sequence":
            unbounded = jnp.broadcast_to(jnp.exp(log_ratio.sum(axis=1, keepdims=True)), ratio.shape)
        case "sequence_mean":
            unbounded = jnp.broadcast_to(jnp.exp(masked_mean(log_ratio, mask, axis=1))[:, None], ratio.shape)
    weights = unbounded
    if correction != "none":
        inside = jnp.clip(unbounded, low, cap)
        weights = inside if outside == "truncate" else jnp.where(inside == unbounded, unbounded, 0.0)
    difference = jnp.abs(log_ratio)

    def row_mean(x: jax.Array) -> jax.Array:
        row_means = masked_mean(x.astype(jnp.float32), mask, axis=1)
        return jnp.mean(row_means) if rows is None else jnp.sum(row_means) / rows

    means = {
        "sampler_logp_diff": row_mean(difference),
        "importance_ratio": row_mean(ratio),
        "importance_capped": row_mean(weights != unbounded),
    }
    if outside == "mask":
        means["importance_masked"] = row_mean(weights == 0)
    maxima = {"sampler_logp_diff_max": difference.max(), "importance_ratio_max": jnp.where(mask, ratio, 0.0).max()}
    return jnp.where(mask, weights, 0.0), means, maxima


def row_weights(weights: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[B, 1]: the one weight of each row of f32[B, T] sequence weights, 1 for a row without tokens.

    For a loss that counts the weight of a sequence once (`policy_loss`, kind vespo).
    """
    mask = jnp.asarray(mask).astype(bool)
    largest = jnp.max(weights, axis=1, keepdims=True, where=mask, initial=0.0)
    return jnp.where(mask.any(axis=1, keepdims=True), largest, 1.0)
