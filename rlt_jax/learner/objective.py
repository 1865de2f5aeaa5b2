"""Training objectives: the loss of a micro-batch's log-probs, with diagnostics."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlt_jax.configs import LossConfig
from rlt_jax.losses import importance_weights, policy_loss, sft_loss
from rlt_jax.segments import Layout
from rlt_jax.types import Array, TrainBatch


class Diagnostics(NamedTuple):
    """Values reported with a loss, f32[] by name."""

    means: dict[str, jax.Array]  # averaged over the micro-batches of a step
    maxima: dict[str, jax.Array]  # maxima over the micro-batches of a step


def grpo_objective(
    config: LossConfig, *, compare_sampler: bool = True
) -> Callable[[jax.Array, TrainBatch], tuple[jax.Array, Diagnostics]]:
    """`losses.policy_loss` with the settings of `config`, of the policy's log-probs f32[B, T] and their TrainBatch.

    The loss is one of rows: a token that several completions share counts in each, with its advantage.

    On-policy: the old log-probs are the policy's own, held constant, so the ratio is 1 in value.

    The diagnostic `kl` is left out of a batch without the reference's log-probs, which only beta 0 allows.

    Args:
      compare_sampler: the sampler's log-probs and the policy's are of one distribution. If not, they are not read, and
        the diagnostics of `importance_weights` are left out.
    Raises:
      ValueError: an importance correction without `compare_sampler`.
    """
    if not compare_sampler and config.importance_correction != "none":
        raise ValueError(
            f"importance_correction={config.importance_correction} without comparable log-probs: expected none"
        )

    def objective(logps: jax.Array, batch: TrainBatch) -> tuple[jax.Array, Diagnostics]:
        weights = None
        means: dict[str, jax.Array] = {}
        maxima: dict[str, jax.Array] = {}
        logps = jnp.where(batch.row_mask, logps.reshape(-1)[batch.places], 0.0)
        if compare_sampler:
            weights, means, maxima = importance_weights(
                logps,
                batch.sampler_logps,
                batch.row_mask,
                correction=config.importance_correction,
                cap=config.importance_cap,
            )
        loss, aux = policy_loss(
            logps,
            jax.lax.stop_gradient(logps),
            batch.ref_logps,
            batch.advantages,
            batch.row_mask,
            epsilon_low=None,
            beta=config.beta,
            token_weights=weights,
        )
        tokens = jnp.maximum(batch.row_mask.sum(1), 1)
        entropy = -(logps.sum(1) / tokens).mean()
        kl = {"kl": aux["kl"]} if "kl" in aux else {}
        return loss, Diagnostics({"loss": loss, **kl, "entropy": entropy, **means}, maxima)

    return objective


class SftBatch(NamedTuple):
    """One micro-batch of supervised fine-tuning."""

    ids: Array  # i32[B, T] token ids
    mask: Array  # f32[B, T] how many rows train each token; or bool, where none is shared
    layout: Layout | None = None  # None: a sequence is one row


def sft_objective(logps: jax.Array, batch: SftBatch) -> tuple[jax.Array, Diagnostics]:
    """`sft_loss` of the model's log-probs f32[B, T] and the SftBatch they belong to."""
    loss = sft_loss(logps, batch.mask)
    return loss, Diagnostics({"loss": loss}, {})
