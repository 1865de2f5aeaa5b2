"""The native sampler: a jitted JAX decode loop over the trainer's own parameter tree.

Rows (one per prompt and seed) are sampled in batches of at most `max_batch`. A batch prefills each of its prompts once,
copies their caches to the rows, and decodes in segments. Between segments the host counts tokens, lengthens the caches
by doubling, and drops rows that have ended once few still run. All shapes are bucketed, so programs are reused.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax import stops
from rlt_jax.batching import bucket_length, pad_rows
from rlt_jax.models import Cache, Params
from rlt_jax.sampling.base import SamplerState, check_params, check_requests, excluded_ids
from rlt_jax.sampling.next_token import Mode, SamplingArrays, mode_and_arrays, next_tokens
from rlt_jax.types import Completion, Request, SamplingParams

EMPTY = -1  # no token: the row had already ended; no completion: the row only fills its bucket
SHRINK = 4  # ended rows are dropped when a quarter still runs: at a half, twice as many programs would be compiled
MIN_ROWS = 8


class _Config(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...


class DecodingModel(Protocol):
    """What the sampler uses of `rlt_jax.models.Model`: pure functions of a frozen, hashable object."""

    @property
    def config(self) -> _Config: ...

    def init_cache(self, params: Params, batch: int, length: int) -> Cache:
        """An empty cache, leaves [L, batch, length, KH, hd]."""
        ...

    def prefill(self, params: Params, ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Fill positions 0..P-1 from right-padded i32[B, P]; returns (hidden [B, P, D], cache)."""
        ...

    def decode(
        self, params: Params, token_ids: jax.Array, positions: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Write token_ids i32[B] at positions i32[B], attend to keys <= position; returns (f32[B, V], cache)."""
        ...


class _Rows(NamedTuple):
    """State of the decode loop. B is a bucket of rows; fillers beyond the real rows start as ended."""

    token: jax.Array  # i32[B] newest token, not yet in the cache
    position: jax.Array  # i32[B] of that token
    ended: jax.Array  # bool[B]
    seed: jax.Array  # u32[B, 2] key data
    cache: Cache  # leaves [L, B, S, KH, hd]


def _lengthen(leaf: jax.Array, length: int) -> jax.Array:
    """Zero-pad a cache leaf [L, B, S, ...] to S = length."""
    return jnp.pad(leaf, [(0, length - leaf.shape[2]) if axis == 2 else (0, 0) for axis in range(leaf.ndim)])


@partial(jax.jit, static_argnames=("model", "length"))
def _prefill(model: DecodingModel, params: Params, prompts: jax.Array, source: jax.Array, *, length: int) -> Cache:
    """Fill the caches of B rows, with room for `length` positions; row b holds prompt source[b].

    Args:
      prompts: i32[chunks, N, P], right-padded. Chunks run one after another, which bounds the activations.
      source: i32[B] indices into the chunks · N prompts.
    """

    def prefill_chunk(ids: jax.Array) -> Cache:
        return model.prefill(params, ids, model.init_cache(params, *ids.shape))[1]

    def spread(leaf: jax.Array) -> jax.Array:  # [chunks, L, N, P, ...] -> [L, B, length, ...]
        leaf = jnp.moveaxis(leaf, 0, 1)
        leaf = leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:])
        return _lengthen(leaf[:, source], length)

    return jax.tree.map(spread, jax.lax.map(prefill_chunk, prompts))


@partial(jax.jit, static_argnames=("model", "mode", "segment"), donate_argnames=("rows",))
def _decode(
    model: DecodingModel,
    params: Params,
    rows: _Rows,
    offset: jax.Array,
    steps: jax.Array,
    eos_ids: jax.Array,
    allowed: jax.Array | None,
    arrays: SamplingArrays,
    *,
    mode: Mode,
    segment: int,
) -> tuple[_Rows, jax.Array, jax.Array]:
    """Sample up to `steps` <= segment more tokens per row, fewer if all rows end.

    Args:
      offset: i32[] tokens sampled for every row before; the key of a row's token t is fold_in(key(seed), t).
      allowed: bool[V] tokens that may be sampled; None: all.
    Returns:
      The rows, i32[segment, B] tokens (EMPTY after a row's end), f32[segment, B] log-probs.
    """

    def running(carry):
        step, rows, _, _ = carry
        return (step < steps) & ~rows.ended.all()

    def sample_one(carry):
        step, rows, tokens, logps = carry
        logits, cache = model.decode(params, rows.token, rows.position, rows.cache)
        keys = jax.vmap(jax.random.fold_in, (0, None))(seeds, offset + step)
        token, logp = next_tokens(logits, keys, arrays, mode=mode, allowed=allowed)
        tokens = tokens.at[step].set(jnp.where(rows.ended, EMPTY, token))
        logps = logps.at[step].set(logp)
        ended = rows.ended | (token[:, None] == eos_ids).any(axis=-1)
        return step + 1, _Rows(token, rows.position + 1, ended, rows.seed, cache), tokens, logps

    seeds = jax.random.wrap_key_data(rows.seed, impl="threefry2x32")
    shape = (segment, len(rows.token))
    start = (0, rows, jnp.full(shape, EMPTY, jnp.int32), jnp.zeros(shape, jnp.float32))
    _, rows, tokens, logps = jax.lax.while_loop(running, sample_one, start)
    return rows, tokens, logps


@partial(jax.jit, static_argnames=("length",))
def _repack(rows: _Rows, indices: jax.Array, *, length: int) -> _Rows:
    """Select rows (indices i32[B']) and give them room for `length` positions."""
    cache = jax.tree.map(lambda leaf: _lengthen(leaf[:, indices], length), rows.cache)
    return _Rows(rows.token[indices], rows.position[indices], rows.ended[indices], rows.seed[indices], cache)


def _shapes(params: Params) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of each leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype)) for path, leaf in leaves}


def _allowed(excluded: np.ndarray, model: DecodingModel) -> np.ndarray | None:
    """bool[V] of the tokens that may be sampled; None where that is all, so that no mask is computed with."""
    if len(excluded) == 0:
        return None
    return ~np.isin(np.arange(model.config.vocab_size), excluded)


def _row_bucket(count: int, limit: int) -> int:
    """How many rows `count` rows are padded to: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., at most `limit`."""
    return min(bucket_length(32 * count) // 32, limit)


def _shrink(width: int, live: int) -> int:
    """How many rows to continue with when `live` of `width` rows still run."""
    while live * SHRINK <= width and width // SHRINK >= MIN_ROWS:
        width //= SHRINK
    return width


class NativeSampler:
    """`Sampler` over a model's pure decode function; `rlt_jax.sampling.base.Sampler` documents the methods.

    Holds the parameter tree by reference. Only `generate` takes device memory on top of it: a cache of
    2 · L · KH · hd · (prompt + max_tokens, bucketed) numbers per row and, while it grows, the shorter one as well.

    Args:
      model: the pure functions.
      params: the trainer's parameter tree; caches take its dtype.
      eos_ids: tokens that end a completion.
      token_ids: i32[K] tokens that may be sampled, besides eos_ids: those of the tokenizer. None: all.
      max_positions: most tokens of a prompt with its completion; None: all positions of the model.
      max_batch: most rows decoded at one time.
      prefill_tokens: most prompt tokens prefilled at one time (but at least one prompt).
      segment: tokens sampled per row before the host looks at them.
      version: of `params`.
    """

    def __init__(
        self,
        model: DecodingModel,
        params: Params,
        *,
        eos_ids: Sequence[int],
        token_ids: np.ndarray | None = None,
        max_positions: int | None = None,
        max_batch: int = 256,
        prefill_tokens: int = 32768,
        segment: int = 64,
        version: int = 0,
    ):
        if min(max_batch, prefill_tokens, segment) < 1:
            raise ValueError(f"{max_batch=}, {prefill_tokens=}, {segment=}: expected positive numbers")
        if not eos_ids:
            raise ValueError("eos_ids is empty: expected at least one token that ends a completion")
        self._model = model
        self._params: Params | None = params
        self._shapes = _shapes(params)
        self._eos_ids = np.asarray(sorted(set(eos_ids)), np.int32)
        self._allowed = _allowed(excluded_ids(token_ids, eos_ids, vocab_size=model.config.vocab_size), model)
        self._max_positions = model.config.max_positions if max_positions is None else max_positions
        self._max_batch = max_batch
        self._prefill_tokens = prefill_tokens
        self._segment = segment
        self._version = version
        self._state = SamplerState()

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        max_batch: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        weights = self._ready_weights()
        check_params(params)
        check_requests(
            requests, params.max_tokens, vocab_size=self._model.config.vocab_size, max_positions=self._max_positions
        )
        rows = [(i, j) for i, request in enumerate(requests) for j in range(len(request.seeds))]
        rows.sort(key=lambda row: -len(requests[row[0]].prompt_ids))  # longest first: what does not fit fails at once
        report = on_progress if on_progress is not None else lambda count: None
        completions: dict[tuple[int, int], Completion] = {}
        sampled = 0
        batch_size = self._max_batch if max_batch is None else min(max_batch, self._max_batch)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            prompts = [np.asarray(requests[i].prompt_ids, np.int32) for i, _ in batch]
            seeds = [requests[i].seeds[j] for i, j in batch]
            done = self._sample(weights, prompts, seeds, params, report, sampled)
            completions.update(zip(batch, done, strict=True))
            sampled += sum(len(completion.token_ids) for completion in done)
        return [tuple(completions[i, j] for j in range(len(request.seeds))) for i, request in enumerate(requests)]

    def set_weights(self, params: Params, version: int) -> None:
        self._state.check_set_weights()
        shapes = _shapes(params)
        if shapes != self._shapes:
            names = sorted({name for name, _ in shapes.items() ^ self._shapes.items()})
            raise ValueError(f"weights that differ from the sampler's in name, shape or dtype: {', '.join(names)}")
        self._params = params
        self._version = version

    def sleep(self) -> None:
        self._state.check_open()
        self._state.asleep = True
        self._params = None  # else this reference would keep the memory of weights that the trainer has dropped

    def wake(self) -> None:
        self._state.check_open()
        self._state.asleep = False

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._params = None
        self._state.closed = True

    def _ready_weights(self) -> Params:
        self._state.check_generate(has_weights=self._params is not None)
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self._params)):
            raise RuntimeError("the sampler's weights were donated to an update: call set_weights with the new ones")
        assert self._params is not None  # ready: it has weights
        return self._params

    def _sample(
        self,
        weights: Params,
        prompts: Sequence[np.ndarray],
        seeds: Sequence[int],
        params: SamplingParams,
        report: Callable[[int], None],
        sampled_before: int,
    ) -> list[Completion]:
        """Sample one completion per (prompt, seed), in order; at most max_batch of them."""
        prompt_room = bucket_length(max(map(len, prompts)))
        room = self._room(0, params.max_tokens)
        rows = self._start(weights, prompts, seeds, prompt_room, prompt_room + room)
        slots = np.arange(len(rows.token))  # index of the completion that a row samples
        ended = slots >= len(seeds)
        slots[ended] = EMPTY
        mode, arrays = mode_and_arrays(params)
        tokens = np.full((len(seeds), params.max_tokens), EMPTY, np.int32)
        logps = np.zeros(tokens.shape, np.float32)
        for offset in range(0, params.max_tokens, self._segment):
            stops.check()
            steps = min(self._segment, params.max_tokens - offset)
            width = _shrink(len(slots), int((~ended).sum()))
            needed = self._room(offset, params.max_tokens)
            if width < len(slots) or needed > room:
                indices = np.argsort(ended, kind="stable")[:width]  # running rows first
                rows = _repack(rows, indices, length=prompt_room + needed)
                slots, room = slots[indices], needed
            rows, new_tokens, new_logps = _decode(
                self._model,
                weights,
                rows,
                offset,
                steps,
                self._eos_ids,
                self._allowed,
                arrays,
                mode=mode,
                segment=self._segment,
            )
            new_tokens, new_logps, ended = jax.device_get((new_tokens, new_logps, rows.ended))
            real = slots != EMPTY
            tokens[slots[real], offset : offset + steps] = new_tokens[:steps, real].T
            logps[slots[real], offset : offset + steps] = new_logps[:steps, real].T
            report(sampled_before + int((tokens != EMPTY).sum()))
            if ended.all():
                break
        return [self._completion(ids[ids != EMPTY], row_logps) for ids, row_logps in zip(tokens, logps, strict=True)]

    def _start(
        self, weights: Params, prompts: Sequence[np.ndarray], seeds: Sequence[int], prompt_room: int, length: int
    ) -> _Rows:
        """Make rows ready to decode; each distinct prompt is prefilled once.

        The newest token of a row is its prompt's last token: the first step writes its key and value again and computes
        the logits at the prompt's end, so the prefill needs no logits.
        """
        keys = [prompt.tobytes() for prompt in prompts]
        distinct = dict(zip(keys, prompts, strict=True))
        index = {key: i for i, key in enumerate(distinct)}
        count = _row_bucket(len(distinct), self._max_batch)
        chunks = -(-count // max(1, self._prefill_tokens // prompt_room))
        per_chunk = -(-count // chunks)
        padded = pad_rows(list(distinct.values()), prompt_room, num_rows=chunks * per_chunk)

        width = _row_bucket(len(seeds), self._max_batch)
        filled = [*range(len(seeds)), *[0] * (width - len(seeds))]  # fillers repeat row 0
        source = np.array([index[keys[i]] for i in filled], np.int32)
        cache = _prefill(self._model, weights, padded.reshape(chunks, per_chunk, prompt_room), source, length=length)
        return _Rows(
            token=jnp.asarray([prompts[i][-1] for i in filled], jnp.int32),
            position=jnp.asarray([len(prompts[i]) - 1 for i in filled], jnp.int32),
            ended=jnp.arange(width) >= len(seeds),
            seed=jnp.asarray([[seeds[i] >> 32 & 0xFFFFFFFF, seeds[i] & 0xFFFFFFFF] for i in filled], jnp.uint32),
            cache=cache,
        )

    def _room(self, offset: int, max_tokens: int) -> int:
        """Positions after the prompt that the next segment needs: segment · 2^i, at most max_tokens (in 32s)."""
        room = self._segment
        while room < min(offset + self._segment, max_tokens):
            room *= 2
        return min(room, -(-max_tokens // 32) * 32)

    def _completion(self, ids: np.ndarray, logps: np.ndarray) -> Completion:
        finished = bool(np.isin(ids[-1], self._eos_ids))
        return Completion(ids, logps[: len(ids)].copy(), finished, self._version)
