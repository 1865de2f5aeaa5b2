"""Log-probs of token sequences under frozen or current weights, and the spans of them that the reward reads."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax import stops
from rlt_jax.batching import bucket_length, join_rows, pad_rows, segments_of, sequence_batches
from rlt_jax.device.placement import on_device
from rlt_jax.errors import UserError
from rlt_jax.finite import bad_rows, check_rows, largest
from rlt_jax.losses import linear_token_logprobs
from rlt_jax.models import Model, Params, bad_tensors, describe_tensors, segment_starts
from rlt_jax.types import RewardLogprobs, ScoreRow

AHEAD = 4  # batches that the device has before it: it never waits for the host, and a stop never waits for more

RowLogprobs = Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # token ids i32[T_i] -> their log-probs f32[T_i]


def sequence_logprobs(
    model: Model,
    params: Params,
    ids: jax.Array,
    *,
    temperature: float,
    chunk: int,
    segments: jax.Array | None = None,
) -> jax.Array:
    """log π(ids_t | ids_<t) at `temperature`, f32[B, T] nats; position 0 has no context and gets 0.

    Args:
      ids: i32[B, T], right-padded. The log-probs of pads are finite but meaningless: mask them.
      chunk: tokens whose logits exist at a time.
      segments: i32[B, T] of packed rows, as in `Model.hidden`; the first token of each gets 0.
    """
    hidden = model.hidden(params, ids, segments=segments)
    logps = linear_token_logprobs(hidden[:, :-1], model.head(params), ids[:, 1:], temperature=temperature, chunk=chunk)
    logps = jnp.pad(logps, ((0, 0), (1, 0)))
    return logps if segments is None else jnp.where(segment_starts(segments), 0.0, logps)


_sequence_logprobs = jax.jit(sequence_logprobs, static_argnames=("model", "chunk"))


def row_logprobs(
    model: Model,
    params: Params,
    rows: Sequence[np.ndarray],
    *,
    temperature: float,
    batch_size: int,
    chunk: int,
    packed_length: int | None = None,
) -> list[np.ndarray]:
    """`sequence_logprobs` of ragged rows: batched by length, returned in the order given.

    Args:
      params: on the device, or in pinned host memory, from where they are copied to the device during the call.
      rows: i32[T_i] token ids each.
      batch_size: sequences per forward pass, at most.
      packed_length: let rows share sequences (see `sequence_batches`). Changes results only by rounding.
    Returns:
      f32[T_i] each, nats.
    Raises:
      UserError: a row is longer than the model was made for.
    """
    lengths = [len(row) for row in rows]
    positions = model.config.max_positions
    if max(lengths, default=0) > positions:
        raise UserError(
            f"a sequence of {max(lengths)} tokens: expected at most the {positions} positions that the model was made "
            "for: lower max_completion_length, or leave out the longest rows"
        )
    batches = sequence_batches(lengths, batch_size, packed_length=packed_length)
    with on_device(params) as weights:
        logprobs = partial(_sequence_logprobs, model, weights, temperature=temperature, chunk=chunk)
        dispatched: deque[jax.Array] = deque()
        fetched = []
        for sequences in batches:
            stops.check()
            segments = jnp.asarray(segments_of(lengths, sequences)) if packed_length else None
            dispatched.append(logprobs(jnp.asarray(join_rows(rows, sequences)), segments=segments))
            if len(dispatched) > AHEAD:
                fetched.append(jax.device_get(dispatched.popleft()))
        fetched += jax.device_get(list(dispatched))
    logps: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    for sequences, batch in zip(batches, fetched):
        for pack, values in zip(sequences.packs, batch):
            for i, row_logps in zip(pack, np.split(values, np.cumsum([lengths[i] for i in pack]))):
                logps[i] = row_logps
    return logps


def finite_logprobs(
    model: Model,
    params: Params,
    rows: Sequence[np.ndarray],
    *,
    temperature: float,
    batch_size: int,
    chunk: int,
    who: str,
    name: Callable[[int], str],
) -> list[np.ndarray]:
    """`row_logprobs`, which must be finite.

    Args:
      who: the model's name in messages, such as "student".
      name: of the row with an index, in messages.
    Raises:
      NotFinite: some are NaN or infinite: of which rows, and which of the model's tensors are.
    """
    logps = row_logprobs(model, params, rows, temperature=temperature, batch_size=batch_size, chunk=chunk)
    if bad_rows(logps):
        with on_device(params) as weights:
            found, size = bad_tensors(model, weights), float(largest(weights))
        why = describe_tensors(found) if found else f"all its weights are finite, the largest is {size:.3g}"
        check_rows(logps, f"the {who}'s log-probs ({why})", name=name, record={f"{who}_logps": np.concatenate(logps)})
    return logps


def row_name(numbers: Sequence[int]) -> Callable[[int], str]:
    """Names rows of a batch by their numbers in the data; without these, by their place in the batch."""
    return lambda i: f"explanation {i} (row {numbers[i]} of the data)" if len(numbers) else f"explanation {i}"


def gather_logprobs(
    rows: Sequence[ScoreRow],
    student_logps: Sequence[np.ndarray] | None,
    teacher_logps: Sequence[np.ndarray] | None,
) -> RewardLogprobs:
    """Select the log-probs of each row's solution and thought from its two sequences, right-padded to a bucket.

    Args:
      student_logps, teacher_logps: f32[S_i], f32[T_i] nats, from `row_logprobs` over student_ids and teacher_ids; None:
        not computed, and so not in the result.
    """
    solution = [row.solution for row in rows]
    student_thought = [row.student_thought for row in rows]
    teacher_thought = [row.teacher_thought for row in rows]
    solution_length = bucket_length(max(map(len, solution)))
    thought_length = bucket_length(max(map(len, student_thought)))
    pad = partial(pad_rows, num_rows=len(rows))

    def spans(logps: Sequence[np.ndarray] | None, places: Sequence[np.ndarray], length: int) -> np.ndarray | None:
        return None if logps is None else pad([row[place] for row, place in zip(logps, places)], length)

    return RewardLogprobs(
        solution_logps=spans(student_logps, solution, solution_length),
        solution_mask=pad([np.ones(len(s), bool) for s in solution], solution_length),
        student_thought_logps=spans(student_logps, student_thought, thought_length),
        teacher_thought_logps=spans(teacher_logps, teacher_thought, thought_length),
        thought_mask=pad([np.ones(len(s), bool) for s in student_thought], thought_length),
        matched=np.array([row.matched for row in rows]),
    )
