"""Truncated importance weights: worked numbers, poisoned padding, no gradient, and what they do to the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.losses import importance_weights, policy_loss, row_weights
from tests.losses.trl_cases import ROWS, cases, importance_options, with_array

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
        return policy_loss(logps, old, old, jnp.asarray(gain)[tokens], mask, epsilon_low=None, token_weights=weights)[0]

    def expected(logits):
        return -(jax.lax.stop_gradient(jax.nn.softmax(logits)) * jax.nn.log_softmax(logits) * gain).sum()

    logits = jnp.log(jnp.asarray(p))
    np.testing.assert_allclose(jax.grad(loss)(logits), jax.grad(expected)(logits), atol=1e-6)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        importance_weights(LOGPS, SAMPLER[:, :2], MASK, correction="none", cap=1.0)


# ---- bounds, masks, whole sequences


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"correction": "token", "cap": 3.0, "low": 0.8}, [[2, 0.8, 1], [3, 0.8, 0]]),
        ({"correction": "token", "cap": 2.0, "low": 0.8, "outside": "mask"}, [[2, 0, 1], [0, 0, 0]]),
        ({"correction": "sequence", "cap": 1.5, "outside": "mask"}, [[1, 1, 1], [0, 0, 0]]),
        ({"correction": "sequence_mean", "cap": 9.0}, [[1, 1, 1], [2**0.5, 2**0.5, 0]]),
        ({"correction": "sequence_mean", "cap": 1.2}, [[1, 1, 1], [1.2, 1.2, 0]]),
        ({"correction": "none", "cap": 0.1, "low": 0.05, "outside": "mask"}, [[1, 1, 1], [1, 1, 0]]),
    ],
)
def test_worked_numbers_of_bounds(options, expected):
    weights, means, _ = importance_weights(LOGPS, SAMPLER, MASK, **options)
    np.testing.assert_allclose(weights, np.array(expected, np.float32), rtol=1e-6)
    dropped = [np.mean(np.asarray(row)[taken] == 0) for row, taken in zip(expected, np.asarray(MASK))]
    if options.get("outside") == "mask":
        assert float(means["importance_masked"]) == pytest.approx(np.mean(dropped))
    else:
        assert "importance_masked" not in means


def test_a_token_without_a_sampler_log_prob_counts_as_one():
    unknown = SAMPLER.at[0, 0].set(jnp.nan)
    weights, means, maxima = importance_weights(LOGPS, unknown, MASK, correction="sequence", cap=9.0)
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0.5], [2, 2, 0]], rtol=1e-6)
    assert np.isfinite([*means.values(), *maxima.values()]).all()


def test_the_mean_of_a_long_sequence_stays_near_one():
    noise = jnp.asarray(np.random.default_rng(0).normal(0, 0.05, (4, 6144)), jnp.float32)
    zeros = jnp.zeros_like(noise)
    product, mean = (
        np.asarray(importance_weights(noise, zeros, zeros == 0, correction=correction, cap=1e9)[0][:, 0])
        for correction in ("sequence", "sequence_mean")
    )
    assert np.abs(np.log(product)).max() > 3 and np.abs(np.log(mean)).max() < 0.002


def test_means_of_micro_batches_add_up_to_the_steps():
    options = {"correction": "token", "cap": 3.0, "low": 0.8, "outside": "mask"}
    whole = importance_weights(LOGPS, SAMPLER, MASK, **options)[1]
    parts = [
        importance_weights(LOGPS, SAMPLER, MASK & row[:, None], rows=2, **options)[1]
        for row in (np.array([True, False]), np.array([False, True]))
    ]
    for name, mean in whole.items():
        np.testing.assert_allclose(sum(part[name] for part in parts), mean, rtol=1e-6)


def test_one_weight_for_each_row():
    weights, _, _ = importance_weights(LOGPS, SAMPLER, MASK, correction="sequence", cap=9.0)
    np.testing.assert_allclose(row_weights(weights, MASK), [[1], [2]], rtol=1e-6)
    np.testing.assert_array_equal(row_weights(weights, jnp.zeros_like(MASK)), [[1], [1]])


@pytest.mark.parametrize("name", with_array("importance_sampling_ratio"))
def test_trl(name):
    case = cases()[name]
    recorded, mask = case.arrays["importance_sampling_ratio"], case.padded("mask") == 1
    rows, length = case.record["shape"]

    def filled(x):
        return np.pad(x, ((0, ROWS - rows), (0, 0)))

    arrays = (filled(x) for x in (case.padded("old_logps"), case.padded("sampling_logps"), mask))
    weights, _, _ = importance_weights(*arrays, **importance_options(case))
    expected = np.where(mask[:, :length], recorded, 0.0)
    np.testing.assert_allclose(weights[:rows, :length], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"correction": "tokens"}, {"correction": "token", "outside": "drop"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="expected one of"):
        importance_weights(LOGPS, SAMPLER, MASK, cap=1.0, **options)
