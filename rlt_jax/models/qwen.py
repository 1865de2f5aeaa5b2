"""Qwen2, Qwen2.5 and Qwen3 as one Flax NNX module, and `Model`, the pure functions that the rest of the code calls.

    x_0 = E[ids];   x_{l+1} = h + MLP(norm(h)),  h = x_l + Attention(norm(x_l));   logits = norm(x_L) Wᵀ

(Qwen2 report, arXiv 2407.10671, sec. 2; Qwen3 report, arXiv 2505.09388, sec. 2: query-key norms instead of biases.)
Weights keep the Hugging Face (out, in) orientation. Parameters are a plain nested dict named as in a checkpoint without
its "model." prefix; the leaves below "layers" carry all layers on axis 0 and are scanned.

Departures from the Hugging Face implementation:
- Logits are accumulated and returned in float32 also for bfloat16 weights, since log-probs are taken from them.
- RoPE is computed in float32 and rounded once: three roundings in bfloat16 made log-probs a tenth noisier.
- Positions count real tokens when a mask is given; RoPE is relative, so left padding changes rounding only.
"""

import contextlib
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from rlt_jax.models.config import ModelConfig

Params = dict[str, Any]  # nested dict of arrays

NEVER = -(2.0**41)  # a score whose softmax is exactly 0; far from float32's end, as cuDNN subtracts such scores


class Context(NamedTuple):
    """What every layer needs besides its input: the rotation of each position, and which keys a query may see."""

    cos: jax.Array  # f32[B or 1, T, 1, hd]
    sin: jax.Array  # f32[B or 1, T, 1, hd]
    key_mask: jax.Array | None  # bool[B, 1, 1, T] True = real; None = the causal mask alone
    bias: jax.Array | None = None  # [B, 1, T, T] added to the scores: 0 inside a segment, NEVER across


class Cache(NamedTuple):
    """Rotated keys and values of all layers, by position."""

    keys: jax.Array  # [L, B, S, KH, hd]
    values: jax.Array  # [L, B, S, KH, hd]


class Embed(nnx.Module):
    """Token table [V, D]."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.weight = _normal(config, (config.vocab_size, config.hidden_size), dtype, rngs)


class Linear(nnx.Module):
    """x Wᵀ + b, W [out, in]."""

    def __init__(
        self, config: ModelConfig, size: tuple[int, int], dtype: jnp.dtype, rngs: nnx.Rngs, bias: bool = False
    ):
        self.weight = _normal(config, size, dtype, rngs)
        if bias:
            self.bias = nnx.Param(jnp.zeros(size[0], dtype))
        self.has_bias = bias

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _matmul(x, self.weight[...])
        return y + self.bias[...] if self.has_bias else y


class RMSNorm(nnx.Module):
    """w · x / sqrt(mean(x²) + ε), in float32, rounded to x's type before the product with w, as Hugging Face does."""

    def __init__(self, config: ModelConfig, size: int, dtype: jnp.dtype):
        self.weight = nnx.Param(jnp.ones(size, dtype))
        self.eps = config.rms_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return self.weight[...] * (x32 * scale).astype(x.dtype)


class Attention(nnx.Module):
    """Projections of grouped-query attention, with Qwen2's biases or Qwen3's query and key norms."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        hidden, hd = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * hd, config.num_key_value_heads * hd
        self.q_proj = Linear(config, (queries, hidden), dtype, rngs, config.qkv_bias)
        self.k_proj = Linear(config, (keys, hidden), dtype, rngs, config.qkv_bias)
        self.v_proj = Linear(config, (keys, hidden), dtype, rngs, config.qkv_bias)
        self.o_proj = Linear(config, (hidden, queries), dtype, rngs, config.output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config, hd, dtype)
            self.k_norm = RMSNorm(config, hd, dtype)
        self.config = config

    def project(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries [B, T, H, hd], rotated keys [B, T, KH, hd] and values [B, T, KH, hd]."""
        config = self.config
        q, k, v = (
            projection(x).reshape(*x.shape[:2], heads, config.head_dim)
            for projection, heads in (
                (self.q_proj, config.num_attention_heads),
                (self.k_proj, config.num_key_value_heads),
                (self.v_proj, config.num_key_value_heads),
            )
        )
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v


