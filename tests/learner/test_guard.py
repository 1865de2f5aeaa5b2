"""What is checked before a step changes anything, and the proof that the weights after it are finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlt_jax.configs import MemoryConfig, OptimizerConfig
from rlt_jax.configs.numbers import LARGEST, overflow_problems, update_bound
from rlt_jax.finite import NotFinite, largest
from rlt_jax.learner.guard import check_update
from rlt_jax.learner.optimizer import open_optimizer
from rlt_jax.models import load_model

KINDS = (("device", "float32", "float32"), ("device", "bfloat16", "float32"), ("host", "bfloat16", "bfloat16"))
EXTREMES = (0.0, 1e-45, 1e-30, 1e-22, 1e-19, 1e-10, 1e-3, 1.0, 1e3, 1e10, 1e18)


def powers(low, high):
    return st.integers(low, high).map(lambda power: 10.0**power)


@settings(max_examples=12, deadline=None)
@given(
    optimizer=st.builds(
        OptimizerConfig,
        adam_beta1=st.sampled_from([0.0, 0.5, 0.9, 1 - 1e-6]),
        adam_beta2=st.sampled_from([0.0, 0.5, 0.999, 1 - 1e-6]),
        adam_epsilon=powers(-37, 3),
        weight_decay=st.sampled_from([0.0, 0.1, 1e6]),
        max_grad_norm=powers(-18, 18),
    ),
    learning_rate=powers(-10, 31),
    kind=st.sampled_from(KINDS),
    weight=st.sampled_from([0.0, 1e-30, 1.0, 1e20, 1e37]),
    sizes=st.lists(st.sampled_from(EXTREMES), min_size=4, max_size=4),
)
def test_no_number_of_an_update_exceeds_its_bound(optimizer, learning_rate, kind, weight, sizes):
    """Settings at their extremes, with the real optimizers; gradients of both signs, whose sizes jump."""
    assume(not list(overflow_problems(optimizer, learning_rate=learning_rate)))
    memory, dtype, moments = kind
    real = open_optimizer(
        optimizer, MemoryConfig(optimizer=memory, moments=moments), learning_rate=learning_rate, max_steps=4
    )
    state = real.init({"w": jnp.asarray([weight, -weight, weight, 0.0], dtype)})
    for size in sizes:
        bound = real.bound(float(largest(state.params)))
        assert bound == update_bound(
            optimizer, learning_rate=learning_rate, largest_weight=float(largest(state.params))
        )
        if bound > LARGEST:  # a step that `check_update` refuses
            return
        gradient = np.array([size, -size / 3, size / 1e6, size], np.float32)
        state, _ = real.apply(state, {"w": jnp.asarray(gradient)})
        for leaf in jax.tree.leaves(state):
            values = np.asarray(leaf).astype(np.float64)
            if leaf.dtype in (jnp.float32, jnp.bfloat16):
                assert np.isfinite(values).all() and np.abs(values).max() <= bound


@pytest.mark.parametrize(
    ("changed", "learning_rate", "words"),
    [
        ({}, 1e39, "learning_rate=1e+39: expected at most 3e+32"),
        ({}, 1e31, "learning_rate=1e+31 with optimizer.max_grad_norm=1"),
        ({"max_grad_norm": 1e30}, 1e-6, "optimizer.max_grad_norm=1e+30: expected at most 1e+18"),
        ({"adam_epsilon": 1e-40}, 1e-6, "optimizer.adam_epsilon=1e-40 is 0 in float32"),
        ({"adam_epsilon": 1e-37, "max_grad_norm": 1e3}, 1e-6, "the first update could be 2e+40"),
        ({"adam_beta1": 1 - 1e-9}, 1e-6, "optimizer.adam_beta1=0.999999999: expected at most 0.999999"),
        ({"adam_beta2": 1 - 1e-9}, 1e-6, "optimizer.adam_beta2=0.999999999: expected at most 0.999999"),
        ({"weight_decay": 1e39}, 1e-6, "optimizer.weight_decay=1e+39: expected at most 3e+32"),
    ],
)
def test_settings_that_overflow_at_once_are_refused(changed, learning_rate, words):
    (problem,) = overflow_problems(OptimizerConfig(**changed), learning_rate=learning_rate)
    assert words in problem


def test_usual_settings_are_far_from_it():
    assert list(overflow_problems(OptimizerConfig(), learning_rate=1.0)) == []
    assert update_bound(OptimizerConfig(), learning_rate=1e-6, largest_weight=10.0) < 1e9


@pytest.fixture(scope="module")
def teacher(golden):
    return load_model(golden / "teacher", dtype="float32")


BOUND = open_optimizer(OptimizerConfig(), MemoryConfig(), learning_rate=1e-3, max_steps=1).bound


def refused(teacher, *, params=None, gradients=None, diagnostics=None, bound=BOUND):
    model, weights = teacher
    gradients = jax.tree.map(jnp.ones_like, weights) if gradients is None else gradients
    with pytest.raises(NotFinite) as fault:
        check_update(
            model,
            weights if params is None else params,
            gradients,
            {"loss": jnp.float32(1.0)} if diagnostics is None else diagnostics,
            bound=bound,
            who="the policy",
        )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(gradients))
    assert {"grad_norm", "largest_weight"} <= fault.value.values.keys()
    return fault.value.culprit


def with_norm_weight(params, value):
    return params | {"norm": {"weight": params["norm"]["weight"].at[7].set(value)}}


def test_every_kind_of_number_is_named(teacher):
    model, weights = teacher
    ones = lambda: jax.tree.map(jnp.ones_like, weights)  # noqa: E731  freed each time
    check_update(model, weights, ones(), {"loss": jnp.float32(1.0)}, bound=BOUND, who="the policy")  # all finite
    assert refused(teacher, params=with_norm_weight(weights, jnp.nan)) == (
        "the policy: model.norm.weight has 1 value that is not finite"
    )
    assert "the policy's gradient: model.norm.weight has 1 value that is not finite" in refused(
        teacher, gradients=with_norm_weight(ones(), jnp.inf)
    )
    assert "the policy's gradient: the largest number is 3e+38, so that its norm overflows" in refused(
        teacher, gradients=with_norm_weight(ones(), 3e38)
    )
    assert "the policy's step: kl is inf" in refused(
        teacher, diagnostics={"loss": jnp.float32(0.0), "kl": jnp.float32(jnp.inf)}
    )
    assert "the largest weight is 3e+38, and an update could be" in refused(
        teacher, params=with_norm_weight(weights, 3e38)
    )
