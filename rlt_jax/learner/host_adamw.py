"""AdamW whose state lives in pinned host memory and visits the GPU shard by shard.

The GPU holds the weights and the accumulated gradients. The rest of a parameter (the low half of its fp32 master, both
moments) stays on the host and is copied to the GPU only for its update:

    to the GPU        | 1 | 2 | 3 | 4 | ...
    update                 |   |   |   |
    back to the host       | 1 | 2 | 3 | ...

A shard is a layer, or as many rows of the embedding or the head as have about a layer's parameters. Its state is three
flat arrays, not three for each of a dozen leaves: few large copies. They arrive by `device_put`, which has its own
streams, and return as the output of a program, whose copies use another stream, so that the bus is busy in both
directions at once. If both were part of one program, XLA would put them on one stream, one after the other.

Pinned memory is slow to allocate (a second per GB) and JAX never returns it to the system, so each buffer is allocated
once, by `init_host_state` or by restoring a checkpoint. Later states overwrite it: the program that returns a state
gets the old one, donated, and XLA puts its output into that memory. Weights are updated in place too, row by row, and
so is a state on the GPU.

Departures from `optimizer.make_apply`: none with float32 moments. On a CPU all results are bit-equal, unless rows are
so short (below 16) that the compiler unrolls the two into different fused multiply-adds.
"bfloat16" moments are rounded to nearest after each step. That is fine for runs of a few hundred steps; with beta2 =
0.999 a second moment rounded this way can grow but hardly shrink: it is 6 % too large after 1000 equal gradients.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rlt_jax.device.placement import device_memory, pinned_host
from rlt_jax.learner.state import global_norm, join_master, split_master
from rlt_jax.models import Params
from rlt_jax.types import Dtype


class HostShard(NamedTuple):
    """State of a shard's N parameters: its leaves, each flattened, one after the other."""

    low: jax.Array | None  # u16[N] low halves of the masters; None when the weights are float32
    mu: jax.Array  # f32[N] or bf16[N] first moments
    nu: jax.Array  # f32[N] or bf16[N] second moments


class HostState(NamedTuple):
    """State of the optimizer. Donated to `apply`: use only what it returns."""

    num_updates: jax.Array  # i32[], on the GPU
    shards: tuple[HostShard, ...]  # in the order of `cut_shards`, in pinned host memory


class Shard(NamedTuple):
    """Rows start .. start + rows - 1 on axis 0 of some leaves of the parameter tree."""

    leaves: tuple[int, ...]  # indices, in the order of jax.tree.leaves
    start: int
    rows: int


HostApply = Callable[[Params, HostState, Params], tuple[Params, HostState, jax.Array]]


