"""Gradient accumulation for a model whose parameters fill the GPU: one layer's gradient exists at a time.

    forward   x_{l+1} = layer_l(x_l), every x_l saved;  log-probs z of the tokens;  g = weight · dL/dz
    backward  head and last norm give dx_L;  l = L-1 .. 0: (dθ_l, dx_l) = vjp(layer_l at x_l)(dx_{l+1}), A_l += dθ_l;
              A_embedding[ids] += dx_0

The fp32 accumulators A are donated and updated in place inside the loops, so they take no memory beyond their size.
Recomputing a layer inside its vjp is the rematerialisation of Chen et al. (arXiv 1604.06174), written out.

With 16-bit weights, precision is lost where `jax.grad` also loses it: the values and gradients passed between
operations, and each layer's gradient of one micro-batch, are rounded to the weights' type (products are summed in
fp32). The gradients of head and embedding are summed in fp32, over chunks and over the occurrences of a token, and are
not rounded; those of `jax.grad` are.

The log-probs of tokens off the batch's mask are never computed: no loss reads them, and for long prompts the head would
spend as much time on them as on the completions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp
from jax import lax

from rlt_jax.losses import Targets, entropy_of, targets_of, wanted_entropies, wanted_logprobs
from rlt_jax.models import Context, Model, Params, tokens_before
from rlt_jax.types import Array


class MaskedBatch(Protocol):
    """Fields that every micro-batch has; a loss may read others.

    One whose rows share sequences also has a `layout` (see `Model.hidden`). None or no such field: one row each.
    """

    @property
    def ids(self) -> Array:
        """i32[B, T] token ids, right-padded."""

    @property
    def mask(self) -> Array:
        """bool[B, T], True on the tokens whose log-probs the loss reads."""


Batch = TypeVar("Batch", bound=MaskedBatch)
Aux = Any  # pytree of arrays
LossOfLogps = Callable[[Any, Batch], tuple[jax.Array, Aux]]
Tree = TypeVar("Tree")


def make_layerwise_accumulate(
    model: Model,
    loss_of_logps: LossOfLogps[Batch],
    *,
    temperature: float,
    chunk: int,
    saved_mlp: int = 0,
    saved_attention: int = 0,
    entropies: bool = False,
) -> Callable[[Params, Params, Batch, float], tuple[Params, Aux]]:
    """A jitted `accumulate(params, accumulators, batch, weight)` -> (accumulators + weight·∇loss, aux).

    The accumulators are donated. Compiles once for each shape of `batch`. Memory on top of parameters and accumulators,
    with B·T tokens and w bytes per weight: L·B·T·D·w for the layers' inputs, the other saved activations, and about the
    larger of one layer's backward pass and 4 + w bytes for each of min(chunk, B·T)·V logits.

    Args:
      loss_of_logps: (logps f32[B, T] nats, batch) -> (f32[] loss, aux). The log-prob at position t is that of the token
        at t; it is 0 off batch.mask and on the first token of a row or segment, which has no context.
      temperature: > 0, divides the logits.
      chunk: >= 1, tokens whose logits exist at a time. Each chunk reads and writes the head's whole accumulator once.
      saved_mlp: number of last layers that save the MLP's gate and up projections in the forward pass, 2·inner·w bytes
        per token and layer, so that the backward pass does not recompute them.
      saved_attention: number of last layers that save their attention and do not recompute it: queries, keys, values,
        output, and the softmax sums if attention is a fused kernel, else all B·H·T² probabilities.
      entropies: loss_of_logps gets (logps, entropies f32[B, T] of the tokens' distributions, nats) in place of logps;
        the logits are computed once more.
    Raises:
      ValueError: an argument outside its range.
    """
    num_layers = model.config.num_hidden_layers
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: expected a number > 0")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected a number of tokens >= 1")
    for name, count in (("saved_mlp", saved_mlp), ("saved_attention", saved_attention)):
        if not 0 <= count <= num_layers:
            raise ValueError(f"{name}={count}: expected 0 to {num_layers}, the model's layers")
    ranges = _layer_ranges(num_layers, saved_attention=saved_attention, saved_mlp=saved_mlp)
    head_name = "embed_tokens" if model.config.tie_word_embeddings else "lm_head"

    def accumulate(params: Params, accumulators: Params, batch: Batch, weight: float) -> tuple[Params, Aux]:
        chex.assert_rank(batch.ids, 2)
        chex.assert_equal_shape([batch.ids, batch.mask])
        chex.assert_trees_all_equal_shapes(params, accumulators)
        ids, mask = jnp.asarray(batch.ids), jnp.asarray(batch.mask).astype(bool)
        layout = jax.tree.map(jnp.asarray, getattr(batch, "layout", None))
        before, known = tokens_before(ids, layout)
        context = model.context(params, ids, layout=layout)
        x, saved = _forward(model, params, model.embed(params, ids), context, ranges)
        # Checkpointed, so that none of its float32 arrays is held during the head's backward pass.
        norm = jax.checkpoint(lambda norm_params, x: model.final_norm({"norm": norm_params}, x))
        hidden, norm_vjp = jax.vjp(norm, params["norm"], x)

        targets = targets_of(ids.reshape(-1), before, (mask & known).reshape(-1), chunk=chunk)
        flat = hidden.reshape(-1, hidden.shape[-1])
        logps, normalisers = wanted_logprobs(flat, model.head(params), targets, temperature=temperature)
        read: Any = logps.reshape(ids.shape)
        if entropies:
            found = wanted_entropies(flat, model.head(params), targets, normalisers, temperature=temperature)
            read = read, found.reshape(ids.shape)
        d_read, aux = jax.grad(loss_of_logps, has_aux=True)(read, batch)
        # Scaled here, not at every sum: gradients are linear in it.
        d_logps, *d_entropies = (weight * d.reshape(-1) for d in jax.tree.leaves(d_read))
        d_flat, head = _head_backward(
            model, params, model.head(accumulators), flat, targets, normalisers, d_logps, d_entropies, temperature
        )

        d_norm, d_x = norm_vjp(d_flat.reshape(hidden.shape))
        d_x, layers = _backward(model, params, accumulators["layers"], saved, d_x, context, ranges)
        sums = accumulators | {
            "layers": layers,
            "norm": jax.tree.map(_add, accumulators["norm"], d_norm),
            head_name: {"weight": head},
        }
        embedding = sums["embed_tokens"]["weight"]  # the head's as well, when tied
        return sums | {"embed_tokens": {"weight": embedding.at[ids].add(d_x.astype(embedding.dtype))}}, aux

    return jax.jit(accumulate, donate_argnums=1, compiler_options=_compiler_options())


def make_planned_accumulate(
    model: Model,
    loss_of_logps: LossOfLogps[Batch],
    *,
    temperature: float,
    chunk: int,
    saved: Callable[[int, int], tuple[int, int]],
    entropies: bool = False,
) -> Callable[[Params, Params, Batch, float], tuple[Params, Aux]]:
    """`make_layerwise_accumulate`, saving for each shape of a micro-batch the activations that fit.

    Args:
      saved: (sequences, tokens of each) -> (saved_attention, saved_mlp).
    """

    @cache
    def layerwise(saved_attention: int, saved_mlp: int) -> Callable:
        return make_layerwise_accumulate(
            model,
            loss_of_logps,
            temperature=temperature,
            chunk=chunk,
            saved_attention=saved_attention,
            saved_mlp=saved_mlp,
            entropies=entropies,
        )

    def accumulate(params: Params, accumulators: Params, batch: Batch, weight: float) -> tuple[Params, Aux]:
        return layerwise(*saved(*batch.ids.shape))(params, accumulators, batch, weight)

    return accumulate


def _compiler_options() -> dict[str, Any]:
    """Keep what the plan of the whole GPU decided to save; XLA would recompute parts of it to stay below 80 %."""
    return {"xla_gpu_memory_limit_slop_factor": 140} if jax.default_backend() == "gpu" else {}


class _LayerRange(NamedTuple):
    """Consecutive layers, start <= l < stop, that save the same activations."""

    start: int
    stop: int
    attention: bool
    mlp: bool


class _Saved(NamedTuple):
    """Activations saved for a layer's backward pass; None: recomputed."""

    x: jax.Array  # [B, T, D] its input
    attention: tuple[jax.Array, Callable] | None  # [B, T, H, hd] attention's output, and its pullback
    gate_and_up: tuple[jax.Array, jax.Array] | None  # [B, T, inner] each


@partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["indices", "structure"])
@dataclass(frozen=True)
class _Shared:
    """A pytree that stores each distinct array once: attention's output also occurs in its pullback.

    Arrays of the context, which all layers share, such as the mask of packed rows in the pullback, are not stored.
    """

    arrays: list[jax.Array]
    indices: tuple[int, ...]  # of each leaf in [*leaves of the context, *arrays]
    structure: jax.tree_util.PyTreeDef


