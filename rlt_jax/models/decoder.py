"""A dense decoder as Flax NNX modules: pre-norm layers of grouped-query attention and a gated MLP.

    x_0 = E[ids];   x_{l+1} = h + MLP(norm(h)),  h = x_l + Attention(norm(x_l));   logits = norm(x_L) Wᵀ

(Qwen2 report, arXiv 2407.10671, sec. 2; Qwen3 report, arXiv 2505.09388, sec. 2: query-key norms instead of biases;
Llama, arXiv 2302.13971, has neither.)
Weights keep the Hugging Face (out, in) orientation.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rlt_jax.models.attention import rotate
from rlt_jax.models.config import ModelConfig


class Embed(nnx.Module):
    """Token embedding [V, D]."""

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
        y = matmul(x, self.weight[...])
        return y + self.bias[...] if self.has_bias else y


class RMSNorm(nnx.Module):
    """w · x / sqrt(mean(x²) + ε) in float32, rounded to x's dtype before the product with w, as in Hugging Face."""

    def __init__(self, config: ModelConfig, size: int, dtype: jnp.dtype):
        self.weight = nnx.Param(jnp.ones(size, dtype))
        self.eps = config.rms_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return self.weight[...] * (x32 * scale).astype(x.dtype)


class Attention(nnx.Module):
    """Projections of grouped-query attention, with the family's biases (Qwen2) or query and key norms (Qwen3)."""

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
        return rotate(q, cos, sin), rotate(k, cos, sin), v


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
        """The MLP's output [B, T, D] from its inner projections."""
        return self.down_proj(jax.nn.silu(gate) * up)


class Layer(nnx.Module):
    """One decoder layer in stages: a cache fits between projecting and attending, saved activations between any two."""

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


class Decoder(nnx.Module):
    """The whole model; `layers` stacks the weights of all layers on a leading axis."""

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


def _normal(config: ModelConfig, shape: tuple[int, ...], dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param((config.initializer_range * jax.random.normal(rngs.params(), shape)).astype(dtype))


def matmul(x: jax.Array, weight: jax.Array, preferred: DTypeLike | None = None) -> jax.Array:
    """x [..., in] times weightᵀ, weight [out, in]."""
    # By default, a GPU multiplies float32 in TF32 (10-bit mantissa).
    precision = jax.lax.Precision.HIGHEST if weight.dtype == jnp.float32 else None
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision, preferred_element_type=preferred)
