"""Log-probs of token sequences under frozen or current weights, and the spans of them that the reward reads."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax import stops
from rlt_jax.batching import bucket_length, pad_rows
from rlt_jax.device.placement import on_device
from rlt_jax.errors import UserError
from rlt_jax.finite import bad_rows, check_rows, largest
from rlt_jax.losses import Targets, targets_of, wanted_entropies, wanted_logprobs
from rlt_jax.models import (
    Model,
    Params,
    Work,
    bad_tensors,
    batches_for,
    describe_tensors,
    dtype_of,
    tokens_before,
    work_of,
)
from rlt_jax.segments import Layout, MicroBatch
from rlt_jax.types import RewardLogprobs, ScoreRow

AHEAD = 4  # batches that the device has before it: it never waits for the host, and a stop never waits for more


class Pass(NamedTuple):
    """What a forward pass over ragged rows gave, and what it took."""

    logps: list[np.ndarray]  # f32[T_i] nats
    work: Work
    entropies: list[np.ndarray] | None = None  # f32[T_i] nats, of the distributions of the tokens; None: not asked for


RowLogprobs = Callable[..., Pass]  # (token ids i32[T_i], wanted positions) -> log-probs f32[T_i]


def sequence_logprobs(
    model: Model,
    params: Params,
    ids: jax.Array,
    *,
    temperature: float,
    chunk: int,
    layout: Layout | None = None,
    wanted: jax.Array | None = None,
) -> jax.Array:
    """log π(ids_t | tokens before it in its row) at `temperature`, f32[B, T] nats; a row's first token gets 0.

    Args:
      ids: i32[B, T], right-padded. The log-probs of pads are finite but meaningless: mask them.
      chunk: tokens whose logits exist at a time.
      layout: of rows that share sequences, as in `Model.hidden`.
      wanted: bool[B, T]; the other tokens get 0, and no logits are computed for them. None: all.
    """
    hidden = model.hidden(params, ids, layout=layout)
    return hidden_logprobs(
        model, params, hidden, ids, temperature=temperature, chunk=chunk, layout=layout, wanted=wanted
    )


def hidden_logprobs(
    model: Model,
    params: Params,
    hidden: jax.Array,
    ids: jax.Array,
    *,
    temperature: float,
    chunk: int,
    layout: Layout | None = None,
    wanted: jax.Array | None = None,
) -> jax.Array:
    """`sequence_logprobs` from hidden states [B, T, D] after the final norm; reads only the head of the parameters."""
    targets = _targets(ids, layout, wanted, chunk)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    return wanted_logprobs(hidden, model.head(params), targets, temperature=temperature)[0].reshape(ids.shape)


def sequence_logprobs_and_entropies(
    model: Model,
    params: Params,
    ids: jax.Array,
    *,
    temperature: float,
    chunk: int,
    layout: Layout | None = None,
    wanted: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`sequence_logprobs`, and the entropies f32[B, T] of the distributions that the tokens are of, nats."""
    targets = _targets(ids, layout, wanted, chunk)
    hidden = model.hidden(params, ids, layout=layout)
    hidden, head = hidden.reshape(-1, hidden.shape[-1]), model.head(params)
    logps, normalisers = wanted_logprobs(hidden, head, targets, temperature=temperature)
    entropies = wanted_entropies(hidden, head, targets, normalisers, temperature=temperature)
    return logps.reshape(ids.shape), entropies.reshape(ids.shape)


def _targets(ids: jax.Array, layout: Layout | None, wanted: jax.Array | None, chunk: int) -> Targets:
    before, known = tokens_before(ids, layout)
    return targets_of(ids.reshape(-1), before, (known if wanted is None else known & wanted).reshape(-1), chunk=chunk)


_sequence_logprobs = jax.jit(sequence_logprobs, static_argnames=("model", "chunk"))
_sequence_logprobs_and_entropies = jax.jit(sequence_logprobs_and_entropies, static_argnames=("model", "chunk"))


def row_logprobs(
    model: Model,
    params: Params,
    rows: Sequence[np.ndarray],
    *,
    temperature: float,
    tokens: int,
    chunk: int,
    wanted: Sequence[np.ndarray] | None = None,
    packed_length: int | None = None,
) -> list[np.ndarray]:
    """`sequence_logprobs` of ragged rows, returned in the order given. Tokens that rows share are computed once.

    Args:
      params: on the device, or in pinned host memory, from where they are copied to the device during the call.
      rows: i32[T_i] token ids each.
      tokens: per forward pass, at most, unless one row is longer. Changes results only by rounding.
      wanted: positions in each row whose log-probs are asked for; the others get 0. None: all.
      packed_length: see `micro_batches`.
    Returns:
      f32[T_i] each, nats.
    Raises:
      UserError: a row is longer than the model was made for.
    """
    batches = _laid_out(model, params, rows, tokens=tokens, packed_length=packed_length)
    return batched_logprobs(model, params, rows, batches, temperature=temperature, chunk=chunk, wanted=wanted)


