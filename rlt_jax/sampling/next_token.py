"""From logits to the next token: temperature, min-p, top-k and top-p in vLLM's order, and fast categorical sampling.

Departure from vLLM: tokens that tie with the last one kept by top-p are kept too (vLLM keeps those its sort put last).
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlt_jax.types import SamplingParams

BLOCK = 128  # tokens; a sample takes V / BLOCK + BLOCK random numbers, since random bits cost more than a tiny model

Mode = Literal["greedy", "plain", "min_p", "sorted"]  # what a compiled program has to do; only "sorted" sorts


class SamplingArrays(NamedTuple):
    """Sampling parameters as arrays, so that changing them recompiles nothing."""

    temperature: jax.Array  # f32[]
    top_k: jax.Array  # i32[] 0 = off
    top_p: jax.Array  # f32[] 1 = off
    min_p: jax.Array  # f32[] 0 = off


def mode_and_arrays(params: SamplingParams) -> tuple[Mode, SamplingArrays]:
    """The cheapest mode that can sample with `params`, and the arrays to pass to it."""
    arrays = SamplingArrays(
        temperature=jnp.float32(params.temperature),
        top_k=jnp.int32(params.top_k),
        top_p=jnp.float32(params.top_p),
        min_p=jnp.float32(params.min_p),
    )
    if params.temperature == 0:
        return "greedy", arrays
    if params.top_k > 0 or params.top_p < 1:
        return "sorted", arrays
    return ("min_p" if params.min_p > 0 else "plain"), arrays


def process_logits(logits: jax.Array, params: SamplingArrays, *, mode: Mode) -> jax.Array:
    """Apply temperature, then min-p (arXiv 2407.01082), top-k and top-p (arXiv 1904.09751); dropped tokens become -inf.

    Each filter sees the distribution renormalised after the previous ones. The likeliest token always stays.

    Args:
      logits: f32[B, V].
      mode: any but "greedy".
    Returns:
      f32[B, V].
    """
    chex.assert_rank(logits, 2)
    logits = logits / params.temperature
    if mode == "plain":
        return logits
    likeliest = logits.max(axis=-1, keepdims=True)
    logits = jnp.where(logits < likeliest + jnp.log(params.min_p), -jnp.inf, logits)
    if mode == "min_p":
        return logits
    vocab = logits.shape[-1]
    ranked = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(params.top_k == 0, vocab, jnp.minimum(params.top_k, vocab))
    kth = jnp.take(ranked, k - 1, axis=-1)[:, None]
    ranked = jnp.where(ranked < kth, -jnp.inf, ranked)
    probs = jax.nn.softmax(ranked, axis=-1)
    mass_above = jnp.cumsum(probs, axis=-1) - probs
    within = (mass_above < params.top_p) | (params.top_p >= 1)  # when off, a tail whose mass above rounds to 1 stays
    kept = within & (ranked > -jnp.inf)
    lowest = jnp.where(kept, ranked, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits < lowest, -jnp.inf, logits)


def sample_tokens(logits: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sample one token per row from softmax(logits), and return its log-prob.

    Gumbel-max in two stages, first a block of BLOCK tokens, then a token in it:
    P(token) = P(block) · P(token | block), so the distribution is that of one Gumbel-max over the vocabulary. A row's
    token depends only on its own key and logits, and a token at -inf is never sampled.

    Args:
      logits: f32[B, V], -inf for excluded tokens.
      keys: key[B], one PRNG key per row.
    Returns:
      i32[B] tokens, f32[B] log-probs in nats.
    """
    chex.assert_rank([logits, keys], [2, 1])
    blocks = -(-logits.shape[-1] // BLOCK)
    padding = ((0, 0), (0, blocks * BLOCK - logits.shape[-1]))
    tiles = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(-1, blocks, BLOCK)
    block_logits = jax.nn.logsumexp(tiles, axis=-1)

    def sample_row(tiles, block_logits, key):
        noise = jax.random.gumbel(key, (blocks + BLOCK,))
        block = jnp.argmax(block_logits + noise[:blocks])
        token = jnp.argmax(tiles[block] + noise[blocks:])
        return block * BLOCK + token, tiles[block, token]

    tokens, logits_of_tokens = jax.vmap(sample_row)(tiles, block_logits, keys)
    return tokens.astype(jnp.int32), logits_of_tokens - jax.nn.logsumexp(block_logits, axis=-1)


def next_tokens(
    logits: jax.Array, keys: jax.Array, params: SamplingArrays, *, mode: Mode, allowed: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Choose the next token of every row, and return it with its log-prob.

    The log-prob is that of softmax(logits / temperature) over the whole vocabulary, before any filter: what a trainer
    computes. A greedy token has it at temperature 1, as in vLLM.

    Args:
      logits: f32[B, V].
      keys: key[B], one PRNG key per row.
      allowed: bool[V], tokens that may be chosen; the filters see the distribution over these. None: all.
    Returns:
      i32[B] tokens, f32[B] log-probs in nats.
    """
    candidates = logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)
    if mode == "greedy":
        tokens = jnp.argmax(candidates, axis=-1).astype(jnp.int32)
        return tokens, _log_probs(logits, tokens)
    tokens, logps = sample_tokens(process_logits(candidates, params, mode=mode), keys)
    if mode == "plain" and allowed is None:
        return tokens, logps  # nothing was cut
    return tokens, _log_probs(logits / params.temperature, tokens)


def _log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """f32[B] log-probs of tokens i32[B] under softmax(logits f32[B, V])."""
    own = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return own - jax.nn.logsumexp(logits, axis=-1)
