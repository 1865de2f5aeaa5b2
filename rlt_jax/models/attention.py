"""Softmax attention, its masks and rotary positions; the one place that chooses kernels."""

import contextlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from rlt_jax.models.config import ModelConfig
from rlt_jax.models.rope import frequencies
from rlt_jax.segments import Arrangement, Layout, MicroBatch, limits_of, micro_batches
from rlt_jax.types import Attention

HALVES = (jnp.bfloat16, jnp.float16)

MASKED = -(2.0**41)  # a score whose softmax is exactly 0; far from float32's limit, because cuDNN subtracts such scores


def tokens_before(ids: jax.Array, layout: Layout | None) -> tuple[jax.Array, jax.Array]:
    """Where the token before each of ids i32[B, T] lies in its row: i32[B·T] flattened, and bool[B, T] where there is
    one; elsewhere it is the token itself."""
    places = jnp.arange(ids.size).reshape(ids.shape)
    before = jnp.maximum(places - (places % ids.shape[1] > 0), 0) if layout is None else layout.before
    return before.reshape(-1), before != places


def segment_bias(layout: Layout, dtype: jnp.dtype) -> jax.Array:
    """Bias [B, 1, T, T] for causal scores, with which softmax gives exactly 0 outside of a token's row."""
    same = layout.segment[:, None, :, None] == layout.segment[:, None, None, :]
    group = layout.group[:, None, None, :]
    continues = (layout.group[:, None, :, None] == group) & (group > 0) & layout.leads[:, None, None, :]
    # In a group, what is shared comes first: the causal mask keeps it from seeing what continues it.
    return jnp.where(same | continues, 0.0, max(MASKED, float(jnp.finfo(dtype).min) / 2)).astype(dtype)


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
    key_mask: jax.Array | None = None,
    *,
    layout: Layout | None = None,
    bias: jax.Array | None = None,
    causal: bool,
) -> jax.Array:
    """Softmax attention [B, T, H, hd] of q [B, T, H, hd], k and v [B, S, KH, hd]; the rest as in `Context`."""
    gpu, head_dim, dtype = jax.default_backend() == "gpu", q.shape[-1], q.dtype
    if layout is not None and bias is None:
        return _flat_attention(attention_here(dtype, head_dim), q, k, v, layout)
    flash = gpu and dtype in HALVES and causal and key_mask is None and flash_supports(head_dim)
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


def planned_kernel(dtype: jnp.dtype | str, head_dim: int, *, capability: tuple[int, int] | None) -> Attention:
    """What `attend` uses on a GPU of this compute capability, found without starting JAX on it.

    Flat sequences of segments take 16 bits and a Hopper GPU or a newer one; flash-attn3, what its wheels are built for.

    Args:
      capability: (9, 0) is Hopper's. None: not known: cuDNN's flat sequences, which take the most memory.
    """
    if jnp.dtype(dtype) not in HALVES or not flash_supports(head_dim):
        return "masked"
    if capability is None:
        return "cudnn"
    if capability[0] < 9:
        return "rows"
    return "flash-attn3" if capability == (9, 0) and head_dim == 128 and flash_attn3() is not None else "cudnn"


def attention_here(dtype: jnp.dtype | str, head_dim: int) -> Attention:
    """What `attend` uses on JAX's device."""
    if jax.default_backend() != "gpu":
        return "masked"
    return planned_kernel(dtype, head_dim, capability=_capability())


@cache
def _capability() -> tuple[int, int]:
    major, minor = jax.local_devices(backend="gpu")[0].compute_capability.split(".")
    return int(major), int(minor)


def kernel_name(dtype: jnp.dtype | str, head_dim: int) -> str:
    """The kernel that `attend` uses for rows of a model with weights of this type: for the log."""
    here = attention_here(dtype, head_dim)
    return {"rows": "cudnn (one row a sequence)", "masked": "xla"}.get(here, here)


def arrangement(dtype: jnp.dtype | str, head_dim: int) -> Arrangement:
    """How rows are best laid out for `attend`."""
    here = attention_here(dtype, head_dim)
    return here if here == "rows" or here == "masked" else "flat"


def is_flat(dtype: jnp.dtype | str, head_dim: int) -> bool:
    """Whether a kernel takes flat sequences of segments on JAX's device."""
    return arrangement(dtype, head_dim) == "flat"


def sum_bytes(kernel: str, queries: int) -> int:
    """Bytes for a token of queries that wide in which a kernel sums their gradients (`segments.limits_of`).

    cuDNN's sums are float32, in as much memory as each segment would take if it were as long as the longest may be.
    """
    return 4 * queries if kernel == "cudnn" else 0


