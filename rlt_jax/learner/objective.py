"""Training objectives: the loss of a micro-batch's log-probs, with diagnostics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlt_jax.configs import LossConfig, TrainConfig
from rlt_jax.losses import importance_weights, off_policy_keep, policy_loss, row_weights, sft_loss, totals_of
from rlt_jax.segments import Layout
from rlt_jax.types import Array, TrainBatch

SHOWN = ("kl", "phi")  # diagnostics of `policy_loss` that are reported
SHOWN_OFF_POLICY = ("ratio", "clip_low", "clip_high", "clip")  # those that say nothing where each ratio is 1


class Diagnostics(NamedTuple):
    """Values reported with a loss, f32[] by name."""

    means: dict[str, jax.Array]  # averaged over the micro-batches of a step
    maxima: dict[str, jax.Array]  # maxima over the micro-batches of a step


def policy_objective(
    config: LossConfig, *, max_completion_length: int | None = None, compare_sampler: bool = True
) -> Callable[[Any, TrainBatch], tuple[jax.Array, Diagnostics]]:
    """`losses.policy_loss` with the settings of `config`, of the policy's log-probs f32[B, T] and their TrainBatch.

    The loss is one of rows: a token that several completions share counts in each, with its advantage. Losses and means
    add up over the micro-batches of a gradient step.

    On-policy: without old log-probs they are the policy's own, held constant, so the ratio is 1 in value.

    With an entropy bonus (`reads_entropies`) the first argument is (log-probs, entropies).

    The diagnostic `kl` is left out of a batch without the reference's log-probs, which only a loss without KL allows.

    Args:
      max_completion_length: tokens; divides the loss of dr_grpo, which needs it.
      compare_sampler: the sampler's log-probs and the policy's are of one distribution. If not, they are not read, and
        the diagnostics of `importance_weights` are left out.
    Raises:
      ValueError: an importance correction without `compare_sampler`.
    """
    if not compare_sampler and config.importance_correction != "none":
        raise ValueError(
            f"importance_correction={config.importance_correction} without comparable log-probs: expected none"
        )
    beta = config.beta if config.kl_in == "loss" else 0.0

    def objective(read: Any, batch: TrainBatch) -> tuple[jax.Array, Diagnostics]:
        of_tokens = read if reads_entropies(config) else (read,)
        logps, *entropies = (jnp.where(batch.row_mask, x.reshape(-1)[batch.places], 0.0) for x in of_tokens)
        old = jax.lax.stop_gradient(logps) if batch.old_logps is None else batch.old_logps
        totals = totals_of(batch.row_mask, entropy_keep=batch.keep) if batch.totals is None else batch.totals
        weights, keep = None, batch.keep
        means: dict[str, jax.Array] = {}
        maxima: dict[str, jax.Array] = {}
        if compare_sampler:
            weights, means, maxima = importance_weights(
                old,
                batch.sampler_logps,
                batch.row_mask,
                correction=config.importance_correction,
                cap=config.importance_cap,
                low=config.importance_floor,
                outside=config.importance_outside,
                rows=totals.rows,
            )
        if config.off_policy_threshold is not None:
            behaviour = batch.sampler_logps if compare_sampler else old
            kept = off_policy_keep(
                logps, behaviour, batch.advantages, batch.row_mask, threshold=config.off_policy_threshold
            )
            means["off_policy_masked"] = jnp.sum(jnp.any(batch.row_mask, 1) & ~kept[:, 0]) / totals.rows
            keep = kept if keep is None else keep & kept
        if config.kind == "vespo" and weights is not None and config.importance_correction.startswith("sequence"):
            weights = row_weights(weights, batch.row_mask)
        loss, aux = policy_loss(
            logps,
            old,
            batch.ref_logps,
            batch.advantages,
            batch.row_mask,
            kind=config.kind,
            level=config.level,
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            delta=config.delta,
            beta=beta,
            kl_kind=config.kl_kind,
            kl_bias_correction=config.kl_bias_correction,
            token_weights=weights,
            keep=keep,
            entropies=entropies[0] if entropies else None,
            entropy_coef=config.entropy_coef,
            entropy_keep=batch.keep,
            totals=totals,
            max_completion_length=max_completion_length,
            sapo_temperature_pos=config.sapo_temperature_pos,
            sapo_temperature_neg=config.sapo_temperature_neg,
            vespo_k_pos=config.vespo_k_pos,
            vespo_lambda_pos=config.vespo_lambda_pos,
            vespo_k_neg=config.vespo_k_neg,
            vespo_lambda_neg=config.vespo_lambda_neg,
        )
        surprisal = -(logps.sum(1) / jnp.maximum(batch.row_mask.sum(1), 1)).sum() / totals.rows
        shown = {name: aux[name] for name in SHOWN if name in aux}
        if batch.old_logps is not None:
            shown |= {name: aux[name] for name in SHOWN_OFF_POLICY if name in aux}
        return loss, Diagnostics({"loss": loss, "entropy": surprisal, **shown, **means}, maxima)

    return objective


def objective_of(config: TrainConfig) -> Callable[[Any, TrainBatch], tuple[jax.Array, Diagnostics]]:
    """The objective of a run; it reads entropies as `reads_entropies` says."""
    return policy_objective(
        config.loss, max_completion_length=config.max_completion_length, compare_sampler=config.compares_sampler
    )


def reads_entropies(config: LossConfig) -> bool:
    """Whether the loss has an entropy bonus."""
    return config.entropy_coef != 0


class SftBatch(NamedTuple):
    """One micro-batch of supervised fine-tuning."""

    ids: Array  # i32[B, T] token ids
    mask: Array  # f32[B, T] how many rows train each token; or bool, where none is shared
    layout: Layout | None = None  # None: a sequence is one row


def sft_objective(logps: jax.Array, batch: SftBatch) -> tuple[jax.Array, Diagnostics]:
    """`sft_loss` of the model's log-probs f32[B, T] and the SftBatch they belong to."""
    loss = sft_loss(logps, batch.mask)
    return loss, Diagnostics({"loss": loss}, {})
