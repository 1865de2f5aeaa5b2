"""The objective with and without a sampler whose log-probs compare with the policy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.configs import LossConfig
from rlt_jax.learner.objective import grpo_objective
from rlt_jax.types import TrainBatch

RNG = np.random.default_rng(0)
LOGPS, REF, SAMPLER = (jnp.asarray(RNG.normal(-2, 0.5, (3, 5)), jnp.float32) for _ in range(3))
MASK = jnp.asarray(RNG.random((3, 5)) < 0.7)
COMPARED = {"sampler_logp_diff", "importance_ratio", "importance_capped"}


def batch(sampler_logps):
    return TrainBatch(jnp.zeros((3, 5), jnp.int32), MASK, REF, sampler_logps, jnp.array([1.0, -1.0, 0.5]))


def test_unknown_log_probs_of_the_sampler_change_nothing_but_the_diagnostics():
    unknown = jnp.full((3, 5), jnp.nan)
    known, blind = grpo_objective(LossConfig()), grpo_objective(LossConfig(), compare_sampler=False)
    (loss, diagnostics), gradient = jax.value_and_grad(known, has_aux=True)(LOGPS, batch(SAMPLER))
    (blind_loss, blind_diagnostics), blind_gradient = jax.value_and_grad(blind, has_aux=True)(LOGPS, batch(unknown))
    assert blind_loss == loss
    np.testing.assert_array_equal(blind_gradient, gradient)
    assert np.abs(gradient).max() > 0.1
    assert diagnostics.means.keys() - blind_diagnostics.means.keys() == COMPARED
    assert diagnostics.maxima.keys() == {"sampler_logp_diff_max", "importance_ratio_max"}
    assert blind_diagnostics.maxima == {}
    for name, value in blind_diagnostics.means.items():
        assert value == diagnostics.means[name] and np.isfinite(value)


@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_a_correction_needs_log_probs_that_compare(correction):
    with pytest.raises(ValueError, match=f"importance_correction={correction} without comparable log-probs"):
        grpo_objective(LossConfig(importance_correction=correction), compare_sampler=False)
