"""The optimizer of a run: AdamW on float32 masters, its state on the GPU or streamed from pinned host memory."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlt_jax.configs import MemoryConfig, OptimizerConfig
from rlt_jax.configs.numbers import update_bound
from rlt_jax.device.placement import device_memory
from rlt_jax.learner.host_adamw import host_state_shapes, init_host_state, make_host_apply
from rlt_jax.learner.state import TrainState, init_state, join_master, split_master
from rlt_jax.models import Params


class Optimizer(NamedTuple):
    """Functions of a TrainState; results do not depend on where the state is stored."""

    init: Callable[[Params], TrainState]  # initial state for loaded weights, which it takes over
    like: Callable[[Params], TrainState]  # shapes and shardings of a state, to restore a checkpoint into
    apply: Callable[[TrainState, Params], tuple[TrainState, jax.Array]]
    """(state, gradients) -> (new state, global gradient norm f32[] before clipping). The state is donated."""
    learning_rate: optax.Schedule  # by number of updates before
    bound: Callable[[float], float]  # the largest weight -> upper bound of all numbers of an update


def open_optimizer(config: OptimizerConfig, memory: MemoryConfig, *, learning_rate: float, max_steps: int) -> Optimizer:
    """Build the optimizer that the configuration describes.

    Args:
      learning_rate: peak rate.
      max_steps: steps of the whole run, over which the schedule extends.
    """
    settings = asdict(config)
    transformation, rate = make_optimizer(learning_rate=learning_rate, max_steps=max_steps, **settings)

    def bound(largest_weight: float) -> float:
        return update_bound(config, learning_rate=learning_rate, largest_weight=largest_weight)

    if memory.optimizer == "device":

        def init(params: Params) -> TrainState:
            # committed to the device as a restored state is; else a resumed run would compile everything again
            return jax.device_put(init_state(params, transformation), device_memory())

        def like(params: Params) -> TrainState:
            shapes = jax.eval_shape(lambda p: init_state(p, transformation), params)
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device_memory()), shapes
            )

        return Optimizer(init, like, make_apply(transformation), rate, bound)

    unscheduled = {name: value for name, value in settings.items() if name not in ("lr_scheduler", "warmup_ratio")}
    host_apply = make_host_apply(rate, **unscheduled)

    def init_on_host(params: Params) -> TrainState:
        return TrainState(
            jax.device_put(params, device_memory()), None, init_host_state(params, moments=memory.moments)
        )

    def like_on_host(params: Params) -> TrainState:
        shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=device_memory()), params)
        return TrainState(shapes, None, host_state_shapes(params, moments=memory.moments))

    def apply_on_host(state: TrainState, gradients: Params) -> tuple[TrainState, jax.Array]:
        params, opt_state, norm = host_apply(state.params, state.opt_state, gradients)
        return TrainState(params, None, opt_state), norm

    return Optimizer(init_on_host, like_on_host, apply_on_host, rate, bound)


def make_optimizer(
    *,
    learning_rate: float,
    max_steps: int,
    adam_beta1: float,
    adam_beta2: float,
    adam_epsilon: float,
    weight_decay: float,
    max_grad_norm: float,
    lr_scheduler: Literal["constant", "cosine", "linear"],
    warmup_ratio: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Global-norm clip, then AdamW (Loshchilov & Hutter, arXiv 1711.05101), and its learning-rate schedule.

    Args:
      lr_scheduler: "constant", "linear" (to 0) or "cosine" (to 0), each after a linear warm-up from 0.
      warmup_ratio: share of max_steps spent warming up.
    """
    warmup = round(warmup_ratio * max_steps)
    decay = max(max_steps - warmup, 1)
    main: optax.Schedule
    match lr_scheduler:
        case "constant":
            main = optax.constant_schedule(learning_rate)
        case "linear":
            main = optax.linear_schedule(learning_rate, 0.0, decay)
        case "cosine":
            main = optax.cosine_decay_schedule(learning_rate, decay)
    # step s of the warm-up has (s + 1) / (warmup + 1) of the rate: the first step is not wasted on a rate of 0
    rate = optax.join_schedules([lambda s: learning_rate * (s + 1) / (warmup + 1), main], [warmup]) if warmup else main
    adamw = optax.adamw(rate, b1=adam_beta1, b2=adam_beta2, eps=adam_epsilon, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), adamw), rate


def make_apply(
    optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, Params], tuple[TrainState, jax.Array]]:
    """A jitted `apply(state, gradients)` -> (new state, global gradient norm before clipping). The state is donated."""

    def apply(state: TrainState, gradients: Params):
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        master = state.params if state.low is None else jax.tree.map(join_master, state.params, state.low)
        updates, opt_state = optimizer.update(gradients, state.opt_state, master)
        master = optax.apply_updates(master, updates)
        norm = optax.global_norm(gradients)
        if state.low is None:
            return TrainState(master, None, opt_state), norm
        leaves, tree = jax.tree.flatten(master)
        high, low = zip(*map(split_master, leaves))
        return TrainState(jax.tree.unflatten(tree, high), jax.tree.unflatten(tree, low), opt_state), norm

    return jax.jit(apply, donate_argnums=0)