def batches_for(
    config: ModelConfig,
    dtype: jnp.dtype | str,
    rows: Sequence[np.ndarray],
    *,
    tokens: int,
    packed_length: int | None = None,
) -> list[MicroBatch]:
    """`segments.micro_batches` of rows i32[T_i] for a model: laid out as suits its attention on this device.

    How many segments a sequence may have, and groups that share something, depends on the kernel (`sum_bytes`).
    """
    kind = arrangement(dtype, config.head_dim)
    if kind == "rows" and packed_length is not None:  # cuDNN with a mask, where it is asked for
        kind = "masked"
    summed = sum_bytes(attention_here(dtype, config.head_dim), config.num_attention_heads * config.head_dim)
    limits = limits_of(len(rows), tokens, max(map(len, rows), default=0), sum_bytes=summed)
    return micro_batches(rows, tokens=tokens, arrangement=kind, limits=limits, packed_length=packed_length)


# Flat sequences: kernels that take segments by where they start.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flat_attention(kernel: Attention, q: jax.Array, k: jax.Array, v: jax.Array, layout: Layout) -> jax.Array:
    """Attention of the segments of flat sequences, [1, T, H, hd].

    A token that continues a prefix attends to its own segment and to the prefix, by two calls of a kernel. With the
    log-sum-exps l_1, l_2 of their scores and l = log(exp l_1 + exp l_2), the softmax over both is

        o = exp(l_1 - l) o_1 + exp(l_2 - l) o_2

    and the gradient is that of each call alone, computed from o and l instead of its own output and sum: the kernels
    recompute the probabilities exp(s - l), and Σ_j p_j do·v_j = do·o (FlashAttention, arXiv 2205.14135, B.4).
    """
    return _flat_forward(kernel, q, k, v, layout)[0]


def _flat_forward(kernel, q, k, v, layout):
    forward, _ = _KERNELS[kernel]
    own, own_sum = forward(q, k, v, layout, prefix=False)
    shared, shared_sum = forward(q, k, v, layout, prefix=True)
    continues = ((layout.group > 0) & ~layout.leads)[0]  # [T]; the kernel has written nothing elsewhere
    shared_sum = jnp.where(continues[:, None], shared_sum, -jnp.inf)
    total = jnp.logaddexp(own_sum, shared_sum)  # f32[T, H]
    weights = [jnp.exp(part - total)[None, :, :, None] for part in (own_sum, shared_sum)]
    shared = jnp.where(continues[None, :, None, None], shared, 0).astype(jnp.float32)
    attended = (weights[0] * own.astype(jnp.float32) + weights[1] * shared).astype(q.dtype)
    return attended, (q, k, v, layout, attended, total)


def _flat_backward(kernel, residuals, d_attended):
    q, k, v, layout, attended, total = residuals
    _, backward = _KERNELS[kernel]
    own = backward(q, k, v, layout, attended, total, d_attended, prefix=False)
    shared = backward(q, k, v, layout, attended, total, d_attended, prefix=True)
    leads = layout.leads[:, :, None, None]
    written = ((layout.group > 0)[:, :, None, None] & ~leads, leads, leads)  # by the second call: queries, keys, values
    gradients = [
        (a.astype(jnp.float32) + jnp.where(where, b, 0).astype(jnp.float32)).astype(a.dtype)
        for a, b, where in zip(own, shared, written)
    ]
    return (*gradients, None)


_flat_attention.defvjp(_flat_forward, _flat_backward)


def _cudnn_arguments(
    q: jax.Array, k: jax.Array, layout: Layout, *, prefix: bool
) -> tuple[int, tuple[jax.Array, ...], dict[str, Any]]:
    """A bound of the segments' lengths, and arguments and options of cuDNN's attention over segments.

    A call with S segments works as one of S sequences as long as the bound, which it takes from the shape [S', bound]
    of queries and keys; the offsets go across these. JAX's own function multiplies the keys' offsets by the number of
    query heads before 0.11; here they are what cuDNN takes, numbers of elements.
    """
    total, end = q.shape[1], jnp.full(1, q.shape[1])
    if prefix:
        bound, groups = total, layout.groups
        starts, sizes = (groups[:, 2], groups[:, 0]), (groups[:, 3], groups[:, 1])
    else:
        bound = layout.longest
        starts, sizes = (layout.spans[:, 0],) * 2, (layout.spans[:, 1],) * 2
    parts = total // bound
    strides = [x.shape[2] * x.shape[3] for x in (q, k)]
    offsets = []
    for first, stride in zip(starts, strides):
        ends = jnp.concatenate([first, *[end] * parts]) * stride
        offsets.append(ends.astype(jnp.int32).reshape(parts, -1))
    none = jnp.zeros(0, q.dtype)
    arguments = (*(size.astype(jnp.int32).reshape(parts, -1) for size in sizes), *offsets, none, none)
    return (
        bound,
        arguments,
        {
            "scale": q.shape[-1] ** -0.5,
            "seed": 0,
            "dropout_rate": 0.0,
            "variadic_args": (False, False),
            "mask_type": cudnn.MaskType.PADDING if prefix else cudnn.MaskType.PADDING_CAUSAL,
            "layout": cudnn.AttentionLayout.BTNH.value,
            "sliding_window_length": None,
        },
    )


