"""What a gradient step changes: weights, whose fp32 masters are exact, and the optimizer's state.

bf16 weights at lr 1e-6 would not move at all under AdamW (an update is far below half an ulp), so the fp32 master is
stored as the bf16 weight itself (the nearest one) plus the master's low 16 bits, which are stored with the moments.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlt_jax.models import Params


class TrainState(NamedTuple):
    """What a gradient step changes. Donated to `Optimizer.apply`: use only what it returns."""

    params: Params  # fp32 or bf16; bf16 leaves are the fp32 masters, rounded to nearest
    low: Params | None  # u16 low halves of the masters; None if opt_state has them or params are fp32
    opt_state: Any  # optax's, or host_adamw.HostState


def split_master(master: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f32 -> (nearest bf16, u16 low 16 bits); `join_master` is its exact inverse. Finite masters only.

    Rounded, not truncated: where an update makes weights a little smaller, truncation would pull each of them down by a
    whole ulp (0.4 % and more), a hundred times the update itself. Halves round away from 0.
    """
    bits = jax.lax.bitcast_convert_type(master, jnp.uint32)
    high = jax.lax.bitcast_convert_type(((bits + 0x8000) >> 16).astype(jnp.uint16), jnp.bfloat16)
    return high, bits.astype(jnp.uint16)


def join_master(high: jax.Array, low: jax.Array) -> jax.Array:
    """(bf16, u16) -> the f32 that `split_master` split: a low half of 0x8000 or more was rounded up."""
    rounded_up = (low >= 0x8000).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32) - rounded_up
    return jax.lax.bitcast_convert_type((bits << 16) | low.astype(jnp.uint32), jnp.float32)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Initial state for loaded weights, whose exact values are the first masters."""
    if jax.tree.leaves(params)[0].dtype == jnp.float32:
        return TrainState(params, None, optimizer.init(params))
    low = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.uint16), params)
    shapes = jax.eval_shape(lambda p: jax.tree.map(lambda x: x.astype(jnp.float32), p), params)
    return TrainState(params, low, optimizer.init(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)))


def global_norm(gradients: Params) -> jax.Array:
    """L2 norm f32[] of all gradients together, squared and summed in float32."""
    return optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), gradients))