def _share(tree: Any, context: Context) -> _Shared:
    leaves, structure = jax.tree.flatten(tree)
    common = [id(leaf) for leaf in jax.tree.leaves(context)]
    arrays = {id(leaf): leaf for leaf in leaves if id(leaf) not in common}
    order = [*common, *arrays]
    return _Shared(list(arrays.values()), tuple(order.index(id(leaf)) for leaf in leaves), structure)


def _unshare(shared: _Shared, context: Context) -> Any:
    arrays = [*jax.tree.leaves(context), *shared.arrays]
    return jax.tree.unflatten(shared.structure, [arrays[index] for index in shared.indices])


def _layer_ranges(num_layers: int, *, saved_attention: int, saved_mlp: int) -> list[_LayerRange]:
    attention_from, mlp_from = num_layers - saved_attention, num_layers - saved_mlp
    cuts = sorted({0, attention_from, mlp_from, num_layers})
    return [_LayerRange(i, j, attention=i >= attention_from, mlp=i >= mlp_from) for i, j in pairwise(cuts)]


def _forward(
    model: Model, params: Params, x: jax.Array, context: Context, ranges: list[_LayerRange]
) -> tuple[jax.Array, list[_Shared]]:
    """The last layer's output [B, T, D], and each range's _Saved, stacked by layer on axis 0."""

    def step(layers: _LayerRange, x: jax.Array, index: jax.Array) -> tuple[jax.Array, _Shared]:
        weights = _at(params["layers"], index)
        qkv = model.project(weights, x, context)
        attend = partial(model.attend, context=context)
        attention = jax.vjp(attend, *qkv) if layers.attention else None
        attended = attend(*qkv) if attention is None else attention[0]
        middle = model.add_attention(weights, x, attended)
        gate_and_up = model.gate_and_up(weights, middle)
        saved = _Saved(x, attention, gate_and_up if layers.mlp else None)
        return model.add_mlp(weights, middle, *gate_and_up), _share(saved, context)

    saved = []
    for layers in ranges:
        # Scan over layer indices, not over a slice of the weights, which would be a copy of them.
        indices = jnp.arange(layers.start, layers.stop)
        x, saved_of_range = lax.scan(partial(step, layers), x, indices)
        saved.append(saved_of_range)
    return x, saved


