"""Softmax attention, its masks and rotary positions; the one place that chooses kernels."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.models.config import ModelConfig
from rlt_jax.models.rope import frequencies

MASKED = -(2.0**41)  # a score whose softmax is exactly 0; far from float32's limit, because cuDNN subtracts such scores


def segment_starts(segments: jax.Array) -> jax.Array:
    """bool[B, T], True on the first token of each packed text, which no token predicts; segments as in `hidden`."""
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def segment_positions(segments: jax.Array) -> jax.Array:
    """Positions i32[B, T], counted from each segment's first token."""
    index = jnp.arange(segments.shape[1])
    return index - jax.lax.cummax(jnp.where(segment_starts(segments), index, 0), axis=1)


def segment_bias(segments: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Bias [B, 1, T, T] for the scores, with which softmax gives exactly 0 across segments."""
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.where(same, 0.0, max(MASKED, float(jnp.finfo(dtype).min) / 2)).astype(dtype)


def rotation(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, f32[B, T, 1, hd], of RoPE (`rope.py`) at positions i32[B, T]."""
    radians, scale = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = positions[..., None, None].astype(jnp.float32) * np.concatenate([radians, radians])
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if scale == 1 else (cos * scale, sin * scale)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + hd/2) of x [B, T, heads, hd] in float32, rounding once."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cos + rotated * sin).astype(x.dtype)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None,
    *,
    bias: jax.Array | None = None,
    causal: bool,
) -> jax.Array:
    """Softmax attention [B, T, H, hd] of q [B, T, H, hd], k and v [B, S, KH, hd]; key_mask and bias as in `Context`."""
    gpu, head_dim, dtype = jax.default_backend() == "gpu", q.shape[-1], q.dtype
    flash = gpu and dtype in (jnp.bfloat16, jnp.float16) and causal and key_mask is None and flash_supports(head_dim)
    if flash and (bias is None or q.shape[1] % 2 == 0):  # with a bias, cuDNN's gradient needs even lengths
        return jax.nn.dot_product_attention(q, k, v, bias, is_causal=True, implementation="cudnn")
    if dtype == jnp.float16 and not gpu:  # on a CPU, XLA has no float16 product with a float32 sum
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    # The function takes no precision argument; without this, a GPU multiplies float32 in TF32.
    with jax.default_matmul_precision("highest") if q.dtype == jnp.float32 else contextlib.nullcontext():
        attended = jax.nn.dot_product_attention(q, k, v, bias, key_mask, is_causal=causal, implementation="xla")
    return attended.astype(dtype)


def flash_supports(*head_dims: int) -> bool:
    """Whether cuDNN's attention takes heads of these sizes on every GPU it runs on (in 16 bits)."""
    return all(head_dim % 8 == 0 and head_dim <= 128 for head_dim in head_dims)
