"""Log-probs of given tokens, from logits or straight from hidden states and the output head.

Departures from the original:
- Always float32; the original returns bf16 log-probs for bf16 logits, 0.03 nats off at -8.
- `linear_token_logprobs` has no counterpart there: float32 logits of one 8k row and 152k words take 5 GB.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from rlt_jax.losses._arrays import at_least_f32


def token_logprobs(logits: jax.Array, labels: jax.Array, *, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """log softmax(logits / temperature)[label].

    Args:
      logits: [..., V] any float dtype; computed in float32.
      labels: i32[...] token ids in [0, V), aligned with the logits: no shift is applied.
      temperature: > 0, divides the logits.
    Returns:
      f32[...] nats.
    """
    labels = jnp.asarray(labels)
    logits = at_least_f32(logits) / temperature
    chex.assert_shape(labels, logits.shape[:-1])
    return _pick(logits, labels) - jax.nn.logsumexp(logits, axis=-1)


def linear_token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    *,
    temperature: jax.typing.ArrayLike = 1.0,
    chunk: int = 1024,
) -> jax.Array:
    """token_logprobs(hidden @ head.T, labels), never holding the logits of more than `chunk` tokens.

    The backward pass recomputes each chunk's logits. Products of bf16 arrays accumulate in float32, and so does the
    head's gradient over the chunks; the logits' gradient is rounded to the dtype of hidden and head before its two
    products. Reverse mode only: gradients flow to hidden and head, none to the temperature.

    Args:
      hidden: [..., D] float, after the final norm ([B, T, D] in a model).
      head: [V, D] float, the output head, (out, in).
      labels: i32[...] token ids in [0, V), aligned with hidden: no shift is applied.
      temperature: > 0, divides the logits.
      chunk: >= 1, tokens of the flattened batch per step; memory grows with chunk * V floats.
    Returns:
      f32[...] nats.
    Raises:
      ValueError: chunk < 1.
    """
    hidden, head, labels = jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(labels)
    chex.assert_rank(head, 2)
    chex.assert_shape(hidden, (*labels.shape, head.shape[1]))
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected a number of tokens >= 1")
    tokens = labels.size
    num_chunks = max(1, -(-tokens // chunk))
    size = -(-tokens // num_chunks)  # chunks of equal size: less padding than `chunk` tokens each
    pad = num_chunks * size - tokens
    flat_hidden = jnp.pad(hidden.reshape(tokens, head.shape[1]), ((0, pad), (0, 0)))
    flat_labels = jnp.pad(labels.reshape(tokens), (0, pad))
    logps = _scan_logps(
        flat_hidden.reshape(num_chunks, size, head.shape[1]),
        head,
        flat_labels.reshape(num_chunks, size),
        at_least_f32(temperature),
    )
    return logps.reshape(-1)[:tokens].reshape(labels.shape)


class Targets(NamedTuple):
    """Tokens whose log-probs are wanted, of N, in chunks of C."""

    ids: jax.Array  # i32[N] the tokens
    before: jax.Array  # i32[N] place of the token whose hidden state predicts each
    places: jax.Array  # i32[P, C] of those that are wanted, in order; padded with N
    num_chunks: jax.Array  # i32[] chunks that are not all padding


def targets_of(ids: jax.Array, before: jax.Array, wanted: jax.Array, *, chunk: int) -> Targets:
    """The wanted tokens (bool[N]) of ids i32[N], each after the one at its place in before i32[N]; C is at most chunk.

    A token without one before it, which is its own there, has no log-prob: it must not be wanted.
    """
    size = min(chunk, ids.size)
    padded = -(-ids.size // size) * size
    (places,) = jnp.nonzero(wanted, size=padded, fill_value=ids.size)
    num_chunks = (wanted.sum() + size - 1) // size
    return Targets(ids, before, places.reshape(-1, size), num_chunks)


def wanted_logprobs(
    hidden: jax.Array, head: jax.Array, targets: Targets, *, temperature: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Log-probs of the wanted tokens alone, and log Σ exp(logits / temperature) of the states that predict them.

    Nothing is computed for other tokens, and the logits of one chunk exist at a time. Forward only.

    Args:
      hidden: [N, D] float, after the final norm.
      head: [V, D] float, the output head.
    Returns:
      f32[N] nats, 0 where no log-prob is wanted, and f32[P, C].
    """

    def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logps, normalisers = carry
        at = targets.places[i]
        before, label = (x.at[at].get(mode="clip") for x in (targets.before, targets.ids))
        logits = _logits(hidden[before], head) / temperature
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        logps = logps.at[at].set(_pick(logits, label) - normaliser, mode="drop")
        return logps, lax.dynamic_update_index_in_dim(normalisers, normaliser, i, 0)

    dtype = jnp.promote_types(jnp.promote_types(hidden.dtype, head.dtype), jnp.float32)
    start = jnp.zeros(targets.ids.shape, dtype), jnp.zeros(targets.places.shape, dtype)
    return lax.fori_loop(0, targets.num_chunks, step, start)


