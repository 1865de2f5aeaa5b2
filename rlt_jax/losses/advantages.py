"""Advantages of completions, measured against the others of their prompt.

Departures from the original and from TRL 1.16.0:
- A group of equal rewards gets advantages of exactly 0; there, float32 rounding can leave tiny ones.
- Spreads of rewards up to 1e30 do not overflow.
"""

from typing import get_args

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32
from rlt_jax.types import AdvantageBaseline, AdvantageScale, RewardAggregation


def group_advantages(rewards: jax.Array, num_generations: int, *, eps: float = 1e-4) -> jax.Array:
    """Normalise rewards within each group (DeepSeekMath, arXiv 2402.03300, sec. 4.1.2):

        A_i = (r_i - mean(group)) / (std(group) + eps),   std unbiased (n - 1)

    Args:
      rewards: f32[B]; the num_generations completions of a prompt are consecutive. NaN spoils its group.
      num_generations: group size; must divide B. In a group of 1 the advantage is 0: there is nothing to compare with.
      eps: in the reward's unit; keeps the advantages of nearly equal rewards finite.
    Returns:
      f32[B]; exactly 0 in a group whose rewards are all equal.
    Raises:
      ValueError: num_generations < 1, or it does not divide B.
    """
    rewards = at_least_f32(rewards)
    chex.assert_rank(rewards, 1)
    groups = _grouped(rewards, num_generations)
    return _over(_centred(groups, None, "mean"), _std(groups, None) + eps).reshape(-1)


def component_advantages(
    rewards: jax.Array,
    weights: jax.Array,
    num_generations: int,
    *,
    scale: AdvantageScale = "group",
    aggregation: RewardAggregation = "sum_then_normalize",
    baseline: AdvantageBaseline = "mean",
    eps: float = 1e-4,
) -> jax.Array:
    """Advantages of rewards with several components R_ik, of which some may be missing.

        sum_then_normalize:  r_i = sum_k w_k R_ik,   A_i = (r_i - baseline) / (std + eps)
        normalize_then_sum:  r_i = sum_k w_k (R_ik - baseline_k) / (std_k(group) + eps),
                             A_i = (r_i - mean(batch)) / (std(batch) + eps)                 GDPO, arXiv 2601.05242

    All std are unbiased (n - 1). A component that is missing adds 0 to its completion's sum and does not count in its
    component's mean and std. A completion without any component gets 0, and counts nowhere.

    Args:
      rewards: f32[B, K]; the num_generations completions of a prompt are consecutive. NaN: there is none.
      weights: f32[K].
      num_generations: group size; must divide B. With fewer than two rewards in a group their advantages are 0.
      scale: std of the group; of the whole batch; or no division, not even by eps (Dr. GRPO, arXiv 2503.20783).
        normalize_then_sum does not read it.
      aggregation: sum the components and normalise the sum, or normalise each on its own, so that one of larger scale
        does not drown the others.
      baseline: mean of the group, or of the others in it (RLOO, arXiv 2402.14740), which is n / (n - 1) times as far.
        With leave_one_out, scale "batch" divides by the std of the advantages themselves, after taking their mean off
        them, as TRL's RLOO does.
      eps: in the reward's unit; keeps the advantages of nearly equal rewards finite.
    Returns:
      f32[B]; exactly 0 in a group whose rewards are all equal (in normalize_then_sum: in each component).
    Raises:
      ValueError: an unknown scale, aggregation or baseline; num_generations < 1, or it does not divide B.
    """
    rewards, weights = at_least_f32(rewards), at_least_f32(weights)
    chex.assert_rank([rewards, weights], [2, 1])
    chex.assert_equal(rewards.shape[1], weights.shape[0])
    _check("scale", scale, get_args(AdvantageScale))
    _check("aggregation", aggregation, get_args(RewardAggregation))
    _check("baseline", baseline, get_args(AdvantageBaseline))
    if aggregation == "normalize_then_sum":
        groups = _grouped(rewards, num_generations)
        known = ~jnp.isnan(groups)
        z = _over(_centred(groups, known, baseline), _std(groups, known) + eps)
        sums = jnp.where(jnp.isnan(rewards).all(axis=1), jnp.nan, jnp.sum(z.reshape(rewards.shape) * weights, axis=1))
        advantages = _whitened(sums, eps)
        still = _all_equal(groups, known).all(axis=2, keepdims=True)  # their mean over the batch is 0 but for rounding
        return jnp.where(jnp.broadcast_to(still[..., 0], groups.shape[:2]).reshape(-1), 0.0, advantages)
    sums = weighted_rewards(rewards, weights)
    groups = _grouped(sums, num_generations)
    known = ~jnp.isnan(groups)
    advantages = _centred(groups, known, baseline)
    match scale, baseline:
        case "none", _:
            pass
        case "group", _:
            advantages = _over(advantages, _std(groups, known) + eps)
        case "batch", "mean":
            advantages = _over(advantages, _std(sums[None], known.reshape(1, -1)) + eps)
        case "batch", "leave_one_out":
            whitened = _whitened(jnp.where(known, advantages, jnp.nan).reshape(-1), eps).reshape(groups.shape)
            advantages = jnp.where(_all_equal(groups, known), 0.0, whitened)
    return advantages.reshape(-1)


