"""`Model`: the pure functions of a parameter tree that the rest of the code calls, for all families of models.

Parameters are a plain nested dict, named as in a checkpoint without its "model." prefix; the leaves below "layers"
stack all layers on axis 0, for a scan.

Departures from the Hugging Face implementation:
- Logits are accumulated and returned in float32 even for bfloat16 weights, since log-probs are computed from them.
- RoPE is computed in float32 and rounded once: three roundings in bfloat16 made log-probs a tenth noisier.
- Positions count real tokens when a mask is given; RoPE is relative, so left padding changes rounding only.
"""

from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from rlt_jax.models.attention import attend, is_flat, rotation, segment_bias
from rlt_jax.models.config import ModelConfig
from rlt_jax.models.decoder import Decoder, matmul
from rlt_jax.segments import Layout

Params = dict[str, Any]  # nested dict of arrays


def dtype_of(params: Params) -> jnp.dtype:
    """The type of a model's weights."""
    return params["embed_tokens"]["weight"].dtype


class Context(NamedTuple):
    """What every layer needs besides its input: the rotation of each position, and which keys a query attends to."""

    cos: jax.Array  # f32[B or 1, T, 1, hd]
    sin: jax.Array  # f32[B or 1, T, 1, hd]
    key_mask: jax.Array | None  # bool[B, 1, 1, T], True = real token; None = only the causal mask
    layout: Layout | None = None  # of segments; None = a sequence is a row
    bias: jax.Array | None = None  # [B, 1, T, T] added to the scores: 0 inside of a row, MASKED across rows; None where
    # a kernel reads the layout


class Cache(NamedTuple):
    """Rotated keys, and values, of all layers, by position."""

    keys: jax.Array  # [L, B, S, KH, hd]
    values: jax.Array  # [L, B, S, KH, hd]