def wanted_entropies(
    hidden: jax.Array,
    head: jax.Array,
    targets: Targets,
    normalisers: jax.Array,
    *,
    temperature: jax.typing.ArrayLike,
) -> jax.Array:
    """Entropies of the distributions that the wanted tokens are of: H = -sum_v p_v log p_v, p = softmax(logits / T).

    Computes the logits a second time, a chunk at a time. Forward only.

    Args:
      hidden, head: as in `wanted_logprobs`.
      normalisers: that it returned.
    Returns:
      f32[N] nats, 0 where none is wanted.
    """

    def step(i: jax.Array, entropies: jax.Array) -> jax.Array:
        at = targets.places[i]
        logits = _logits(hidden[targets.before.at[at].get(mode="clip")], head) / temperature
        return entropies.at[at].set(entropy_of(logits, normalisers[i])[0], mode="drop")

    start = jnp.zeros(targets.ids.shape, normalisers.dtype)
    return lax.fori_loop(0, targets.num_chunks, step, start)


def entropy_of(logits: jax.Array, normaliser: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Entropy of softmax(logits), and its gradient with respect to the logits, dH / dz_v = -p_v (log p_v + H).

    Args:
      logits: f32[..., V]; -inf is a probability of 0.
      normaliser: f32[...] log of the sum of their exponentials.
    Returns:
      f32[...] nats, f32[..., V].
    """
    logps = logits - normaliser[..., None]
    probs = jnp.exp(logps)
    logps = jnp.where(probs > 0, logps, 0.0)
    entropy = -jnp.sum(probs * logps, axis=-1)
    return entropy, -probs * (logps + entropy[..., None])


@jax.custom_vjp
def _scan_logps(hidden: jax.Array, head: jax.Array, labels: jax.Array, temperature: jax.Array) -> jax.Array:
    """hidden [N, C, D], head [V, D], labels [N, C] -> f32[N, C], one [C, V] block of logits at a time."""
    return _scan_forward(hidden, head, labels, temperature)[0]


def _scan_forward(hidden, head, labels, temperature):
    def step(_, chunk_arrays):
        h, label = chunk_arrays
        logits = _logits(h, head) / temperature
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        return None, (_pick(logits, label) - normaliser, normaliser)

    _, (logps, normalisers) = lax.scan(step, None, (hidden, labels))
    return logps, (hidden, head, labels, temperature, normalisers)


def _scan_backward(residuals, d_logps):
    """d logits = (onehot(label) - softmax) * d_logp / temperature.

    Written out rather than left to jax.checkpoint, whose transposed products of a bf16 model mix float32 with bf16
    (which makes a float32 copy of the head) and whose scan would sum the head's gradient in bf16.
    """
    hidden, head, labels, temperature, normalisers = residuals
    common = jnp.promote_types(hidden.dtype, head.dtype)
    sum_dtype = jnp.promote_types(common, jnp.float32)

    def step(d_head, chunk_arrays):
        h, label, normaliser, d_logp = chunk_arrays
        probs = jnp.exp(_logits(h, head) / temperature - normaliser[:, None])
        is_label = jnp.arange(head.shape[0]) == label[:, None]
        d_logits = ((is_label - probs) * (d_logp / temperature)[:, None]).astype(common)
        d_h = _dot(d_logits, head.astype(common), contract=(1, 0))
        d_head += _dot(d_logits, h.astype(common), contract=(0, 0))
        return d_head, d_h.astype(hidden.dtype)

    d_head, d_hidden = lax.scan(step, jnp.zeros(head.shape, sum_dtype), (hidden, labels, normalisers, d_logps))
    return d_hidden, d_head.astype(head.dtype), None, None


_scan_logps.defvjp(_scan_forward, _scan_backward)


def _logits(h: jax.Array, head: jax.Array) -> jax.Array:
    common = jnp.promote_types(h.dtype, head.dtype)
    return _dot(h.astype(common), head.astype(common), contract=(1, 1))


def _dot(a: jax.Array, b: jax.Array, *, contract: tuple[int, int]) -> jax.Array:
    """Matrix product with a float32 result."""
    return lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,  # a GPU's TF32 would err by 1e-3 nats
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def _pick(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
