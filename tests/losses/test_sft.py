"""Supervised loss: mean over all trained tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.losses import sft_loss

LOGPS = jnp.asarray([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
MASK = jnp.asarray([[True, True, False], [False, True, True]])


def test_mean_over_all_tokens_not_over_rows():
    assert sft_loss(LOGPS, MASK) == pytest.approx((1 + 2 + 5 + 6) / 4)
    assert sft_loss(LOGPS, MASK.at[0, 1].set(False).astype(jnp.int32)) == pytest.approx((1 + 5 + 6) / 3)


def test_no_trained_token_gives_zero():
    loss, grad = jax.value_and_grad(sft_loss)(LOGPS, jnp.zeros_like(MASK))
    assert loss == 0
    np.testing.assert_array_equal(grad, np.zeros((2, 3)))


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_masked_slots_change_nothing(poison):
    loss, grad = jax.value_and_grad(sft_loss)(jnp.where(MASK, LOGPS, poison), MASK)
    assert loss == sft_loss(LOGPS, MASK)
    np.testing.assert_allclose(grad, np.where(MASK, -0.25, 0.0))


def test_micro_batches_weighted_by_their_tokens_give_the_full_loss():
    mask = MASK.at[1, 1].set(False)
    counts = mask.sum(axis=1)
    parts = jnp.stack([sft_loss(LOGPS[i : i + 1], mask[i : i + 1]) for i in range(2)])
    np.testing.assert_allclose(jnp.sum(parts * counts) / counts.sum(), sft_loss(LOGPS, mask), rtol=1e-6)


def test_bf16_is_summed_in_float32():
    logps = jnp.full((1, 1000), -0.1, jnp.bfloat16)
    loss = sft_loss(logps, jnp.ones((1, 1000), bool))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, -float(logps[0, 0]), rtol=1e-5)


def test_a_token_counts_as_often_as_the_mask_says():
    counts = MASK.astype(jnp.float32).at[0, 1].set(3.0)
    loss, grad = jax.value_and_grad(sft_loss)(LOGPS, counts)
    assert loss == pytest.approx((1 + 3 * 2 + 5 + 6) / 6)
    np.testing.assert_allclose(grad, -counts / 6, rtol=1e-6)


def test_what_counts_for_nothing_is_never_read():
    counts = MASK.astype(jnp.float32) * 2
    loss, grad = jax.value_and_grad(sft_loss)(jnp.where(MASK, LOGPS, jnp.nan), counts)
    assert loss == sft_loss(LOGPS, MASK)
    np.testing.assert_allclose(grad, np.where(MASK, -0.25, 0.0))


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        sft_loss(LOGPS, MASK[:, 1:])