@dataclass(frozen=True)
class Model:
    """Pure functions of a parameter tree: make it with `build_model`, pass it as a static argument or close over it.

    Models with equal configurations are equal, so a jitted function compiles once for both.
    """

    config: ModelConfig
    layer_graphdef: nnx.GraphDef = field(compare=False, repr=False)
    norm_graphdef: nnx.GraphDef = field(compare=False, repr=False)

    def shapes(self, dtype: jnp.dtype | str) -> Params:
        """The parameter tree as jax.ShapeDtypeStruct leaves; nothing is allocated."""
        return _abstract(self.config, jnp.dtype(dtype))[0]

    def embed(self, params: Params, ids: jax.Array) -> jax.Array:
        """Token embeddings [B, T, D] of ids i32[B, T]."""
        return params["embed_tokens"]["weight"][ids]

    def context(
        self,
        params: Params,
        ids: jax.Array,
        attention_mask: jax.Array | None = None,
        layout: Layout | None = None,
    ) -> Context:
        """What the layers need for a forward pass over ids i32[B, T]; attention_mask and layout as in `hidden`."""
        if layout is not None:
            if attention_mask is not None:
                raise ValueError("attention_mask and layout: expected one of them, as padding is a segment")
            chex.assert_equal_shape([ids, layout.segment])
            dtype = dtype_of(params)
            flat = is_flat(dtype, self.config.head_dim) and len(layout.spans) > 0
            bias = None if flat else segment_bias(layout, dtype)
            return Context(*rotation(self.config, layout.position), None, layout, bias)
        if attention_mask is None:
            return Context(*rotation(self.config, jnp.arange(ids.shape[1])[None]), None)
        chex.assert_equal_shape([ids, attention_mask])
        real = attention_mask.astype(bool)
        positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
        return Context(*rotation(self.config, positions), real[:, None, None, :])

    def layer(self, layer_params: Params, x: jax.Array, context: Context) -> jax.Array:
        """One layer, [B, T, D] -> [B, T, D]; layer_params is the layer's slice of params["layers"], without axis 0."""
        attended = self.attend(*self.project(layer_params, x, context), context)
        x = self.add_attention(layer_params, x, attended)
        return self.add_mlp(layer_params, x, *self.gate_and_up(layer_params, x))

    # The stages of `layer`, for a backward pass that recomputes some of them; layer_params as there.

    def project(self, layer_params: Params, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries [B, T, H, hd], rotated keys [B, T, KH, hd] and values [B, T, KH, hd] of a layer's input."""
        return nnx.merge(self.layer_graphdef, layer_params).project(x, context.cos, context.sin)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> jax.Array:
        """Causal softmax attention [B, T, H, hd]; the only stage without parameters."""
        return attend(q, k, v, context.key_mask, layout=context.layout, bias=context.bias, causal=True)

    def add_attention(self, layer_params: Params, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's input [B, T, D] plus what attention returned [B, T, H, hd], projected."""
        return nnx.merge(self.layer_graphdef, layer_params).add_attention(x, attended)

    def gate_and_up(self, layer_params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The MLP's inner projections [B, T, inner] of the sum after attention, before the activation."""
        return nnx.merge(self.layer_graphdef, layer_params).gate_and_up(x)

    def add_mlp(self, layer_params: Params, x: jax.Array, gate: jax.Array, up: jax.Array) -> jax.Array:
        """The sum after attention plus the MLP's output: the layer's output [B, T, D]."""
        return nnx.merge(self.layer_graphdef, layer_params).add_mlp(x, gate, up)

    def final_norm(self, params: Params, x: jax.Array) -> jax.Array:
        """The norm after the last layer, [B, T, D] -> [B, T, D]; reads only params["norm"]."""
        return nnx.merge(self.norm_graphdef, params["norm"])(x)

    def head(self, params: Params) -> jax.Array:
        """Output weights [V, D], which are the embedding if tied."""
        return params["embed_tokens" if self.config.tie_word_embeddings else "lm_head"]["weight"]

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states [..., D] after the final norm."""
        return matmul(hidden, self.head(params), preferred=jnp.float32)

    @partial(jax.jit, static_argnames="self")
    def hidden(
        self,
        params: Params,
        ids: jax.Array,
        *,
        attention_mask: jax.Array | None = None,
        layout: Layout | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm, [B, T, D] in the parameters' dtype; arbitrary but finite where padded.

        Args:
          ids: i32[B, T] token ids.
          attention_mask: bool or int [B, T], nonzero = real token, padding on either side. None: rows are right-padded,
            and the causal mask alone hides pads from real tokens (fastest: cuDNN on a GPU in 16 bits).
          layout: of rows that share sequences, and tokens (`segments.MicroBatch`). Where no kernel takes it, a mask
            takes B·T² numbers in the parameters' dtype.
        Raises:
          ValueError: attention_mask and layout are both given.
        """
        chex.assert_rank(ids, 2)
        context = self.context(params, ids, attention_mask, layout)

        def step(x: jax.Array, layer_params: Params) -> tuple[jax.Array, None]:
            return self.layer(layer_params, x, context), None

        x, _ = jax.lax.scan(step, self.embed(params, ids), params["layers"])
        return self.final_norm(params, x)

    @partial(jax.jit, static_argnames="self")
    def logits(self, params: Params, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Next-token logits f32[B, T, V] of left- or right-padded rows; arguments as in `hidden`."""
        return self.unembed(params, self.hidden(params, input_ids, attention_mask=attention_mask))

    def init_cache(self, params: Params, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of up to `length` positions, in the parameters' dtype."""
        config = self.config
        shape = (config.num_hidden_layers, batch, length, config.num_key_value_heads, config.head_dim)
        dtype = dtype_of(params)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @partial(jax.jit, static_argnames="self")
    def prefill(self, params: Params, ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read right-padded prompts into positions 0 .. P-1 of the cache.

        What pads leave after a row's end is never used: `decode` overwrites a position before attending to it.

        Args:
          ids: i32[B, P], P at most the cache's length.
        Returns:
          hidden [B, P, D] after the final norm, and the cache.
        """
        chex.assert_rank(ids, 2)
        chex.assert_axis_dimension(cache.keys, 1, ids.shape[0])
        chex.assert_axis_dimension_gteq(cache.keys, 2, ids.shape[1])
        context = self.context(params, ids)

        # The cache is carried, not scanned over, so that the loop updates it in place.
        def step(carry: tuple[jax.Array, Cache], scanned: tuple[Params, jax.Array]):
            x, cache = carry
            layer_params, index = scanned
            layer = nnx.merge(self.layer_graphdef, layer_params)
            q, k, v = layer.project(x, context.cos, context.sin)
            start = (index, 0, 0, 0, 0)
            cache = Cache(
                jax.lax.dynamic_update_slice(cache.keys, k[None], start),
                jax.lax.dynamic_update_slice(cache.values, v[None], start),
            )
            return (layer.finish(x, attend(q, k, v, None, causal=True)), cache), None

        (x, cache), _ = jax.lax.scan(step, (self.embed(params, ids), cache), self._indexed_layers(params))
        return self.final_norm(params, x), cache

    @partial(jax.jit, static_argnames="self")
    def decode(
        self, params: Params, token_ids: jax.Array, positions: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Read one token per row: row b's goes to position positions[b], and attends to positions up to that.

        A position at or beyond the cache's length is not written (a finished row may stay there).

        Args:
          token_ids, positions: i32[B].
        Returns:
          Next-token logits f32[B, V], and the cache.
        """
        chex.assert_rank([token_ids, positions], 1)
        chex.assert_axis_dimension(cache.keys, 1, token_ids.shape[0])
        cos, sin = rotation(self.config, positions[:, None])
        rows = jnp.arange(token_ids.shape[0])
        visible = jnp.arange(cache.keys.shape[2]) <= positions[:, None, None, None]  # bool[B, 1, 1, S]

        def step(carry: tuple[jax.Array, Cache], scanned: tuple[Params, jax.Array]):
            x, cache = carry
            layer_params, index = scanned
            layer = nnx.merge(self.layer_graphdef, layer_params)
            q, k, v = layer.project(x, cos, sin)
            cache = Cache(
                cache.keys.at[index, rows, positions].set(k[:, 0]),
                cache.values.at[index, rows, positions].set(v[:, 0]),
            )
            attended = attend(q, cache.keys[index], cache.values[index], visible, causal=False)
            return (layer.finish(x, attended), cache), None

        x = self.embed(params, token_ids[:, None])
        (x, cache), _ = jax.lax.scan(step, (x, cache), self._indexed_layers(params))
        return self.unembed(params, self.final_norm(params, x)[:, 0]), cache

    def _indexed_layers(self, params: Params) -> tuple[Params, jax.Array]:
        return params["layers"], jnp.arange(self.config.num_hidden_layers)


def build_model(config: ModelConfig) -> Model:
    """Build the model of a configuration, without parameters."""
    _, layer_graphdef, norm_graphdef = _abstract(config, jnp.dtype(jnp.float32))
    return Model(config, layer_graphdef, norm_graphdef)


def random_params(config: ModelConfig, seed: int, dtype: jnp.dtype) -> Params:
    """Random parameters: normal(0, initializer_range) matrices, zero biases, norms of one."""
    return _init_params(config, dtype, jax.random.key(seed))


@partial(jax.jit, static_argnums=(0, 1))
def _init_params(config: ModelConfig, dtype: jnp.dtype, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(Decoder(config, dtype, nnx.Rngs(key)), nnx.Param))


@lru_cache(maxsize=32)
def _abstract(config: ModelConfig, dtype: jnp.dtype) -> tuple[Params, nnx.GraphDef, nnx.GraphDef]:
    """The parameter tree's shapes, and the graph definitions of a layer and of the final norm."""
    decoder = nnx.eval_shape(lambda: Decoder(config, dtype, nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(decoder, nnx.Param)), nnx.graphdef(decoder.layers), nnx.graphdef(decoder.norm)