def cut_shards(params: Params) -> tuple[Shard, ...]:
    """Cut a parameter tree (of arrays or ShapeDtypeStructs) into shards that together hold every parameter once.

    Each layer of the leaves below "layers" is a shard. Any other leaf is one shard, or is cut into the fewest
    that are no larger than a layer, all with equally many rows except the last. Without "layers" nothing is cut.
    """
    leaves, tree = jax.tree.flatten(params)
    indices = jax.tree.unflatten(tree, range(len(leaves)))
    stacked = tuple(jax.tree.leaves(indices.get("layers", {})))
    shards = [Shard(stacked, layer, 1) for layer in range(leaves[stacked[0]].shape[0])] if stacked else []
    layer_size = sum(math.prod(leaves[i].shape[1:]) for i in stacked)
    for i in sorted(set(range(len(leaves))) - set(stacked)):
        length, row_size = leaves[i].shape[0], math.prod(leaves[i].shape[1:])
        max_rows = max(layer_size // row_size, 1) if stacked else length
        rows = math.ceil(length / math.ceil(length / max_rows))
        shards += [Shard((i,), start, min(rows, length - start)) for start in range(0, length, rows)]
    return tuple(shards)


def host_state_shapes(params: Params, *, moments: Dtype = "float32") -> HostState:
    """The state of `params` (arrays or ShapeDtypeStructs) as ShapeDtypeStructs with shardings.

    Restore a checkpoint into these, not into a state: two states at once would need twice the pinned memory.

    Raises:
      ValueError: the parameters are not all bfloat16 or all float32.
    """
    leaves = jax.tree.leaves(params)
    dtypes = sorted({leaf.dtype.name for leaf in leaves})
    if dtypes not in (["bfloat16"], ["float32"]):
        raise ValueError(f"parameters of {' and '.join(dtypes)}: expected all bfloat16 or all float32")

    def flat(shard: Shard, dtype: str) -> Any:
        size = sum(_sizes([leaves[i] for i in shard.leaves], shard.rows))
        return jax.ShapeDtypeStruct((size,), dtype, sharding=pinned_host())

    def shapes(shard: Shard) -> HostShard:
        low = flat(shard, "uint16") if dtypes == ["bfloat16"] else None
        return HostShard(low, flat(shard, moments), flat(shard, moments))

    num_updates: Any = jax.ShapeDtypeStruct((), "int32", sharding=device_memory())
    return HostState(num_updates, tuple(map(shapes, cut_shards(params))))


def init_host_state(params: Params, *, moments: Dtype = "float32") -> HostState:
    """Initial state for loaded weights, whose exact values are the first masters.

    Raises:
      ValueError: as `host_state_shapes`.
    """
    shapes = host_state_shapes(params, moments=moments)
    return jax.tree.map(lambda like: _make_zeros(like.shape, like.dtype, like.sharding)(), shapes)


def make_host_apply(
    rate: optax.Schedule,
    *,
    adam_beta1: float,
    adam_beta2: float,
    adam_epsilon: float,
    weight_decay: float,
    max_grad_norm: float,
) -> HostApply:
    """`apply(params, state, gradients)` -> (new params, new state, global gradient norm before clipping).

    The same step as `optimizer.make_apply` with `optimizer.make_optimizer`: clip to the global norm, then AdamW
    (Loshchilov & Hutter, arXiv 1711.05101). `rate` is the schedule of `make_optimizer`, the rest are its arguments.

    Parameters (all bfloat16 or all float32) and state are donated. The gradients, of either type, are only read: free
    them afterwards. Extra memory on the GPU: the state of 2 shards, and the weights and gradients of one. Compiles four
    small programs for each shape of a shard.
    """
    adamw = optax.adamw(rate, b1=adam_beta1, b2=adam_beta2, eps=adam_epsilon, weight_decay=weight_decay)
    device, host = device_memory(), pinned_host()

    # All shardings are explicit. Otherwise JAX would confuse GPU and host when it pairs donated arrays with outputs,
    # and would compile again when arrays that were put on the GPU follow those that are there by default.
    take_rows = jax.jit(_take_rows, static_argnums=0, in_shardings=device, out_shardings=device)

    @partial(jax.jit, in_shardings=device, out_shardings=device)
    def begin(gradients: Params, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        return global_norm(gradients), optax.safe_increment(count)

    @partial(jax.jit, static_argnums=0, donate_argnums=(1, 3), in_shardings=device, out_shardings=device)
    def update(
        only_leaf: bool, weights: jax.Array, gradient: jax.Array, old: HostShard, count: jax.Array, norm: jax.Array
    ) -> tuple[jax.Array, HostShard, list[jax.Array]]:
        """A shard's new weights and state, and values to ignore."""
        gradient = gradient.astype(jnp.float32)
        gradient = lax.select(norm < max_grad_norm, gradient, gradient / norm * max_grad_norm)
        master = weights if old.low is None else join_master(weights, old.low)
        arrays = gradient, master, old.mu.astype(jnp.float32), old.nu.astype(jnp.float32)
        # XLA rounds differently where 1 - beta^t divides a single array: it multiplies by the inverse. With a second
        # array (of one parameter), a shard is rounded as it would be among the other leaves.
        gradients, masters, mu, nu = ([x] if only_leaf else [x, x[:1]] for x in arrays)
        state = optax.tree.set(adamw.init(masters), count=count, mu=mu, nu=nu)
        updates, state = adamw.update(gradients, state, masters)
        master, *ignored = optax.apply_updates(masters, updates)
        weights, low = (master, None) if old.low is None else split_master(master)
        new_mu, new_nu = (optax.tree.get(state, name)[0].astype(old.mu.dtype) for name in ("mu", "nu"))
        return weights, HostShard(low, new_mu, new_nu), ignored

    @partial(
        jax.jit,
        static_argnums=0,
        donate_argnums=(1, 4),
        keep_unused=True,  # `old` is there for its memory
        in_shardings=(device, device, device, host, device),
        out_shardings=(device, host),
    )
    def store(
        rows: int, leaves: list[jax.Array], weights: jax.Array, new: HostShard, old: HostShard, start: np.int32
    ) -> tuple[list[jax.Array], HostShard]:
        """The leaves with new rows, and the new state on the host, over `old`."""
        return _with_rows(leaves, weights, start, rows), new

    def apply(params: Params, state: HostState, gradients: Params) -> tuple[Params, HostState, jax.Array]:
        chex.assert_trees_all_equal_shapes(params, gradients)
        norm, count = begin(gradients, state.num_updates)
        leaves, tree = jax.tree.flatten(params)
        sums, shards = jax.tree.leaves(gradients), list(state.shards)
        staged = jax.device_put(shards[0], device)
        for i, shard in enumerate(cut_shards(params)):
            shard_leaves, start = [leaves[n] for n in shard.leaves], np.int32(shard.start)
            weights = take_rows(shard.rows, shard_leaves, start)
            gradient = take_rows(shard.rows, [sums[n] for n in shard.leaves], start)
            # Three programs, as on a CPU the rounding of AdamW's sums of products depends on what they are fused with.
            weights, new, ignored = update(len(leaves) == 1, weights, gradient, staged, state.num_updates, norm)
            # The copy to the GPU must start exactly here to overlap with the copy of `store` to the host. Not earlier:
            # after `update` the driver frees memory, and first waits for all copies in flight. Not later: where the
            # driver manages memory by itself, a program such as `store` returns only when it and its copy are done.
            staged = jax.device_put(shards[i + 1], device) if i + 1 < len(shards) else None
            shard_leaves, shards[i] = store(shard.rows, shard_leaves, weights, new, shards[i], start)
            jax.block_until_ready((shards[i], staged))
            del weights, gradient, new, ignored
            for n, leaf in zip(shard.leaves, shard_leaves):
                leaves[n] = leaf
        return jax.tree.unflatten(tree, leaves), HostState(count, tuple(shards)), norm

    return apply


@cache  # jitting again would compile again
def _make_zeros(shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.Sharding) -> Callable[[], jax.Array]:
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)


def _sizes(leaves: Sequence[jax.Array | jax.ShapeDtypeStruct], rows: int) -> list[int]:
    """Number of parameters in `rows` rows of each leaf."""
    return [rows * math.prod(leaf.shape[1:]) for leaf in leaves]


def _take_rows(rows: int, leaves: list[jax.Array], start: np.int32) -> jax.Array:
    """Rows start .. start + rows - 1 of every leaf, flattened and joined."""
    return jnp.concatenate([lax.dynamic_slice_in_dim(leaf, start, rows).reshape(-1) for leaf in leaves])


def _with_rows(leaves: list[jax.Array], flat: jax.Array, start: np.int32, rows: int) -> list[jax.Array]:
    """The leaves with `flat` in place of the rows that `_take_rows` reads."""
    parts = jnp.split(flat, np.cumsum(_sizes(leaves, rows))[:-1])
    return [
        lax.dynamic_update_slice_in_dim(leaf, part.reshape(rows, *leaf.shape[1:]), start, axis=0)
        for leaf, part in zip(leaves, parts)
    ]
