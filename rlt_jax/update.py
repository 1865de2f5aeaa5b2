"""The update: gradients accumulated over micro-batches in fp32, then one AdamW step on exact fp32 master weights.

bf16 weights at lr 1e-6 would not move at all under AdamW (an update is far below half an ulp), so the fp32 master is
kept as the bf16 weight itself (the nearest one) plus the master's low 16 bits beside the moments.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlt_jax.batching import join_rows, length_batches, pad_rows, segments_of, sequence_batches
from rlt_jax.losses import grpo_loss, importance_weights, mix_reference, sft_loss
from rlt_jax.models import Params
from rlt_jax.placement import card, free, move_to_host, on_host
from rlt_jax.types import Array, TrainBatch

Batch = Any


class Diagnostics(NamedTuple):
    """Values beside a loss, f32[] by name."""

    means: dict[str, jax.Array]  # averaged over the micro-batches of a step
    maxima: dict[str, jax.Array]  # the largest of the micro-batches counts


Accumulate = Callable[[Params, Params, Batch, float], tuple[Params, Diagnostics]]


class TrainState(NamedTuple):
    """What a gradient step changes. Donated to `apply_gradients`: use only what it returns."""

    params: Params  # fp32 or bf16; bf16 leaves are the fp32 masters, rounded to nearest
    low: Params | None  # u16 low halves of the masters; None in place of the tree when opt_state has them or none exist
    opt_state: Any  # optax's, or host_adamw.HostState


def split_master(master: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f32 -> (nearest bf16, u16 low 16 bits); `join_master` is its exact inverse. Finite masters only.

    Rounded, not truncated: where an update makes weights a little smaller, truncation would pull each of them down by a
    whole ulp (0.4 % and more), a hundred times the update itself. Halves round away from 0.
    """
    bits = jax.lax.bitcast_convert_type(master, jnp.uint32)
    high = jax.lax.bitcast_convert_type(((bits + 0x8000) >> 16).astype(jnp.uint16), jnp.bfloat16)
    return high, bits.astype(jnp.uint16)


def join_master(high: jax.Array, low: jax.Array) -> jax.Array:
    """(bf16, u16) -> the f32 that `split_master` took apart: a low half of 0x8000 or more was rounded up."""
    rounded_up = (low >= 0x8000).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32) - rounded_up
    return jax.lax.bitcast_convert_type((bits << 16) | low.astype(jnp.uint32), jnp.float32)


def make_optimizer(
    *,
    learning_rate: float,
    max_steps: int,
    adam_beta1: float,
    adam_beta2: float,
    adam_epsilon: float,
    weight_decay: float,
    max_grad_norm: float,
    lr_scheduler: Literal["constant", "cosine", "linear"],
    warmup_ratio: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Global-norm clip, then AdamW (Loshchilov & Hutter, arXiv 1711.05101). Returns it with its learning-rate schedule.

    Args:
      lr_scheduler: "constant", "linear" (to 0) or "cosine" (to 0), each after a linear warm-up from 0.
      warmup_ratio: share of max_steps spent warming up.
    """
    warmup = round(warmup_ratio * max_steps)
    decay = max(max_steps - warmup, 1)
    main: optax.Schedule
    match lr_scheduler:
        case "constant":
            main = optax.constant_schedule(learning_rate)
        case "linear":
            main = optax.linear_schedule(learning_rate, 0.0, decay)
        case "cosine":
            main = optax.cosine_decay_schedule(learning_rate, decay)
    # step s of the warm-up has (s + 1) / (warmup + 1) of the rate: the first step is not thrown away on a rate of 0
    rate = optax.join_schedules([lambda s: learning_rate * (s + 1) / (warmup + 1), main], [warmup]) if warmup else main
    adamw = optax.adamw(rate, b1=adam_beta1, b2=adam_beta2, eps=adam_epsilon, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), adamw), rate


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Fresh state around loaded weights, whose exact values are the first masters."""
    if jax.tree.leaves(params)[0].dtype == jnp.float32:
        return TrainState(params, None, optimizer.init(params))
    low = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.uint16), params)
    shapes = jax.eval_shape(lambda p: jax.tree.map(lambda x: x.astype(jnp.float32), p), params)
    return TrainState(params, low, optimizer.init(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)))