def _cudnn_forward(q, k, v, layout, *, prefix):
    """(attended [1, T, H, hd], log-sum-exps f32[T, H])."""
    bound, arguments, options = _cudnn_arguments(q, k, layout, prefix=prefix)
    parts = [x.reshape(-1, bound, *x.shape[2:]) for x in (q, k, v)]
    attended, sums = cudnn._dot_product_attention_fwd_p.bind(
        *parts, jnp.zeros(0, q.dtype), *arguments, **options, is_training=True
    )
    number, place = _in_calls(layout, prefix=prefix)
    return attended.reshape(q.shape), sums[number, :, place]  # of sums [S, H, bound]


def _cudnn_backward(q, k, v, layout, attended, total, d_attended, *, prefix):
    bound, arguments, options = _cudnn_arguments(q, k, layout, prefix=prefix)
    first = layout.groups[:, 2] if prefix else layout.spans[:, 0]
    sums = jnp.take(total.T, first[:, None] + jnp.arange(bound), axis=1, mode="clip")  # [H, S, bound]
    parts = [x.reshape(-1, bound, *x.shape[2:]) for x in (q, k, v, attended, d_attended)]
    gradients = cudnn._dot_product_attention_bwd_p.bind(
        *parts[:3], jnp.zeros(0, q.dtype), *arguments, sums.transpose(1, 0, 2), *parts[3:], **options
    )
    return [gradient.reshape(x.shape) for gradient, x in zip(gradients, (q, k, v))]


def _in_calls(layout: Layout, *, prefix: bool) -> tuple[jax.Array, jax.Array]:
    """Of each token: the number of its segment, or group, and its place in it; i32[T] each, in range anyway."""
    number = jnp.maximum((layout.group if prefix else layout.segment)[0] - 1, 0)
    first = (layout.groups[:, 2] if prefix else layout.spans[:, 0])[number]
    return number, jnp.maximum(jnp.arange(number.size) - first, 0)


@cache
def flash_attn3() -> Any:
    """The package `flash_attn3_jax` with its calls for segments; None if it is not installed."""
    try:
        import flash_attn3_jax.varlen as varlen
    except ImportError:
        return None
    return varlen


def _flash3_segments(layout: Layout, length: int, *, prefix: bool) -> tuple[jax.Array, jax.Array]:
    """Ends of the segments of queries and of keys, which lie without gaps, each after a 0.

    For the prefixes, a group is four calls, of which the third computes something: tokens up to those that continue
    see nothing; what lies before the group is seen by none; what continues sees what is shared; and is seen by none.
    """
    if not prefix:
        ends = layout.spans.sum(1)
        return (jnp.concatenate([jnp.zeros(1, ends.dtype), ends]),) * 2
    first, _, own, rest = layout.groups.T
    start, end = jnp.zeros(1, first.dtype), jnp.full(1, length, first.dtype)
    before = jnp.concatenate([start, (own + rest)[:-1]])
    queries = jnp.stack([own, own, own + rest, own + rest], 1).reshape(-1)
    keys = jnp.stack([before, first, own, own + rest], 1).reshape(-1)
    last = (own + rest)[-1:]
    return jnp.concatenate([start, queries, end, end]), jnp.concatenate([start, keys, last, end])


def _flash3_forward(q, k, v, layout, *, prefix):
    queries, keys = _flash3_segments(layout, q.shape[1], prefix=prefix)
    attended, sums = flash_attn3().flash_mha_varlen_fwd(
        q[0], k[0], v[0], queries, keys, is_causal=not prefix, **_flash3_bounds(q, layout, prefix=prefix)
    )
    return attended[None], _flash3_sums(sums, q)


def _flash3_bounds(q: jax.Array, layout: Layout, *, prefix: bool) -> dict[str, int]:
    """Of the segments' lengths: the fewer blocks they have, the fewer the kernels look at in vain."""
    return {"max_seqlen_q": q.shape[1] if prefix else layout.longest, "max_seqlen_k": layout.longest}


def _flash3_sums(sums: jax.Array, q: jax.Array) -> jax.Array:
    """f32[T, H] of the buffer that the kernel fills by head and token."""
    tokens, heads = q.shape[1:3]
    return sums.reshape(-1)[: heads * tokens].reshape(heads, tokens).T


def _flash3_backward(q, k, v, layout, attended, total, d_attended, *, prefix):
    queries, keys = _flash3_segments(layout, q.shape[1], prefix=prefix)
    sums = total.T  # [H, T]
    gradients = flash_attn3().flash_mha_varlen_bwd(
        d_attended[0],
        q[0],
        k[0],
        v[0],
        attended[0],
        sums,
        queries,
        keys,
        is_causal=not prefix,
        **_flash3_bounds(q, layout, prefix=prefix),
    )
    return tuple(gradient[None] for gradient in gradients)


_KERNELS: dict[Attention, tuple[Callable, Callable]] = {
    "cudnn": (_cudnn_forward, _cudnn_backward),
    "flash-attn3": (_flash3_forward, _flash3_backward),
}
