"""Which tokens are trained, and which of them the policy term keeps.

Departure from the original: with `lengths`, the padding of a completion without EOS is masked; the original trains on
it.
"""

from collections.abc import Iterable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.losses._arrays import at_least_f32, masked_mean


def completion_mask(
    completion_ids: jax.Array, eos_id: int | Sequence[int] | jax.Array, *, lengths: jax.Array | None = None
) -> jax.Array:
    """True on the tokens of each completion up to and including its first EOS.

    For padded completions from elsewhere. Training knows the length of each: see `learner.step.grpo_batches`.

    Args:
      completion_ids: i32[B, T] right-padded completions.
      eos_id: one id, or several, any of which ends a completion.
      lengths: i32[B] number of tokens sampled, including EOS; nothing after them is True. None: a row without EOS is
        all True, including its padding, as in the original.
    Returns:
      bool[B, T].
    """
    completion_ids = jnp.asarray(completion_ids)
    chex.assert_rank(completion_ids, 2)
    is_eos = jnp.isin(completion_ids, jnp.atleast_1d(jnp.asarray(eos_id, completion_ids.dtype)))
    eos_before = jnp.cumsum(is_eos, axis=1) - is_eos
    mask = eos_before == 0
    if lengths is None:
        return mask
    lengths = jnp.asarray(lengths)
    chex.assert_shape(lengths, completion_ids.shape[:1])
    return mask & (jnp.arange(completion_ids.shape[1]) < lengths[:, None])


def off_policy_keep(
    logps: jax.Array, behaviour_logps: jax.Array, advantages: jax.Array, mask: jax.Array, *, threshold: float
) -> jax.Array:
    """Sequences that the policy term keeps (off-policy sequence masking, DeepSeek-V3.2, arXiv 2512.02556, sec. 3.1):

        keep_i = A_i >= 0   or   mean_{t in mask_i} (behaviour_logp_it - logp_it) <= threshold

    so that only sequences are dropped which are to become less likely and already have.

    Args:
      logps: f32[B, T] nats, log-probs of the tokens under the policy.
      behaviour_logps: f32[B, T] nats, under what sampled them (or the policy at the start of the step). NaN: not known,
        counts as no difference.
      advantages: f32[B].
      mask: bool[B, T], True on trained tokens.
      threshold: nats per token.
    Returns:
      bool[B, 1], without gradient.
    """
    logps, behaviour_logps = (jax.lax.stop_gradient(at_least_f32(x)) for x in (logps, behaviour_logps))
    advantages, mask = at_least_f32(advantages), jnp.asarray(mask).astype(bool)
    chex.assert_rank([logps, advantages], [2, 1])
    chex.assert_equal_shape([logps, behaviour_logps, mask])
    chex.assert_equal_shape_prefix([logps, advantages], 1)
    difference = jnp.where(mask & ~jnp.isnan(behaviour_logps), behaviour_logps - logps, 0.0)
    return (advantages >= 0)[:, None] | (masked_mean(difference, mask, axis=1) <= threshold)[:, None]


def top_entropy_threshold(entropies: Iterable[np.ndarray], *, quantile: float) -> float:
    """The entropy from which on a token is in the top `quantile` of a step (arXiv 2506.01939), on the host.

    Args:
      entropies: f32[...] nats, arrays of any shapes with the trained tokens' entropies, of the whole step.
      quantile: share of the tokens to keep, in [0, 1]. 1: all; 0: those that no token exceeds.
    Returns:
      nats; the (1 - quantile) quantile, linear between tokens. -inf without tokens.
    Raises:
      ValueError: a quantile outside [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile={quantile}: expected the share of tokens to keep, from 0 to 1")
    values = np.concatenate([np.zeros(0, np.float32), *(np.asarray(x, np.float32).reshape(-1) for x in entropies)])
    return float(np.float32(np.quantile(values.astype(np.float64), 1 - quantile))) if values.size else -np.inf


def entropy_at_least(entropies: jax.Array, mask: jax.Array, threshold: jax.typing.ArrayLike) -> jax.Array:
    """bool[B, T]: tokens on the mask with an entropy f32[B, T] of at least `threshold`, nats; no gradient."""
    entropies, mask = at_least_f32(entropies), jnp.asarray(mask).astype(bool)
    chex.assert_equal_shape([entropies, mask])
    return mask & (entropies >= threshold)


def top_entropy_keep(entropies: jax.Array, mask: jax.Array, *, quantile: float) -> jax.Array:
    """The tokens of highest entropy of a step whose rows stand in one array (arXiv 2506.01939), not under jit.

    For micro-batches, take `top_entropy_threshold` of the step and apply it to each with `entropy_at_least`.

    Args:
      entropies: f32[B, T] nats.
      mask: bool[B, T], True on trained tokens.
      quantile: share of them to keep, in [0, 1].
    Returns:
      bool[B, T].
    Raises:
      ValueError: a quantile outside [0, 1].
    """
    taken = np.asarray(entropies, np.float32)[np.asarray(mask).astype(bool)]
    return entropy_at_least(entropies, mask, top_entropy_threshold([taken], quantile=quantile))
