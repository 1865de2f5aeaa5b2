"""The optimizer of a run: AdamW on float32 masters, its state on the card or streamed from pinned host memory."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import jax
import optax

from rlt_jax.configs import MemoryConfig, OptimizerConfig
from rlt_jax.host_adamw import host_state_shapes, init_host_state, make_host_apply
from rlt_jax.models import Params
from rlt_jax.placement import card
from rlt_jax.update import TrainState, init_state, make_apply, make_optimizer


class Optimizer(NamedTuple):
    """Functions of a TrainState; the same numbers wherever the state lies."""

    init: Callable[[Params], TrainState]  # a fresh state around loaded weights, which it takes over
    like: Callable[[Params], TrainState]  # shapes and places of a state, for a checkpoint to be restored into
    apply: Callable[[TrainState, Params], tuple[TrainState, jax.Array]]
    """(state, gradients) -> (new state, global gradient norm f32[] before clipping). The state is donated."""
    learning_rate: optax.Schedule  # of a step, counted from 0


def open_optimizer(config: OptimizerConfig, memory: MemoryConfig, *, learning_rate: float, max_steps: int) -> Optimizer:
    """The optimizer that a configuration asks for.

    Args:
      learning_rate: peak rate.
      max_steps: steps of the whole run, which the schedule is stretched over.
    """
    settings = asdict(config)
    transformation, rate = make_optimizer(learning_rate=learning_rate, max_steps=max_steps, **settings)
    if memory.optimizer == "card":

        def init(params: Params) -> TrainState:
            # committed to the card as a restored state is, or a resumed run would compile everything anew
            return jax.device_put(init_state(params, transformation), card())

        def like(params: Params) -> TrainState:
            shapes = jax.eval_shape(lambda p: init_state(p, transformation), params)
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=card()), shapes)

        return Optimizer(init, like, make_apply(transformation), rate)

    unscheduled = {name: value for name, value in settings.items() if name not in ("lr_scheduler", "warmup_ratio")}
    host_apply = make_host_apply(rate, **unscheduled)

    def init_on_host(params: Params) -> TrainState:
        return TrainState(jax.device_put(params, card()), None, init_host_state(params, moments=memory.moments))

    def like_on_host(params: Params) -> TrainState:
        shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=card()), params)
        return TrainState(shapes, None, host_state_shapes(params, moments=memory.moments))

    def apply_on_host(state: TrainState, gradients: Params) -> tuple[TrainState, jax.Array]:
        params, opt_state, norm = host_apply(state.params, state.opt_state, gradients)
        return TrainState(params, None, opt_state), norm

    return Optimizer(init_on_host, like_on_host, apply_on_host, rate)
