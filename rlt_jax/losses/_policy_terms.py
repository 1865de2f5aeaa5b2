"""What each kind of loss multiplies the advantage by, before `policy_loss` averages: -l / A of its equation.

All take log-ratios that are already 0 where no token counts, and constants for all but the log-probs. A ratio that is
clipped passes no gradient, even where exp overflows: the overflow is never on the way of the gradient.
"""

import math

import jax
import jax.numpy as jnp

_LARGEST_EXPONENT = 60.0  # nats; the sigmoid of sapo has long been flat at exp(60)
_LEAST_WEIGHT = 1e-8  # vespo's bounds of a weight, as in TRL
_LARGEST_LOG_WEIGHT = 20.0  # nats


def clipped_ratio(
    log_ratio: jax.Array, advantages: jax.Array, *, low: float, high: float, delta: float | None
) -> jax.Array:
    """The c of c A = min(u A, clip(r, low, high) A) with r = exp(log_ratio), u = r or min(r, delta).

    That is one clip of r, whose bounds follow from the sign of A: at most min(high, delta) where A > 0; at least low
    and at most max(high, delta) where A <= 0, without an upper bound if there is no delta.
    """
    if (low, high) == (-jnp.inf, jnp.inf):
        return jnp.exp(log_ratio)
    above, below = (high, jnp.inf) if delta is None else (min(high, delta), max(high, delta))
    gains = advantages > 0
    lowest, highest = jnp.where(gains, -jnp.inf, low), jnp.where(gains, above, below)
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    clipped = (ratio < lowest) | (ratio > highest)  # NaN is not, and shows
    free = jnp.exp(jnp.where(clipped, 0.0, log_ratio))
    return jnp.where(clipped, jnp.clip(ratio, lowest, highest), free)


def cispo_score(log_ratio: jax.Array, logps: jax.Array, *, cap: float) -> jax.Array:
    """stop_gradient(min(r, cap)) log p."""
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), cap)) * logps


def sapo_gate(log_ratio: jax.Array, advantages: jax.Array, *, positive: float, negative: float) -> jax.Array:
    """(4 / tau) sigmoid(tau (r - 1)), tau = positive where A > 0, else negative."""
    tau = jnp.where(advantages > 0, positive, negative)
    ratio = jnp.exp(jnp.minimum(log_ratio, _LARGEST_EXPONENT))
    return 4.0 / tau * jax.nn.sigmoid(tau * (ratio - 1.0))


def vespo_phi(
    log_ratio: jax.Array,
    weights: jax.Array | None,
    mask: jax.Array,
    advantages: jax.Array,
    *,
    positive: tuple[float, float],
    negative: tuple[float, float],
) -> jax.Array:
    """phi = w^k exp(lambda (1 - w)) of each row, a constant; (k, lambda) = positive where A >= 0, else negative.

        log w = clip(sum_t clip(log_ratio_t, -20, 20) + sum_t clip(log weight_t, log 1e-8, 20), log 1e-8, 20)

    Args:
      log_ratio: f32[B, T] nats, 0 off the mask.
      weights: f32[B, T], or f32[B, 1] one for the whole row, which then counts once. None: 1.
      mask: bool[B, T].
      advantages: f32[B, 1] or f32[B, T].
    Returns:
      f32 of the shape of `advantages`.
    """
    least = math.log(_LEAST_WEIGHT)
    bound = _LARGEST_LOG_WEIGHT
    log_w = jnp.sum(jnp.clip(log_ratio, -bound, bound), axis=1, keepdims=True, where=mask)
    if weights is not None:
        where = mask if weights.shape[1] == mask.shape[1] else mask.any(axis=1, keepdims=True)
        log_weights = jnp.log(jnp.maximum(jnp.where(where, weights, 1.0), _LEAST_WEIGHT))
        log_w += jnp.sum(jnp.clip(log_weights, least, bound), axis=1, keepdims=True)
    log_w = jnp.clip(log_w, least, bound)
    gains = advantages >= 0
    k, decay = (jnp.where(gains, p, n) for p, n in zip(positive, negative, strict=True))
    return jax.lax.stop_gradient(jnp.exp(decay + k * log_w - decay * jnp.exp(log_w)))


def gmpo_ratio(
    log_ratio: jax.Array, kept: jax.Array, advantages: jax.Array, *, epsilon_low: float, epsilon_high: float
) -> jax.Array:
    """Geometric mean f32[B, 1] of each row's ratios over the tokens bool[B, T] `kept`; 1 for a row without any.

    Clipped in log space, on the side that A f32[B, 1] would move it to: at epsilon_high where A > 0, else at
    -epsilon_low.
    """
    gains = advantages > 0
    clipped = jnp.where(gains, log_ratio > epsilon_high, log_ratio < -epsilon_low)
    bounded = jnp.where(clipped, jnp.where(gains, epsilon_high, -epsilon_low), log_ratio)
    total = jnp.sum(bounded, axis=1, keepdims=True, where=kept)
    return jnp.exp(total / jnp.maximum(kept.sum(axis=1, keepdims=True), 1))
