"""Truncated importance weights: worked numbers, poisoned padding, no gradient, and what they do to the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.losses import grpo_loss, importance_weights

LOGPS = jnp.log(jnp.array([[0.5, 0.2, 0.9], [0.4, 0.1, 0.3]]))
SAMPLER = jnp.log(jnp.array([[0.25, 0.4, 0.9], [0.1, 0.2, 0.3]]))
MASK = jnp.array([[True, True, True], [True, True, False]])
# ratios: [2, 0.5, 1], [4, 0.5, off]; products: 1 and 2


@pytest.mark.parametrize(
    ("correction", "cap", "expected"),
    [
        ("none", 1e-3, [[1, 1, 1], [1, 1, 0]]),
        ("token", 3.0, [[2, 0.5, 1], [3, 0.5, 0]]),
        ("token", 1e9, [[2, 0.5, 1], [4, 0.5, 0]]),
        ("sequence", 1.5, [[1, 1, 1], [1.5, 1.5, 0]]),
        ("sequence", 1e9, [[1, 1, 1], [2, 2, 0]]),
    ],
)
def test_worked_numbers(correction, cap, expected):
    weights, _, _ = importance_weights(LOGPS, SAMPLER, MASK, correction=correction, cap=cap)
    np.testing.assert_allclose(weights, np.array(expected, np.float32), rtol=1e-6)


def test_diagnostics_average_rows_and_take_maxima_of_tokens():
    _, means, maxima = importance_weights(LOGPS, SAMPLER, MASK, correction="token", cap=3.0)
    log2 = np.log(2)
    assert float(means["sampler_logp_diff"]) == pytest.approx((2 * log2 / 3 + 3 * log2 / 2) / 2)
    assert float(means["importance_ratio"]) == pytest.approx((3.5 / 3 + 4.5 / 2) / 2)
    assert float(means["importance_capped"]) == pytest.approx((0 + 1 / 2) / 2)
    assert float(maxima["sampler_logp_diff_max"]) == pytest.approx(2 * log2)
    assert float(maxima["importance_ratio_max"]) == pytest.approx(4.0)


@pytest.mark.parametrize("correction", ["none", "token", "sequence"])
def test_what_stands_off_the_mask_is_not_read(correction):
    poison = jnp.where(MASK, 0.0, jnp.nan)
    clean = importance_weights(LOGPS, SAMPLER, MASK, correction=correction, cap=2.0)
    dirty = importance_weights(LOGPS + poison, SAMPLER - jnp.inf * ~MASK, MASK, correction=correction, cap=2.0)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_row_without_tokens_counts_as_zero_difference():
    weights, means, maxima = importance_weights(LOGPS, SAMPLER, jnp.zeros_like(MASK), correction="sequence", cap=2.0)
    assert not weights.any()
    assert float(means["sampler_logp_diff"]) == float(maxima["sampler_logp_diff_max"]) == 0.0


@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_weights_carry_no_gradient(correction):
    def total(logps):
        return importance_weights(logps, SAMPLER, MASK, correction=correction, cap=9.0)[0].sum()

    assert not jax.grad(total)(LOGPS).any()


def test_an_unbiased_estimate_for_tokens_drawn_by_another_policy():
    """E_q[(p/q) A ∇log p] = E_p[A ∇log p]: three tokens, all of them drawn in the exact proportions of q."""
    p, q, gain = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.25, 0.25]), np.array([1.0, -2.0, 0.5])
    counts = (q * 20).astype(int)
    tokens = np.repeat(np.arange(3), counts)

    def loss(logits):
        logps = jax.nn.log_softmax(logits)[tokens][:, None]
        mask = jnp.ones_like(logps, bool)
        sampler = jnp.log(jnp.asarray(q))[tokens][:, None]
        weights, _, _ = importance_weights(logps, sampler, mask, correction="token", cap=1e9)
        old = jax.lax.stop_gradient(logps)
        return grpo_loss(logps, old, old, jnp.asarray(gain)[tokens], mask, beta=0.0, token_weights=weights)[0]

    def expected(logits):
        return -(jax.lax.stop_gradient(jax.nn.softmax(logits)) * jax.nn.log_softmax(logits) * gain).sum()

    logits = jnp.log(jnp.asarray(p))
    np.testing.assert_allclose(jax.grad(loss)(logits), jax.grad(expected)(logits), atol=1e-6)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        importance_weights(LOGPS, SAMPLER[:, :2], MASK, correction="none", cap=1.0)