class MLP(nnx.Module):
    """W_down (silu(W_gate x) · W_up x)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(config, (inner, hidden), dtype, rngs)
        self.up_proj = Linear(config, (inner, hidden), dtype, rngs)
        self.down_proj = Linear(config, (hidden, inner), dtype, rngs)

    def gate_and_up(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both inner projections, [B, T, inner] each, before the activation."""
        return self.gate_proj(x), self.up_proj(x)

    def down(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """The rest, [B, T, D]."""
        return self.down_proj(jax.nn.silu(gate) * up)


class Layer(nnx.Module):
    """One decoder layer in stages: a cache can stand between projecting and attending, kept arrays between any two."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config, config.hidden_size, dtype)
        self.self_attn = Attention(config, dtype, rngs)
        self.post_attention_layernorm = RMSNorm(config, config.hidden_size, dtype)
        self.mlp = MLP(config, dtype, rngs)

    def project(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of the normalised input [B, T, D]."""
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def add_attention(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The input [B, T, D] plus what attention returned [B, T, H, hd], projected."""
        return x + self.self_attn.o_proj(attended.reshape(*x.shape[:2], -1))

    def gate_and_up(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The MLP's inner projections [B, T, inner] of the normalised sum after attention."""
        return self.mlp.gate_and_up(self.post_attention_layernorm(x))

    def add_mlp(self, x: jax.Array, gate: jax.Array, up: jax.Array) -> jax.Array:
        """The sum after attention plus the MLP's output: the layer's output [B, T, D]."""
        return x + self.mlp.down(gate, up)

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's output [B, T, D] from its input and what attention returned [B, T, H, hd]."""
        x = self.add_attention(x, attended)
        return self.add_mlp(x, *self.gate_and_up(x))


class Qwen(nnx.Module):
    """The whole model; `layers` holds every layer's weights on a leading axis."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(config, dtype, rngs)

        self.embed_tokens = Embed(config, dtype, rngs)
        self.layers = stack(rngs)
        self.norm = RMSNorm(config, config.hidden_size, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config, (config.vocab_size, config.hidden_size), dtype, rngs)


@dataclass(frozen=True)
class Model:
    """Pure functions of a parameter tree: build with `build_model`, pass as a static argument or close over it.

    Two models of equal configuration are equal, so that a jitted function compiles once for both.
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
        segments: jax.Array | None = None,
    ) -> Context:
        """What the layers need for a full forward over ids i32[B, T]; attention_mask and segments as in `hidden`."""
        if segments is not None:
            if attention_mask is not None:
                raise ValueError("attention_mask and segments: expected one of them, padding is segment 0")
            chex.assert_equal_shape([ids, segments])
            dtype = params["embed_tokens"]["weight"].dtype
            return Context(*_rotation(self.config, _positions(segments)), None, _segment_bias(segments, dtype))
        if attention_mask is None:
            return Context(*_rotation(self.config, jnp.arange(ids.shape[1])[None]), None)
        chex.assert_equal_shape([ids, attention_mask])
        real = attention_mask.astype(bool)
        positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
        return Context(*_rotation(self.config, positions), real[:, None, None, :])

    def layer(self, layer_params: Params, x: jax.Array, context: Context) -> jax.Array:
        """One layer, [B, T, D] -> [B, T, D]; layer_params is a layer's slice of params["layers"], without axis 0."""
        attended = self.attend(*self.project(layer_params, x, context), context)
        x = self.add_attention(layer_params, x, attended)
        return self.add_mlp(layer_params, x, *self.gate_and_up(layer_params, x))

    # The stages of `layer`, for a backward pass that recomputes some of them; layer_params as there.

    def project(self, layer_params: Params, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries [B, T, H, hd], rotated keys [B, T, KH, hd] and values [B, T, KH, hd] of a layer's input."""
        return nnx.merge(self.layer_graphdef, layer_params).project(x, context.cos, context.sin)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> jax.Array:
        """Causal softmax attention [B, T, H, hd]; the only stage without parameters."""
        return _attend(q, k, v, context.key_mask, bias=context.bias, causal=True)

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
        """The norm after the last layer, [B, T, D] -> [B, T, D]; reads params["norm"] alone."""
        return nnx.merge(self.norm_graphdef, params["norm"])(x)

    def head(self, params: Params) -> jax.Array:
        """Output weights [V, D]: the embedding when tied."""
        return params["embed_tokens" if self.config.tie_word_embeddings else "lm_head"]["weight"]

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states [..., D] after the final norm."""
        return _matmul(hidden, self.head(params), preferred=jnp.float32)

    @partial(jax.jit, static_argnames="self")
    def hidden(
        self,
        params: Params,
        ids: jax.Array,
        *,
        attention_mask: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm, [B, T, D] in the parameters' type.

        Args:
          ids: i32[B, T] token ids.
          attention_mask: bool or int [B, T], nonzero = real token, pads on either side. None: rows are right-padded,
            and the causal mask alone keeps pads out of real tokens' sight (fastest: cuDNN on a GPU in 16 bits).
          segments: i32[B, T], packed rows: neighbours of equal number are one text, whose positions begin at 0 and
            whose tokens see each other alone; 0 = padding. The mask takes B·T² numbers in the parameters' type.
        Positions of padding hold finite junk.
        Raises:
          ValueError: attention_mask and segments are both given.
        """
        chex.assert_rank(ids, 2)
        context = self.context(params, ids, attention_mask, segments)

        def step(x: jax.Array, layer_params: Params) -> tuple[jax.Array, None]:
            return self.layer(layer_params, x, context), None

        x, _ = jax.lax.scan(step, self.embed(params, ids), params["layers"])
        return self.final_norm(params, x)

    @partial(jax.jit, static_argnames="self")
    def logits(self, params: Params, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Next-token logits f32[B, T, V] of left- or right-padded rows; arguments as in `hidden`."""
        return self.unembed(params, self.hidden(params, input_ids, attention_mask=attention_mask))

    def init_cache(self, params: Params, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of up to `length` positions, in the parameters' type."""
        config = self.config
        shape = (config.num_hidden_layers, batch, length, config.num_key_value_heads, config.head_dim)
        dtype = params["embed_tokens"]["weight"].dtype
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @partial(jax.jit, static_argnames="self")
    def prefill(self, params: Params, ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read right-padded prompts into positions 0 .. P-1 of the cache.

        What pads leave behind a row's end is never seen: `decode` overwrites a position before it attends to it.

        Args:
          ids: i32[B, P], P at most the cache's length.
        Returns:
          hidden [B, P, D] after the final norm, and the cache.
        """
        chex.assert_rank(ids, 2)
        chex.assert_axis_dimension(cache.keys, 1, ids.shape[0])
        chex.assert_axis_dimension_gteq(cache.keys, 2, ids.shape[1])
        context = self.context(params, ids)

        # The cache is carried, not scanned over: then the loop updates it in place.
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
            return (layer.finish(x, _attend(q, k, v, None, causal=True)), cache), None

        (x, cache), _ = jax.lax.scan(step, (self.embed(params, ids), cache), self._numbered(params))
        return self.final_norm(params, x), cache

    @partial(jax.jit, static_argnames="self")
    def decode(
        self, params: Params, token_ids: jax.Array, positions: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Read one token per row: row b's goes to positions[b] and attends to positions <= positions[b].

        A position at or beyond the cache's length is written nowhere (a finished row may idle there).

        Args:
          token_ids, positions: i32[B].
        Returns:
          Next-token logits f32[B, V], and the cache.
        """
        chex.assert_rank([token_ids, positions], 1)
        chex.assert_axis_dimension(cache.keys, 1, token_ids.shape[0])
        cos, sin = _rotation(self.config, positions[:, None])
        rows = jnp.arange(token_ids.shape[0])
        seen = jnp.arange(cache.keys.shape[2]) <= positions[:, None, None, None]  # bool[B, 1, 1, S]

        def step(carry: tuple[jax.Array, Cache], scanned: tuple[Params, jax.Array]):
            x, cache = carry
            layer_params, index = scanned
            layer = nnx.merge(self.layer_graphdef, layer_params)
            q, k, v = layer.project(x, cos, sin)
            cache = Cache(
                cache.keys.at[index, rows, positions].set(k[:, 0]),
                cache.values.at[index, rows, positions].set(v[:, 0]),
            )
            attended = _attend(q, cache.keys[index], cache.values[index], seen, causal=False)
            return (layer.finish(x, attended), cache), None

        x = self.embed(params, token_ids[:, None])
        (x, cache), _ = jax.lax.scan(step, (x, cache), self._numbered(params))
        return self.unembed(params, self.final_norm(params, x)[:, 0]), cache

    def _numbered(self, params: Params) -> tuple[Params, jax.Array]:
        return params["layers"], jnp.arange(self.config.num_hidden_layers)


def build_model(config: ModelConfig) -> Model:
    """The model of a configuration, without parameters."""
    _, layer_graphdef, norm_graphdef = _abstract(config, jnp.dtype(jnp.float32))
    return Model(config, layer_graphdef, norm_graphdef)


def random_params(config: ModelConfig, seed: int, dtype: jnp.dtype) -> Params:
    """Fresh parameters: normal(0, initializer_range) matrices, zero biases, norms of one."""
    return _draw(config, dtype, jax.random.key(seed))


@partial(jax.jit, static_argnums=(0, 1))
def _draw(config: ModelConfig, dtype: jnp.dtype, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(Qwen(config, dtype, nnx.Rngs(key)), nnx.Param))


@lru_cache(maxsize=32)
def _abstract(config: ModelConfig, dtype: jnp.dtype) -> tuple[Params, nnx.GraphDef, nnx.GraphDef]:
    """The parameter tree's shapes, and the graph definitions of a layer and of the last norm."""
    qwen = nnx.eval_shape(lambda: Qwen(config, dtype, nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(qwen, nnx.Param)), nnx.graphdef(qwen.layers), nnx.graphdef(qwen.norm)


def _normal(config: ModelConfig, shape: tuple[int, ...], dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param((config.initializer_range * jax.random.normal(rngs.params(), shape)).astype(dtype))


def _matmul(x: jax.Array, weight: jax.Array, preferred: DTypeLike | None = None) -> jax.Array:
    """x [..., in] times weightᵀ, weight [out, in]."""
    # A GPU multiplies float32 in TF32 (10-bit mantissa) unless told otherwise.
    precision = jax.lax.Precision.HIGHEST if weight.dtype == jnp.float32 else None
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision, preferred_element_type=preferred)


def _rotation(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin f32[B, T, 1, hd] of positions i32[B, T], RoPE (arXiv 2104.09864)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    # numpy's float32: a compiled power would differ by rounding, and position times that shows in the angle
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = positions[..., None, None].astype(jnp.float32) * np.concatenate([frequencies, frequencies])
    return jnp.cos(angles), jnp.sin(angles)


def segment_starts(segments: jax.Array) -> jax.Array:
    """bool[B, T], True on the first token of each text of packed rows: nothing predicts it. segments as in `hidden`."""
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def _positions(segments: jax.Array) -> jax.Array:
    """i32[B, T], counted from each segment's first token."""
    index = jnp.arange(segments.shape[1])
    return index - jax.lax.cummax(jnp.where(segment_starts(segments), index, 0), axis=1)


def _segment_bias(segments: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[B, 1, T, T] to add to the scores, so that softmax gives exactly 0 across segments."""
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.where(same, 0.0, max(NEVER, float(jnp.finfo(dtype).min) / 2)).astype(dtype)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + hd/2) of x [B, T, heads, hd], in float32, rounded once."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cos + rotated * sin).astype(x.dtype)


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None,
    *,
    bias: jax.Array | None = None,
    causal: bool,
) -> jax.Array:
    """Softmax attention [B, T, H, hd]; q [B, T, H, hd], k and v [B, S, KH, hd], key_mask and bias as in Context."""
    gpu, head_dim, dtype = jax.default_backend() == "gpu", q.shape[-1], q.dtype
    flash = gpu and dtype in (jnp.bfloat16, jnp.float16) and causal and key_mask is None and _flash_takes(head_dim)
    if flash and (bias is None or q.shape[1] % 2 == 0):  # cuDNN's gradient under a bias takes even lengths alone
        return jax.nn.dot_product_attention(q, k, v, bias, is_causal=True, implementation="cudnn")
    if dtype == jnp.float16 and not gpu:  # XLA has no float16 product with a float32 sum on a CPU
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    # The kernel takes no precision: without this, float32 is multiplied in TF32 on a GPU.
    with jax.default_matmul_precision("highest") if q.dtype == jnp.float32 else contextlib.nullcontext():
        attended = jax.nn.dot_product_attention(q, k, v, bias, key_mask, is_causal=causal, implementation="xla")
    return attended.astype(dtype)


def _flash_takes(head_dim: int) -> bool:
    """Head sizes that cuDNN's attention takes on every card it runs on."""
    return head_dim % 8 == 0 and head_dim <= 128