def _backward(
    model: Model,
    params: Params,
    accumulators: Params,
    saved: list[_Shared],
    d_x: jax.Array,
    context: Context,
    ranges: list[_LayerRange],
) -> tuple[jax.Array, Params]:
    """The gradient [B, T, D] of the first layer's input, and the accumulators with the layers' gradients added."""

    def step(
        layers: _LayerRange, saved_of_range: _Shared, n: jax.Array, carry: tuple[jax.Array, Params]
    ) -> tuple[jax.Array, Params]:
        d_y, accumulators = carry
        index = layers.stop - 1 - n
        weights = _at(params["layers"], index)
        saved = _unshare(_at(saved_of_range, index - layers.start), context)
        d_x, gradient = _layer_backward(model, weights, saved, d_y, context)
        return d_x, jax.tree.map(lambda a, g: _add_at(a, index, g), accumulators, gradient)

    for layers, saved_of_range in zip(reversed(ranges), reversed(saved)):
        length = layers.stop - layers.start
        d_x, accumulators = lax.fori_loop(0, length, partial(step, layers, saved_of_range), (d_x, accumulators))
    return d_x, accumulators


def _layer_backward(
    model: Model, weights: Params, saved: _Saved, d_y: jax.Array, context: Context
) -> tuple[jax.Array, Params]:
    """The gradients of a layer's input [B, T, D] and of its weights, from the gradient of its output [B, T, D].

    One vjp per stage. The compiler drops a stage's output if a saved one replaces it or nothing reads it.
    """
    qkv, project_vjp = jax.vjp(partial(model.project, context=context), weights, saved.x)
    if saved.attention is None:
        attended, attend_vjp = jax.vjp(partial(model.attend, context=context), *qkv)
    else:
        attended, attend_vjp = saved.attention
    middle, add_attention_vjp = jax.vjp(model.add_attention, weights, saved.x, attended)
    gate_and_up, gate_and_up_vjp = jax.vjp(model.gate_and_up, weights, middle)
    if saved.gate_and_up is not None:
        gate_and_up = saved.gate_and_up
    _, add_mlp_vjp = jax.vjp(model.add_mlp, weights, middle, *gate_and_up)

    d_down, d_residual, *d_gate_and_up = add_mlp_vjp(d_y)
    d_inner, d_normalised = gate_and_up_vjp(tuple(d_gate_and_up))
    d_output, d_x, d_attended = add_attention_vjp(d_residual + d_normalised)
    d_qkv, d_input = project_vjp(attend_vjp(d_attended))
    # Each stage has gradients of 0 for the weights of the others, and the compiler drops sums with 0.
    return d_x + d_input, jax.tree.map(lambda *parts: sum(parts), d_down, d_inner, d_output, d_qkv)


