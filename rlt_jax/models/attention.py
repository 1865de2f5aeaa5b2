"""Softmax attention, its masks and its rotary positions: one place for kernels and their conditions."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.models.config import ModelConfig

NEVER = -(2.0**41)  # a score whose softmax is exactly 0; far from float32's end, as cuDNN subtracts such scores


def segment_starts(segments: jax.Array) -> jax.Array:
    """bool[B, T], True on the first token of each text of packed rows: nothing predicts it. segments as in `hidden`."""
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def segment_positions(segments: jax.Array) -> jax.Array:
    """i32[B, T], counted from each segment's first token."""
    index = jnp.arange(segments.shape[1])
    return index - jax.lax.cummax(jnp.where(segment_starts(segments), index, 0), axis=1)


def segment_bias(segments: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[B, 1, T, T] to add to the scores, so that softmax gives exactly 0 across segments."""
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.where(same, 0.0, max(NEVER, float(jnp.finfo(dtype).min) / 2)).astype(dtype)


def rotation(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin f32[B, T, 1, hd] of positions i32[B, T], RoPE (arXiv 2104.09864)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    # numpy's float32: a compiled power would differ by rounding, and position times that shows in the angle
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = positions[..., None, None].astype(jnp.float32) * np.concatenate([frequencies, frequencies])
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + hd/2) of x [B, T, heads, hd], in float32, rounded once."""
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
    """Head sizes that cuDNN's attention takes on every GPU it runs on."""
    return head_dim % 8 == 0 and head_dim <= 128
