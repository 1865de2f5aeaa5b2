"""Log-probs of one sequence under weights in pinned host memory, of which the GPU has room for a part at a time.

While vLLM is awake there may be no room for the policy beside it (`memory.policy`). A sync is verified then all the
same: embedding, groups of layers and head visit the GPU in turn.

    x = embedding[ids];  for each part: x = layers(x);  log-probs = head(norm(x))

JAX copies whole arrays between host and GPU, and an array holds one matrix of all layers. So each part takes every
array of the layers to the GPU, keeps its own rows and frees the rest: with P parts the layers cross the bus P times.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.batching import bucket_length
from rlt_jax.device.pinned import PART_BYTES, layers_of_a_part
from rlt_jax.device.placement import free, nbytes, on_device, on_host
from rlt_jax.models import Context, Model, Params
from rlt_jax.rewards.logprobs import hidden_logprobs, row_logprobs


def sequence_logprobs_by_parts(
    model: Model,
    params: Params,
    ids: np.ndarray,
    *,
    temperature: float,
    chunk: int,
    part_bytes: int = PART_BYTES,
) -> np.ndarray:
    """log π(ids_t | ids_<t) at `temperature`, f32[T] nats; position 0 has no context and gets 0.

    Args:
      params: on the device, where `row_logprobs` reads them, or in pinned host memory.
      ids: i32[T].
      chunk: tokens whose logits exist at a time.
      part_bytes: most bytes of layers on the GPU together; one array that holds a matrix of all layers comes on top.
    """
    if not on_host(params):
        return row_logprobs(model, params, [ids], temperature=temperature, tokens=len(ids), chunk=chunk)[0]
    padded = jnp.asarray(np.pad(ids, (0, bucket_length(len(ids)) - len(ids)))[None])
    with on_device({"embed_tokens": params["embed_tokens"]}) as table:
        x, context = jax.block_until_ready(_enter(model, table, padded))
    num_layers = model.config.num_hidden_layers
    count = layers_of_a_part(nbytes(params["layers"]) // num_layers, num_layers, part_bytes=part_bytes)
    for start in range(0, num_layers, count):
        rows = min(count, num_layers - start)
        layers = jax.tree.map(partial(_take, start=start, rows=rows), params["layers"])
        x = jax.block_until_ready(_pass(model, layers, x, context))
        free(layers)
    end = "embed_tokens" if model.config.tie_word_embeddings else "lm_head"
    with on_device({"norm": params["norm"], end: params[end]}) as head:
        logps = jax.device_get(_leave(model, head, x, padded, temperature, chunk))
    return logps[: len(ids)]


@partial(jax.jit, static_argnames="model")
def _enter(model: Model, table: Params, ids: jax.Array) -> tuple[jax.Array, Context]:
    return model.embed(table, ids), model.context(table, ids)


@partial(jax.jit, static_argnames="model", donate_argnames="x")
def _pass(model: Model, layers: Params, x: jax.Array, context: Context) -> jax.Array:
    return jax.lax.scan(lambda x, layer: (model.layer(layer, x, context), None), x, layers)[0]


@partial(jax.jit, static_argnames=("model", "chunk"))
def _leave(model: Model, head: Params, x: jax.Array, ids: jax.Array, temperature: float, chunk: int) -> jax.Array:
    hidden = model.final_norm(head, x)
    return hidden_logprobs(model, head, hidden, ids, temperature=temperature, chunk=chunk)[0]


def _take(leaf: jax.Array, *, start: int, rows: int) -> jax.Array:
    """Some layers of an array of all, on the device."""
    with on_device(leaf) as whole:
        return jax.block_until_ready(_rows(whole, start, rows))


@partial(jax.jit, static_argnames="rows")
def _rows(leaf: jax.Array, start: int, rows: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(leaf, start, rows)