def _head_backward(
    model: Model,
    params: Params,
    accumulator: jax.Array,
    hidden: jax.Array,
    targets: Targets,
    normalisers: jax.Array,
    d_logps: jax.Array,
    d_entropies: list[jax.Array],
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """The gradient [B·T, D] of hidden, and the head's accumulator f32[V, D] with its gradient added, both from

    d logits = ((onehot(label) - p) · d logp - p · (log p + H) · d H) / temperature,   p = softmax(logits / temperature)

    The second term only if the loss reads the entropies H: d_entropies has one array, else none.

    Several tokens may be predicted by one hidden state, the last of a prompt: their gradients add up.
    """
    head = model.head(params)

    def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_hidden, accumulator = carry
        at = targets.places[i]
        before, label = (x.at[at].get(mode="clip") for x in (targets.before, targets.ids))
        h = hidden[before]
        scale = d_logps.at[at].get(mode="fill", fill_value=0.0) / temperature
        logits = model.unembed(params, h) / temperature
        probs = jnp.exp(logits - normalisers[i][:, None])
        is_label = jnp.arange(head.shape[0]) == label[:, None]
        d_logits = (is_label - probs) * scale[:, None]
        for d_entropy in d_entropies:
            of_entropy = d_entropy.at[at].get(mode="fill", fill_value=0.0) / temperature
            d_logits += entropy_of(logits, normalisers[i])[1] * of_entropy[:, None]
        d_logits = d_logits.astype(head.dtype)  # in the weights' type, for the tensor cores
        d_h = _product("nv,vd->nd", d_logits, head).astype(hidden.dtype)
        return d_hidden.at[before].add(d_h), _add(accumulator, _product("nv,nd->vd", d_logits, h))

    return lax.fori_loop(0, targets.num_chunks, step, (jnp.zeros_like(hidden), accumulator))


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product summed in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None  # a GPU would multiply float32 in TF32
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)


def _at(tree: Tree, index: jax.Array) -> Tree:
    """One layer of arrays stacked on axis 0."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


def _add(accumulator: jax.Array, gradient: jax.Array) -> jax.Array:
    """The sum, added in float32 and rounded to the accumulator's type."""
    return (accumulator.astype(jnp.float32) + gradient.astype(jnp.float32)).astype(accumulator.dtype)


def _add_at(accumulator: jax.Array, index: jax.Array, gradient: jax.Array) -> jax.Array:
    """Slice, add and update, which a loop does in place on its carry (`.at[].add` would be a scatter)."""
    row = lax.dynamic_index_in_dim(accumulator, index, keepdims=False)
    return lax.dynamic_update_index_in_dim(accumulator, _add(row, gradient), index, 0)