def weighted_rewards(rewards: jax.Array, weights: jax.Array) -> jax.Array:
    """f32[B] sum_k w_k R_ik of f32[B, K] rewards; NaN is missing and adds 0, a row of nothing else stays NaN."""
    rewards, weights = at_least_f32(rewards), at_least_f32(weights)
    missing = jnp.isnan(rewards)
    return jnp.where(missing.all(axis=1), jnp.nan, jnp.sum(jnp.where(missing, 0.0, rewards) * weights, axis=1))


def zero_spread(rewards: jax.Array, num_generations: int) -> jax.Array:
    """The groups whose advantages are all 0, so that they teach nothing.

    Args:
      rewards: f32[B], as `weighted_rewards` sums them; or f32[B, K] components that are normalised one by one, where
        none may differ inside the group. NaN is missing: a group with fewer than two rewards has no spread.
      num_generations: group size; must divide B.
    Returns:
      bool[B / num_generations].
    Raises:
      ValueError: num_generations < 1, or it does not divide B.
    """
    groups = _grouped(at_least_f32(rewards), num_generations)
    return _all_equal(groups, ~jnp.isnan(groups)).reshape(groups.shape[0], -1).all(axis=1)


def _grouped(rewards: jax.Array, num_generations: int) -> jax.Array:
    """[B, ...] -> [groups, num_generations, ...]."""
    if num_generations < 1:
        raise ValueError(f"num_generations={num_generations}: expected at least 1")
    if rewards.shape[0] % num_generations:
        raise ValueError(
            f"num_generations={num_generations} does not divide the {rewards.shape[0]} rewards: "
            f"give every prompt {num_generations} completions"
        )
    return rewards.reshape(-1, num_generations, *rewards.shape[1:])


# Below, `known` None is all: the count is then a constant, and dividing by one rounds as it always has.


def _all_equal(groups: jax.Array, known: jax.Array | None) -> jax.Array:
    """bool[groups, 1, ...]: the known ones do not differ."""
    if known is None:
        return jnp.all(groups == groups[:, :1], axis=1, keepdims=True)
    largest = jnp.max(groups, axis=1, keepdims=True, where=known, initial=-jnp.inf)
    least = jnp.min(groups, axis=1, keepdims=True, where=known, initial=jnp.inf)
    return ~known.any(axis=1, keepdims=True) | (largest == least)


def _centred(groups: jax.Array, known: jax.Array | None, baseline: AdvantageBaseline) -> jax.Array:
    """Distance of each from the baseline of axis 1; 0 for one that is not known or has none to compare with."""
    if known is None:
        mean = jnp.mean(groups, axis=1, keepdims=True)
    else:
        mean = jnp.sum(groups, axis=1, keepdims=True, where=known) / jnp.maximum(_count(groups, known), 1)
    centred = groups - mean
    if baseline == "leave_one_out":
        n = _count(groups, known)
        centred = centred * (n / jnp.maximum(n - 1, 1))
    still = _all_equal(groups, known)
    return jnp.where(still if known is None else still | ~known, 0.0, centred)


def _count(groups: jax.Array, known: jax.Array | None) -> jax.Array | int:
    return groups.shape[1] if known is None else known.sum(axis=1, keepdims=True)


def _std(groups: jax.Array, known: jax.Array | None) -> jax.Array:
    """Unbiased standard deviation of the known ones along axis 1, which stays as 1; 0 if they do not differ."""
    centred = _centred(groups, known, "mean")
    # Squares of a k3 reward (up to 1e30) overflow, so the spread is measured in units of the largest deviation.
    unit = jnp.max(jnp.abs(centred), axis=1, keepdims=True)
    unit = jnp.where(unit == 0, 1.0, unit)
    n = _count(groups, known)
    degrees = max(n - 1, 1) if isinstance(n, int) else jnp.maximum(n - 1, 1)
    return unit * jnp.sqrt(jnp.sum(jnp.square(centred / unit), axis=1, keepdims=True) / degrees)


def _whitened(x: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / (std + eps) over f32[B], 0 where x is NaN."""
    row, known = x[None], ~jnp.isnan(x)[None]
    return _over(_centred(row, known, "mean"), _std(row, known) + eps)[0]


def _over(centred: jax.Array, spread: jax.Array) -> jax.Array:
    """Their quotient, and 0 for 0 / 0: with eps 0, where all are equal."""
    return jnp.where(centred == 0, 0.0, centred / jnp.where(spread == 0, 1.0, spread))


def _check(name: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, names))}")
