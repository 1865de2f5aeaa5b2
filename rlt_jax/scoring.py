"""Log-probs of token rows under frozen or current weights, and the spans of them that the reward reads."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.batching import bucket_length, length_batches, pad_rows
from rlt_jax.losses import linear_token_logprobs
from rlt_jax.models import Model, Params
from rlt_jax.types import ScoreRow, Spans

RowLogprobs = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def sequence_logprobs(model: Model, params: Params, ids: jax.Array, *, temperature: float, chunk: int) -> jax.Array:
    """log π(ids_t | ids_<t) at `temperature`, f32[B, T] nats; position 0 has no context and gets 0.

    Args:
      ids: i32[B, T], right-padded. What stands at pads is junk (but finite): mask it.
      chunk: tokens whose logits exist at one time.
    """
    hidden = model.hidden(params, ids)
    logps = linear_token_logprobs(hidden[:, :-1], model.head(params), ids[:, 1:], temperature=temperature, chunk=chunk)
    return jnp.pad(logps, ((0, 0), (1, 0)))


_sequence_logprobs = jax.jit(sequence_logprobs, static_argnames=("model", "chunk"))


def row_logprobs(
    model: Model,
    params: Params,
    rows: Sequence[np.ndarray],
    *,
    temperature: float,
    batch_size: int,
    chunk: int,
) -> list[np.ndarray]:
    """`sequence_logprobs` of ragged rows: batched by length, returned in the order given.

    Args:
      rows: i32[T_i] token ids each.
      batch_size: rows of one forward pass.
    Returns:
      f32[T_i] each, nats.
    """
    batches = list(length_batches([len(row) for row in rows], batch_size))
    on_device = []
    for indices, length in batches:  # dispatch all before fetching any: the device never waits for the host
        ids = pad_rows([rows[i] for i in indices], length, num_rows=batch_size)
        on_device.append(_sequence_logprobs(model, params, jnp.asarray(ids), temperature=temperature, chunk=chunk))
    logps: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    for (indices, _), batch in zip(batches, jax.device_get(on_device)):
        for i, values in zip(indices, batch):
            logps[i] = values[: len(rows[i])]
    return logps


def gather_spans(
    rows: Sequence[ScoreRow], student_logps: Sequence[np.ndarray], teacher_logps: Sequence[np.ndarray]
) -> Spans:
    """Pick each row's solution and thought log-probs out of its two sequences, right-padded to a bucket.

    Args:
      student_logps, teacher_logps: f32[S_i], f32[T_i] nats, from `row_logprobs` over student_ids and teacher_ids.
    """
    solution = [logps[row.solution] for row, logps in zip(rows, student_logps)]
    student_thought = [logps[row.student_thought] for row, logps in zip(rows, student_logps)]
    teacher_thought = [logps[row.teacher_thought] for row, logps in zip(rows, teacher_logps)]
    pad = partial(pad_rows, num_rows=len(rows))
    solution_length = bucket_length(max(map(len, solution)))
    thought_length = bucket_length(max(map(len, student_thought)))
    return Spans(
        solution_logps=pad(solution, solution_length),
        solution_mask=pad([np.ones(len(s), bool) for s in solution], solution_length),
        student_thought_logps=pad(student_thought, thought_length),
        teacher_thought_logps=pad(teacher_thought, thought_length),
        thought_mask=pad([np.ones(len(s), bool) for s in student_thought], thought_length),
        matched=np.array([row.matched for row in rows]),
    )