@partial(jax.jit, static_argnames="dtype")
def zero_gradients(params: Params, *, dtype: Literal["float32", "bfloat16"] = "float32") -> Params:
    """Accumulators of the parameters' shapes."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params)


def global_norm(gradients: Params) -> jax.Array:
    """L2 norm f32[] of all gradients together, squared and summed in float32."""
    return optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), gradients))


def make_apply(
    optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, Params], tuple[TrainState, jax.Array]]:
    """A jitted `apply(state, gradients)` -> (new state, global gradient norm before clipping). The state is donated."""

    def apply(state: TrainState, gradients: Params):
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        master = state.params if state.low is None else jax.tree.map(join_master, state.params, state.low)
        updates, opt_state = optimizer.update(gradients, state.opt_state, master)
        master = optax.apply_updates(master, updates)
        norm = optax.global_norm(gradients)
        if state.low is None:
            return TrainState(master, None, opt_state), norm
        leaves, tree = jax.tree.flatten(master)
        high, low = zip(*map(split_master, leaves))
        return TrainState(jax.tree.unflatten(tree, high), jax.tree.unflatten(tree, low), opt_state), norm

    return jax.jit(apply, donate_argnums=0)


def grpo_objective(
    *,
    beta: float,
    importance_correction: Literal["none", "token", "sequence"] = "none",
    importance_cap: float = 1.0,
) -> Callable[[jax.Array, TrainBatch], tuple[jax.Array, Diagnostics]]:
    """`grpo_loss` as a function of the policy's log-probs f32[B, T] and the TrainBatch they belong to.

    On-policy: the old log-probs are the policy's own, held constant, so the ratio is 1 in value.
    """

    def objective(logps: jax.Array, batch: TrainBatch) -> tuple[jax.Array, Diagnostics]:
        weights, means, maxima = importance_weights(
            logps, batch.sampler_logps, batch.mask, correction=importance_correction, cap=importance_cap
        )
        loss, aux = grpo_loss(
            logps,
            jax.lax.stop_gradient(logps),
            batch.ref_logps,
            batch.advantages,
            batch.mask,
            beta=beta,
            token_weights=weights,
        )
        tokens = jnp.maximum(batch.mask.sum(1), 1)
        entropy = -(jnp.where(batch.mask, logps, 0.0).sum(1) / tokens).mean()
        return loss, Diagnostics({"loss": loss, "kl": aux["kl"], "entropy": entropy, **means}, maxima)

    return objective


def grpo_batches(
    ids: Sequence[np.ndarray],
    completion_lengths: Sequence[int],
    ref_logps: Sequence[np.ndarray],
    sampler_logps: Sequence[np.ndarray],
    advantages: np.ndarray,
    *,
    batch_size: int,
) -> Iterator[tuple[TrainBatch, float]]:
    """Micro-batches of a step, of like length: (TrainBatch, its weight in the step's mean over rows).

    Args:
      ids: i32[T_i] prompt + completion each; the last completion_lengths[i] tokens are the completion.
      ref_logps: f32[T_i] nats each.
      sampler_logps: f32[completion_lengths[i]] nats each, under the distribution the completions were drawn from.
      advantages: f32[B].
      batch_size: rows of a micro-batch. Rows that only fill one up have an empty mask and count nothing.
    """
    for indices, length in length_batches([len(row) for row in ids], batch_size):
        pad = partial(pad_rows, length=length, num_rows=batch_size)
        mask = [np.arange(len(ids[i])) >= len(ids[i]) - completion_lengths[i] for i in indices]
        batch = TrainBatch(
            ids=pad([ids[i] for i in indices]),
            mask=pad(mask),
            ref_logps=pad([ref_logps[i] for i in indices]),
            sampler_logps=pad([np.pad(sampler_logps[i], (len(ids[i]) - completion_lengths[i], 0)) for i in indices]),
            advantages=np.pad(advantages[indices], (0, batch_size - len(indices))),
        )
        yield batch, batch_size / len(ids)


def sft_batches(
    examples: Sequence[tuple[np.ndarray, np.ndarray]], *, batch_size: int, packed_length: int | None = None
) -> Iterator[tuple["SftBatch", float]]:
    """Micro-batches of (ids i32[T_i], trained bool[T_i]) examples: (SftBatch, its share of the trained tokens).

    Args:
      batch_size: sequences of a micro-batch, at most.
      packed_length: let examples share sequences, as `sequence_batches` says. Changes the sums by rounding alone.
    """
    ids, trained = [ids for ids, _ in examples], [trained for _, trained in examples]
    lengths = [len(row) for row in ids]
    total = sum(int(row.sum()) for row in trained)
    for sequences in sequence_batches(lengths, batch_size, packed_length=packed_length):
        segments = segments_of(lengths, sequences) if packed_length else None
        batch = SftBatch(join_rows(ids, sequences), join_rows(trained, sequences), segments)
        yield batch, int(batch.mask.sum()) / total


def sum_gradients(
    accumulate: Accumulate,
    params: Params,
    batches: Iterable[tuple[Batch, float]],
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient and diagnostics of a whole step, both over all its micro-batches and still on the device.

    Args:
      dtype: of the sums.
    Raises:
      jax.errors.JaxRuntimeError: the device's memory is too small; the sums are freed before.
    """
    gradients = zero_gradients(params, dtype=dtype)
    totals: dict[str, jax.Array] = {}
    try:
        for batch, weight in batches:
            gradients, (means, maxima) = accumulate(params, gradients, batch, weight)
            totals |= {name: totals.get(name, jnp.zeros(())) + weight * value for name, value in means.items()}
            totals |= {name: jnp.maximum(totals.get(name, value), value) for name, value in maxima.items()}
        jax.block_until_ready(gradients)  # a lack of memory shows here, where the step can still be done again
    except jax.errors.JaxRuntimeError:
        free(gradients)
        raise
    return gradients, totals


def make_reference_sync() -> Callable[[Params, Params, float], Params]:
    """`sync(reference, policy, alpha)` -> the reference, moved by `mix_reference` and back where it was.

    The old one is donated. One in pinned host memory visits the card, which must have room for it.
    """
    mix = jax.jit(mix_reference, donate_argnums=0)

    def sync(reference: Params, policy: Params, alpha: float) -> Params:
        if not on_host(reference):
            return mix(reference, policy, alpha)
        visiting = jax.block_until_ready(jax.device_put(reference, card()))
        free(reference)
        return move_to_host(mix(visiting, policy, alpha))

    return sync


class SftBatch(NamedTuple):
    """One micro-batch of supervised fine-tuning, right-padded to a bucket; T tokens hold one row, or several packed."""

    ids: Array  # i32[B, T] token ids
    mask: Array  # bool[B, T] True on trained tokens
    segments: Array | None = None  # i32[B, T] 1, 2, ... on the rows of a sequence, 0 on padding; None: one row each


def sft_objective(logps: jax.Array, batch: SftBatch) -> tuple[jax.Array, Diagnostics]:
    """`sft_loss` of the model's log-probs f32[B, T] and the SftBatch they belong to."""
    loss = sft_loss(logps, batch.mask)
    return loss, Diagnostics({"loss": loss}, {})
