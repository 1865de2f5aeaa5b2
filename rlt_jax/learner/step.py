"""Parts of a gradient step: micro-batches, their gradients summed over the step, the sync of the reference."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax import stops
from rlt_jax.batching import pad_rows, power_of_two
from rlt_jax.device.placement import device_memory, free, move_to_host, on_host
from rlt_jax.learner.backward import make_planned_accumulate
from rlt_jax.learner.objective import Diagnostics, SftBatch
from rlt_jax.losses import Totals, mix_reference
from rlt_jax.models import Model, Params
from rlt_jax.segments import MicroBatch
from rlt_jax.types import Dtype, TrainBatch

AHEAD = 2  # micro-batches that the device has before it: a stop never waits for more

Batch = Any  # TrainBatch or SftBatch
Accumulate = Callable[[Params, Params, Batch, float], tuple[Params, Diagnostics]]


class LossRows(NamedTuple):
    """What the loss of a gradient step reads of its B completions, besides their tokens."""

    sampler_logps: Sequence[np.ndarray]  # f32[C_i] nats, by their sampler
    advantages: np.ndarray  # f32[B]
    ref_logps: Sequence[np.ndarray] | None = None  # f32[C_i] nats; None where the loss has no KL term
    old_logps: Sequence[np.ndarray] | None = None  # f32[C_i] nats, by the policy at the draw; None: on-policy
    keep: Sequence[np.ndarray] | None = None  # bool[C_i] tokens that the policy term counts; None: all


def grpo_batches(
    ids: Sequence[np.ndarray], rows: LossRows, *, batches: Sequence[MicroBatch], longest: int
) -> Iterator[tuple[TrainBatch, float]]:
    """Micro-batches of a gradient step: (TrainBatch, 1), as their losses add up to the step's.

    Args:
      ids: i32[T_i] prompt + completion each.
      batches: of the rows of ids. Rows that fill one up have an empty mask and contribute nothing.
      longest: tokens of the longest completion there can be, so that shapes do not change from step to step.
    """
    lengths = [len(row) for row in ids]
    counts = [len(logps) for logps in rows.sampler_logps]
    kept = sum(counts) if rows.keep is None else sum(int(row.sum()) for row in rows.keep)
    totals = Totals(*map(jnp.float32, (len(ids), sum(counts), kept)))
    most = power_of_two(max((len(batch.rows) for batch in batches), default=1))
    for batch in batches:
        chosen, all_places = batch.rows, batch.places(lengths)
        places = [all_places[i][lengths[i] - counts[i] :] for i in chosen]
        mask = np.zeros(batch.computed, bool)
        mask[np.concatenate(places)] = True
        pad = partial(pad_rows, length=longest, num_rows=most)
        padded = partial(_padded, chosen=chosen, pad=pad)
        yield (
            TrainBatch(
                ids=batch.ids(ids),
                mask=mask.reshape(batch.num_sequences, batch.length),
                layout=batch.layout(lengths),
                places=pad(places),
                row_mask=pad([np.ones(len(place), bool) for place in places]),
                ref_logps=padded(rows.ref_logps),
                sampler_logps=padded(rows.sampler_logps),
                advantages=np.pad(rows.advantages[chosen], (0, most - len(chosen))),
                old_logps=padded(rows.old_logps),
                keep=padded(rows.keep),
                totals=totals,
            ),
            1.0,
        )


def _padded(
    values: Sequence[np.ndarray] | None, *, chosen: Sequence[int], pad: Callable[[list[np.ndarray]], np.ndarray]
) -> np.ndarray | None:
    """The chosen rows, padded; None of None."""
    return None if values is None else pad([values[i] for i in chosen])


def sft_batches(
    examples: Sequence[tuple[np.ndarray, np.ndarray]], *, batches: Sequence[MicroBatch]
) -> Iterator[tuple[SftBatch, float]]:
    """Micro-batches of (ids i32[T_i], trained bool[T_i]) examples: (SftBatch, its share of the trained tokens).

    A token that several examples share is trained if any of them trains it, and counts for each that does.

    Args:
      batches: of the examples' rows.
    """
    ids, trained = [ids for ids, _ in examples], [trained for _, trained in examples]
    lengths = [len(row) for row in ids]
    total = sum(int(row.sum()) for row in trained)
    for batch in batches:
        counts = np.zeros(batch.computed, np.float32)
        for i, places in batch.places(lengths).items():
            counts[places[trained[i]]] += 1
        shape = (batch.num_sequences, batch.length)
        yield SftBatch(batch.ids(ids), counts.reshape(shape), batch.layout(lengths)), float(counts.sum()) / total


SumGradients = Callable[..., tuple[Params, dict[str, jax.Array]]]


def make_sum_gradients(
    model: Model,
    objective: Callable[[jax.Array, Any], tuple[jax.Array, Diagnostics]],
    *,
    temperature: float,
    chunk: int,
    dtype: Dtype,
    saved: Callable[[int, int], tuple[int, int]],
    entropies: bool = False,
) -> SumGradients:
    """Make `sums(params, batches, save_activations=True)`: `sum_gradients` of an objective, compiled once per shape.

    Args:
      objective: of the log-probs of a micro-batch, from `learner.objective`.
      temperature, chunk: as `make_layerwise_accumulate`.
      dtype: of the sums.
      saved: (sequences, tokens of each) -> layers whose attention, and whose MLP, a micro-batch saves for its backward
        pass. Without `save_activations` none is saved, and all are recomputed.
      entropies: the objective reads them, as in `make_layerwise_accumulate`.
    """
    make = partial(make_planned_accumulate, model, objective, temperature=temperature, chunk=chunk, entropies=entropies)
    saving, recomputing = make(saved=saved), make(saved=lambda batch, tokens: (0, 0))

    def sums(
        params: Params, batches: Iterable[tuple[Batch, float]], *, save_activations: bool = True
    ) -> tuple[Params, dict[str, jax.Array]]:
        return sum_gradients(saving if save_activations else recomputing, params, batches, dtype=dtype)

    return sums


def sum_gradients(
    accumulate: Accumulate,
    params: Params,
    batches: Iterable[tuple[Batch, float]],
    *,
    dtype: Dtype = "float32",
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradients and diagnostics of a whole step, over all its micro-batches; both stay on the device.

    Args:
      dtype: of the sums.
    Raises:
      jax.errors.JaxRuntimeError: the device ran out of memory; the sums have been freed.
      StopRequested: likewise.
    """
    gradients = zero_gradients(params, dtype=dtype)
    totals: dict[str, jax.Array] = {}
    dispatched: deque[Any] = deque()
    try:
        for batch, weight in batches:
            stops.check()
            gradients, (means, maxima) = accumulate(params, gradients, batch, weight)
            dispatched.append((means, maxima))
            if len(dispatched) > AHEAD:
                jax.block_until_ready(dispatched.popleft())
            totals |= {name: totals.get(name, jnp.zeros(())) + weight * value for name, value in means.items()}
            totals |= {name: jnp.maximum(totals.get(name, value), value) for name, value in maxima.items()}
        jax.block_until_ready(gradients)  # running out of memory shows here, where the step can still be retried
    except (jax.errors.JaxRuntimeError, stops.StopRequested):
        free(gradients)
        raise
    return gradients, totals


@partial(jax.jit, static_argnames="dtype")
def zero_gradients(params: Params, *, dtype: Dtype = "float32") -> Params:
    """Gradient sums of 0, in the parameters' shapes."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params)


def make_reference_sync() -> Callable[[Params, Params, float], Params]:
    """`sync(reference, policy, alpha)` -> the reference after `mix_reference`, in the memory where it was.

    The old reference is donated. One in pinned host memory is copied to the GPU, which must have room for it, and back.
    """
    mix = jax.jit(mix_reference, donate_argnums=0)

    def sync(reference: Params, policy: Params, alpha: float) -> Params:
        if not on_host(reference):
            return mix(reference, policy, alpha)
        on_gpu = jax.block_until_ready(jax.device_put(reference, device_memory()))
        free(reference)
        return move_to_host(mix(on_gpu, policy, alpha))

    return sync
