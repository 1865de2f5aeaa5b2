"""Group-relative policy optimisation: completion mask, advantages, loss.

Departures from the original:
- A group of equal rewards gets advantages of exactly 0; in the original, float32 rounding can leave tiny ones.
- With `lengths`, the padding of a completion without EOS is masked; the original trains on it.
- `token_weights` (importance weights against the sampler's mismatch) do not exist in the original; None omits them.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32, masked_mean
from rlt_jax.losses.kl import kl_estimate


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


def group_advantages(rewards: jax.Array, num_generations: int, *, eps: float = 1e-4) -> jax.Array:
    """Normalise rewards within each group (DeepSeekMath, arXiv 2402.03300, sec. 4.1.2):

        A_i = (r_i - mean(group)) / (std(group) + eps),   std unbiased (n - 1)

    Args:
      rewards: f32[B]; the num_generations completions of a prompt are consecutive.
      num_generations: group size; must divide B. In a group of 1 the advantage is 0: there is nothing to compare with.
      eps: in the reward's unit; keeps the advantages of nearly equal rewards finite.
    Returns:
      f32[B]; exactly 0 in a group whose rewards are all equal.
    Raises:
      ValueError: num_generations < 1, or it does not divide B.
    """
    rewards = at_least_f32(rewards)
    chex.assert_rank(rewards, 1)
    if num_generations < 1:
        raise ValueError(f"num_generations={num_generations}: expected at least 1")
    if rewards.shape[0] % num_generations:
        raise ValueError(
            f"num_generations={num_generations} does not divide the {rewards.shape[0]} rewards: "
            f"give every prompt {num_generations} completions"
        )
    groups = rewards.reshape(-1, num_generations)
    all_equal = jnp.all(groups == groups[:, :1], axis=1, keepdims=True)
    centred = groups - jnp.mean(groups, axis=1, keepdims=True)
    # Squares of a k3 reward (up to 1e30) overflow, so the spread is measured in units of the largest deviation.
    scale = jnp.where(all_equal, 1.0, jnp.max(jnp.abs(centred), axis=1, keepdims=True))
    variance = jnp.sum(jnp.square(centred / scale), axis=1, keepdims=True) / max(num_generations - 1, 1)
    return jnp.where(all_equal, 0.0, centred / (scale * jnp.sqrt(variance) + eps)).reshape(-1)


def grpo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    ref_logps: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    beta: jax.typing.ArrayLike,
    token_weights: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """GRPO objective (DeepSeekMath, arXiv 2402.03300, eq. 3 and 4, without the clip, which never binds on-policy):

        L = mean_{i of B}  mean_{t in mask_i} [ beta * k3_it - w_it * ratio_it * A_i ]
        ratio = exp(logp - old_logp),   k3 = exp(ref - logp) - (ref - logp) - 1

    The outer mean runs over all B rows: a row without any mask contributes 0 and counts in B, so that micro-batches of
    equal size average to the full batch. The gradient flows only through `logps`; the other arrays are constants.

    Args:
      logps: f32[B, T] nats, log-probs of the tokens under the policy.
      old_logps: f32[B, T] nats, under the policy in the ratio's denominator. On-policy: the policy's own (ratio 1 in
        value); the sampler's log-probs belong in `token_weights`.
      ref_logps: f32[B, T] nats, under the reference; None only with beta 0, and then there is no `kl`.
      advantages: f32[B].
      mask: bool[B, T], True on completion tokens up to and including EOS.
      beta: weight of the KL term.
      token_weights: f32[B, T], truncated importance weights (`importance_weights`), or None for 1. They
        correct the policy term for tokens sampled from a slightly different distribution. The KL term is not weighted:
        it holds the policy near the reference on every token, down-weighted ones too.
    Returns:
      f32[] loss, and f32[] diagnostics: `kl` (nats per token, averaged like the loss), `policy_loss` (the loss without
      its KL term) and `ratio` (mean over all masked tokens).
    Raises:
      ValueError: a beta other than 0 without ref_logps.
    """
    logps, mask = at_least_f32(logps), jnp.asarray(mask).astype(bool)
    old_logps, advantages, weights = (
        jax.lax.stop_gradient(at_least_f32(x))
        for x in (old_logps, advantages, jnp.ones_like(logps) if token_weights is None else token_weights)
    )
    chex.assert_rank([logps, advantages], [2, 1])
    chex.assert_equal_shape([logps, old_logps, mask, weights])
    chex.assert_equal_shape_prefix([logps, advantages], 1)

    def zero_pads(x: jax.Array) -> jax.Array:
        # Before exp and before every product: a pad's inf or NaN must not reach the gradient, where 0 * inf is NaN.
        return jnp.where(mask, x, 0.0)

    logps = zero_pads(logps)
    ratio = jnp.exp(logps - zero_pads(old_logps))
    surrogate = zero_pads(weights) * ratio * zero_pads(advantages[:, None])
    policy_loss = -jnp.mean(masked_mean(surrogate, mask, axis=1))
    aux = {"policy_loss": policy_loss, "ratio": masked_mean(ratio, mask)}
    if ref_logps is None:
        if isinstance(beta, jax.core.Tracer) or beta != 0:  # a traced one is not known to be 0
            raise ValueError(f"beta={beta} without ref_logps: the KL term needs the reference's log-probs")
        return policy_loss, jax.lax.stop_gradient(aux)
    ref_logps = jax.lax.stop_gradient(at_least_f32(ref_logps))
    chex.assert_equal_shape([logps, ref_logps])
    mean_kl = jnp.mean(masked_mean(kl_estimate(logps, zero_pads(ref_logps), kind="k3"), mask, axis=1))
    return policy_loss + beta * mean_kl, jax.lax.stop_gradient({"kl": mean_kl, **aux})
