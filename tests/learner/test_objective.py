"""The objective with and without a sampler whose log-probs compare with the policy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.configs import LossConfig
from rlt_jax.learner.objective import policy_objective
from rlt_jax.types import TrainBatch

RNG = np.random.default_rng(0)
LOGPS, REF, SAMPLER = (jnp.asarray(RNG.normal(-2, 0.5, (3, 5)), jnp.float32) for _ in range(3))
MASK = jnp.asarray(RNG.random((3, 5)) < 0.7)
ADVANTAGES = jnp.array([1.0, -1.0, 0.5])
COMPARED = {"sampler_logp_diff", "importance_ratio", "importance_capped"}


def batch(sampler_logps):
    """Three completions, each a sequence."""
    places = jnp.arange(15).reshape(3, 5)
    return TrainBatch(jnp.zeros((3, 5), jnp.int32), MASK, None, places, MASK, REF, sampler_logps, ADVANTAGES)


def test_unknown_log_probs_of_the_sampler_change_nothing_but_the_diagnostics():
    unknown = jnp.full((3, 5), jnp.nan)
    known, blind = policy_objective(LossConfig()), policy_objective(LossConfig(), compare_sampler=False)
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
        policy_objective(LossConfig(importance_correction=correction), compare_sampler=False)


def test_the_gradient_of_a_shared_token_is_the_sum_over_its_completions():
    """Rows of [a b], [a c], [a]: the token a counts in each, with that row's advantage and length.

    On-policy and without a KL term the gradient of a row's loss is -advantage / length at each of its tokens, divided
    by the number of rows.
    """
    places = jnp.array([[4, 1], [4, 0], [4, 2]])
    on = jnp.array([[True, True], [True, True], [True, False]])
    nothing = jnp.zeros((3, 2))
    logps = LOGPS[:1]
    shared = TrainBatch(
        jnp.zeros((1, 5), jnp.int32), jnp.ones((1, 5), bool), None, places, on, None, nothing, ADVANTAGES
    )
    objective = policy_objective(LossConfig(beta=0.0), compare_sampler=False)
    gradient, _ = jax.grad(objective, has_aux=True)(logps, shared)
    expected = [1.0 / 2, -1.0 / 2, 0.0, 0.0, -1.0 / 2 + 1.0 / 2 - 0.5]  # c, b, off the row mask, of no row, a
    np.testing.assert_allclose(gradient[0], np.array(expected) / 3, atol=1e-7)


def test_the_loss_of_shared_tokens_is_that_of_rows_apart():
    """Every value and the gradient, with a KL term and corrected weights, as if each row had tokens of its own."""
    places, on = jnp.array([[0, 1, 2], [0, 1, 3], [0, 4, 0]]), jnp.array([[True] * 3, [True] * 3, [True, True, False]])
    config = LossConfig(beta=0.04, importance_correction="token")
    objective = policy_objective(config)
    shared = TrainBatch(
        jnp.zeros((1, 5), jnp.int32), jnp.ones((1, 5), bool), None, places, on, REF[:, :3], SAMPLER[:, :3], ADVANTAGES
    )
    apart = shared._replace(ids=jnp.zeros((3, 3), jnp.int32), mask=on, places=jnp.arange(9).reshape(3, 3))
    (loss, diagnostics), gradient = jax.value_and_grad(objective, has_aux=True)(LOGPS[:1], shared)
    rows = LOGPS[0][places]
    (expected, apart_diagnostics), of_rows = jax.value_and_grad(objective, has_aux=True)(rows, apart)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), diagnostics, apart_diagnostics)
    summed = np.zeros(5)
    np.add.at(summed, np.asarray(places).ravel(), np.asarray(of_rows).ravel())
    np.testing.assert_allclose(gradient[0], summed, atol=1e-7)
    assert np.abs(summed).min() > 1e-4