def _laid_out(
    model: Model, params: Params, rows: Sequence[np.ndarray], *, tokens: int, packed_length: int | None = None
) -> list[MicroBatch]:
    """Micro-batches of rows that are not too long for the model."""
    longest, positions = max(map(len, rows), default=0), model.config.max_positions
    if longest > positions:
        raise UserError(
            f"a sequence of {longest} tokens: expected at most the {positions} positions that the model was made "
            "for: lower max_completion_length, or leave out the longest rows"
        )
    return batches_for(model.config, dtype_of(params), rows, tokens=tokens, packed_length=packed_length)


def batched_logprobs(
    model: Model,
    params: Params,
    rows: Sequence[np.ndarray],
    batches: Sequence[MicroBatch],
    *,
    temperature: float,
    chunk: int,
    wanted: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """`row_logprobs` of rows that are laid out already."""
    program = partial(_sequence_logprobs, temperature=temperature, chunk=chunk)
    return _by_row(program, model, params, rows, batches, wanted=wanted)[0]


def _by_row(
    program: Callable[..., Any],
    model: Model,
    params: Params,
    rows: Sequence[np.ndarray],
    batches: Sequence[MicroBatch],
    *,
    wanted: Sequence[np.ndarray] | None,
) -> list[list[np.ndarray]]:
    """The arrays f32[B, T] that a program returns for each micro-batch, one or several, as ragged rows f32[T_i]."""
    lengths = [len(row) for row in rows]
    found: dict[int, list[np.ndarray]] = {}
    with on_device(params) as weights:
        dispatched: deque[tuple[Any, dict[int, np.ndarray]]] = deque()

        def fetch() -> None:
            values, places = dispatched.popleft()
            flat = [value.reshape(-1) for value in jax.tree.leaves(jax.device_get(values))]
            for i, place in places.items():
                found[i] = [value[place] if wanted is None else _only(value[place], wanted[i]) for value in flat]

        for batch in batches:
            stops.check()
            places = batch.places(lengths)
            mask = np.zeros(batch.computed, bool)
            mask[np.concatenate([place if wanted is None else place[wanted[i]] for i, place in places.items()])] = True
            ids, layout = batch.ids(rows), batch.layout(lengths)
            inputs = jax.tree.map(jnp.asarray, (ids, layout, mask.reshape(ids.shape)))
            computed = program(model, weights, inputs[0], layout=inputs[1], wanted=inputs[2])
            dispatched.append((computed, places))
            if len(dispatched) > AHEAD:
                fetch()
        while dispatched:
            fetch()
    return [list(column) for column in zip(*(found[i] for i in range(len(rows))))] or [[]]


def _only(logps: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The log-probs at some positions; 0 elsewhere, also where another row asked for a token that is shared."""
    chosen = np.zeros_like(logps)
    chosen[positions] = logps[positions]
    return chosen


def finite_logprobs(
    model: Model,
    params: Params,
    rows: Sequence[np.ndarray],
    *,
    temperature: float,
    tokens: int,
    chunk: int,
    who: str,
    name: Callable[[int], str],
    wanted: Sequence[np.ndarray] | None = None,
    entropies: bool = False,
) -> Pass:
    """`row_logprobs`, which must be finite, and the work that they took.

    Args:
      entropies: also of the distributions.
      who: the model's name in messages, such as "student".
      name: of the row with an index, in messages.
    Raises:
      NotFinite: some are NaN or infinite: of which rows, and which of the model's tensors are.
    """
    batches = _laid_out(model, params, rows, tokens=tokens)
    compiled = _sequence_logprobs_and_entropies if entropies else _sequence_logprobs
    program = partial(compiled, temperature=temperature, chunk=chunk)
    logps, *others = _by_row(program, model, params, rows, batches, wanted=wanted)
    if bad_rows(logps):
        with on_device(params) as weights:
            found, size = bad_tensors(model, weights), float(largest(weights))
        why = describe_tensors(found) if found else f"all its weights are finite, the largest is {size:.3g}"
        check_rows(logps, f"the {who}'s log-probs ({why})", name=name, record={f"{who}_logps": np.concatenate(logps)})
    asked = [np.arange(1, len(row)) for row in rows] if wanted is None else wanted
    work = work_of(model.config, batches, [len(row) for row in rows], asked)
    return Pass(logps, work, others[0] if others else None)


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
