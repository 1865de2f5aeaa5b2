"""Advantages of the completions of a draw, and which of them the loss counts, as the configuration says."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.batching import bucket_length, pad_rows
from rlt_jax.configs import TrainConfig
from rlt_jax.errors import UserError
from rlt_jax.finite import check_rows, stage
from rlt_jax.losses import KLKind, component_advantages, kl_estimate, zero_spread
from rlt_jax.rewards.logprobs import Pass
from rlt_jax.rewards.scorer import Scored
from rlt_jax.types import Completion


class Advantages(NamedTuple):
    """Of the B completions of a draw."""

    values: np.ndarray  # f32[B]
    trained: np.ndarray  # bool[B] which the loss counts


def advantages_of(
    config: TrainConfig,
    scored: Scored,
    completions: Sequence[Completion],
    policy: Pass | None,
    reference: Pass | None,
    *,
    reward_name: str,
    name: Callable[[int], str],
) -> Advantages:
    """`losses.component_advantages` of the rewards, or of their terms, after the KL that is subtracted from them.

    Args:
      policy, reference: log-probs of the completions, 0 elsewhere; read where the KL is in the reward.
      reward_name: what gave the rewards, in messages.
      name: of the row with an index, in messages.
    Raises:
      UserError: the reward's terms are asked for, and it has none.
      NotFinite: rewards are so large that their mean overflows.
    """
    settings, group = config.advantages, config.num_generations
    rewards = scored.reward
    terms = rewards[:, None]
    if settings.aggregation == "normalize_then_sum":
        if not scored.rewards.terms:
            raise UserError(
                "advantages.aggregation=normalize_then_sum normalises each term of the reward, but "
                f"{reward_name} names none: let it return Rewards(reward, components, terms=...), or leave it out"
            )
        terms = np.stack([np.asarray(scored.rewards.components[term]) for term in scored.rewards.terms], axis=1)
    weights = [1.0] * terms.shape[1]
    if (kl := reward_kl(config, policy, reference)) is not None:
        terms, weights = np.concatenate([terms, -kl[:, None]], axis=1), [*weights, config.loss.beta]
    values = np.asarray(
        _component_advantages(
            jnp.asarray(terms, jnp.float32),
            jnp.asarray(weights, jnp.float32),
            group,
            scale=settings.scale,
            aggregation=settings.aggregation,
            baseline=settings.baseline,
        )
    )
    why = f"the advantages (of rewards as large as {np.abs(rewards).max():.3g}, by {reward_name})"
    with stage("advantages", reward=rewards, advantages=values):
        check_rows(values, why, name=name)
    trained = np.ones(len(values), bool)
    if settings.zero_spread == "drop":
        trained &= ~np.repeat(even_groups(rewards, group), group)
    if settings.cut_off == "mask":
        trained &= np.array([completion.finished for completion in completions])
    return Advantages(np.where(trained, values, 0.0).astype(np.float32), trained)


def even_groups(rewards: np.ndarray, num_generations: int) -> np.ndarray:
    """The groups, bool[B / num_generations], whose rewards f32[B] are all equal."""
    return np.asarray(_zero_spread(jnp.asarray(rewards), num_generations))


def reward_kl(config: TrainConfig, policy: Pass | None, reference: Pass | None) -> np.ndarray | None:
    """Estimates of the KL to the reference, summed over each completion, f32[B] nats; None: it is not in the reward.

    Args:
      policy, reference: as in `advantages_of`.
    """
    if config.loss.kl_in == "loss" or config.loss.beta == 0 or policy is None or reference is None:
        return None
    length = max(map(len, policy.logps))
    pad = partial(pad_rows, length=bucket_length(length), num_rows=len(policy.logps))
    logps, ref_logps = pad(policy.logps), pad(reference.logps)
    return np.asarray(_row_sums(jnp.asarray(logps), jnp.asarray(ref_logps), kind=config.loss.kl_kind))


@partial(jax.jit, static_argnames="kind")
def _row_sums(logps: jax.Array, ref_logps: jax.Array, *, kind: KLKind) -> jax.Array:
    return kl_estimate(logps, ref_logps, kind=kind).sum(axis=1)


_component_advantages = jax.jit(
    component_advantages, static_argnames=("num_generations", "scale", "aggregation", "baseline")
)
_zero_spread = jax.jit(zero_spread, static_argnames="num_generations")
