"""GRPO: golden numbers of the original, analytic gradients, and what padding must not do."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlt_jax.losses import completion_mask, group_advantages, grpo_loss, token_logprobs

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
CASES = ["rand0", "rand1", "rand2"]


def draw_batch(seed, rows=4, length=5):
    """logps, old_logps, ref_logps, advantages, mask: rows of 1 to `length` tokens, off-policy by a little."""
    rng = np.random.default_rng(seed)
    logps = -rng.exponential(size=(rows, length)).astype(np.float32)
    old, ref = (logps + 0.3 * rng.normal(size=(2, rows, length))).astype(np.float32)
    mask = np.arange(length) < rng.integers(1, length + 1, size=rows)[:, None]
    return tuple(map(jnp.asarray, (logps, old, ref, rng.normal(size=rows).astype(np.float32), mask)))


@jax.jit
def loss_and_grad(logps, *rest):
    return jax.value_and_grad(lambda x: grpo_loss(x, *rest, beta=0.04)[0])(logps)


# ---- completion mask


def test_golden_masks(golden):
    z = np.load(golden / "grpo_cases.npz")
    np.testing.assert_array_equal(completion_mask(z["masks/completion_ids"], 999), z["masks/completion_mask"] == 1)
    np.testing.assert_array_equal(completion_mask(z["batch/completion_ids"], 999), z["batch/completion_mask"] == 1)
    e = np.load(golden / "end_to_end.npz")
    np.testing.assert_array_equal(completion_mask(e["completion_ids"], 999), e["completion_mask"] == 1)


def test_lengths_keep_pads_of_unfinished_rows_out(golden):
    # Departure: without EOS (rows 2 and 6) the original trains on the padding (id 997); lengths mend that.
    z = np.load(golden / "grpo_cases.npz")
    ids, original = z["masks/completion_ids"], z["masks/completion_mask"] == 1
    lengths = np.array([1, 2, 3, 5, 6, 6, 1])
    mask = np.asarray(completion_mask(ids, 999, lengths=lengths))
    unfinished = [2, 6]
    np.testing.assert_array_equal(np.delete(mask, unfinished, 0), np.delete(original, unfinished, 0))
    np.testing.assert_array_equal(mask[unfinished], [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    assert original[unfinished].all()
    assert not completion_mask(ids, 999, lengths=np.zeros(7, int)).any()


@pytest.mark.parametrize("eos", [(7, 9), [9, 7], np.array([7, 9])])
def test_several_eos_ids(eos):
    ids = jnp.asarray([[1, 9, 7, 2], [7, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(completion_mask(ids, eos), [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def test_mask_under_jit_where_pad_is_eos():
    mask = jax.jit(completion_mask, static_argnums=1)(jnp.asarray([[3, 9, 9, 9]]), 9, lengths=jnp.asarray([2]))
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0]])


# ---- advantages


@pytest.mark.parametrize("n", [2, 4, 8])
def test_golden_advantages(golden, n):
    z = np.load(golden / "grpo_cases.npz")
    ours = np.asarray(group_advantages(z[f"adv{n}/rewards"], n))
    np.testing.assert_allclose(ours, z[f"adv{n}/advantages"], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(ours[-n:], 0)  # the last group has no spread


def test_golden_advantages_of_two_rewards(golden):
    z = np.load(golden / "grpo_cases.npz")
    rewards = z["adv_two_rewards/rewards"] @ z["adv_two_rewards/weights"]
    ours = group_advantages(rewards, int(z["adv_two_rewards/num_generations"]))
    np.testing.assert_allclose(ours, z["adv_two_rewards/advantages"], rtol=1e-3, atol=1e-5)


def test_golden_advantages_end_to_end(golden):
    recorded = json.loads((golden / "end_to_end.json").read_text())
    rewards = np.array(recorded["metrics"]["total_teacher_likelihood_reward"], np.float32)
    expected = np.load(golden / "end_to_end.npz")["advantages"]
    np.testing.assert_allclose(group_advantages(rewards, recorded["num_generations"]), expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, -7.3, 1000.1, 1e30])
def test_equal_rewards_get_exact_zeros(value):
    # Departure: in the original the mean's rounding leaves such a group tiny non-zero advantages.
    rewards = jnp.asarray([value] * 7 + [0.0] * 6 + [1.0], jnp.float32)
    advantages = np.asarray(group_advantages(rewards, 7))
    np.testing.assert_array_equal(advantages[:7], 0)
    assert advantages[-1] > 2


def test_a_single_generation_has_no_advantage():
    np.testing.assert_array_equal(group_advantages(jnp.asarray([1.0, -3.0, 1e20]), 1), 0)


def test_huge_spread_stays_finite():
    advantages = group_advantages(jnp.asarray([1e30, 0.0, 0.0, 0.0]), 4)
    np.testing.assert_allclose(advantages, [1.5, -0.5, -0.5, -0.5], rtol=1e-5)


@few
@given(seeds, st.floats(-50, 50, width=32))
def test_advantages_do_not_change_with_a_shift(seed, shift):
    rewards = np.random.default_rng(seed).normal(size=8).astype(np.float32)
    np.testing.assert_allclose(group_advantages(rewards + shift, 4), group_advantages(rewards, 4), rtol=1e-2, atol=1e-3)


@few
@given(seeds)
def test_advantages_follow_a_permutation_inside_a_group(seed):
    rng = np.random.default_rng(seed)
    rewards, order = rng.normal(size=8).astype(np.float32), np.r_[rng.permutation(4), 4 + rng.permutation(4)]
    np.testing.assert_allclose(group_advantages(rewards[order], 4), group_advantages(rewards, 4)[order], atol=1e-5)


def test_advantages_refuse_what_cannot_be_grouped():
    with pytest.raises(ValueError, match=r"num_generations=3 does not divide the 8 rewards: give every prompt 3 comp"):
        group_advantages(jnp.zeros(8), 3)
    with pytest.raises(ValueError, match=r"num_generations=0: expected at least 1"):
        group_advantages(jnp.zeros(8), 0)


# ---- loss


@pytest.mark.parametrize("case", CASES)
def test_golden_loss(golden, case):
    z = np.load(golden / "grpo_cases.npz")
    prompt, beta, mask = int(z[f"{case}/prompt_len"]), float(z[f"{case}/beta"]), z[f"{case}/completion_mask"]
    ref, advantages = z[f"{case}/ref_per_token_logps"], z[f"{case}/advantages"]

    def loss_of_logits(logits):
        logps = token_logprobs(
            logits[:, prompt - 1 : -1], z[f"{case}/input_ids"][:, prompt:], temperature=z[f"{case}/temperature"]
        )
        return grpo_loss(logps, logps, ref, advantages, mask, beta=beta)

    (loss, aux), grad = jax.jit(jax.value_and_grad(loss_of_logits, has_aux=True))(z[f"{case}/logits"])
    np.testing.assert_allclose(loss, z[f"{case}/loss"], atol=1e-5)
    np.testing.assert_allclose(aux["kl"], z[f"{case}/mean_kl"], atol=1e-5)
    assert aux["ratio"] == 1
    expected = z[f"{case}/grad_logits"]
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())

    def loss_of_row(*row):
        return grpo_loss(*(x[None] for x in row), beta=beta)

    logps = z[f"{case}/per_token_logps"]
    loss, aux = jax.jit(jax.vmap(loss_of_row))(logps, logps, ref, advantages, mask)
    np.testing.assert_allclose(loss, z[f"{case}/seq_loss"], atol=1e-5)
    np.testing.assert_allclose(aux["kl"], z[f"{case}/seq_kl"], atol=1e-5)


def test_golden_batch(golden):
    z = np.load(golden / "grpo_cases.npz")
    logps, ref, advantages = (z[f"batch/{k}"] for k in ("per_token_logps", "ref_per_token_logps", "advantages"))
    loss, aux = grpo_loss(logps, logps, ref, advantages, z["batch/completion_mask"], beta=float(z["batch/beta"]))
    np.testing.assert_allclose(loss, z["batch/loss"], atol=1e-6)
    np.testing.assert_allclose(aux["kl"], z["batch/mean_kl"], atol=1e-6)


def test_on_policy_gradient_is_the_textbook_one():
    logps, _, ref, advantages, mask = draw_batch(0)
    share = mask / mask.sum(axis=1, keepdims=True) / len(logps)
    expected = share * (-advantages[:, None] + 0.04 * (1 - jnp.exp(ref - logps)))
    _, grad = loss_and_grad(logps, logps, ref, advantages, mask)
    np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_gradients_numerically():
    with jax.enable_x64(True):
        logps, old, ref, advantages, mask = draw_batch(1)
        weights = jnp.linspace(0.2, 1.0, logps.size).reshape(logps.shape)
        check_grads(
            jax.jit(lambda x: grpo_loss(x, old, ref, advantages, mask, beta=0.3, token_weights=weights)[0]),
            (logps.astype(jnp.float64),),
            order=1,
            rtol=1e-6,
            atol=1e-6,
        )


def test_only_logps_carry_a_gradient():
    logps, old, ref, advantages, mask = draw_batch(2)
    grads = jax.grad(
        lambda o, r, a, w: grpo_loss(logps, o, r, a, mask, beta=0.04, token_weights=w)[0], argnums=(0, 1, 2, 3)
    )(old, ref, advantages, jnp.ones_like(logps))
    for grad in grads:
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


@few
@given(seeds)
def test_micro_batches_average_to_the_full_batch(seed):
    batch = draw_batch(seed)
    parts = [loss_and_grad(*(np.asarray(x)[rows] for x in batch)) for rows in ([0, 1], [2, 3])]
    loss, grad = loss_and_grad(*batch)
    np.testing.assert_allclose(sum(part[0] for part in parts) / 2, loss, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]) / 2, grad, atol=1e-6)


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_masked_slots_change_nothing(poison):
    logps, old, ref, advantages, mask = draw_batch(3)
    weights = jnp.full_like(logps, 0.5)

    def run(x, o, r, w):
        return jax.value_and_grad(
            lambda x: grpo_loss(x, o, r, advantages, mask, beta=0.04, token_weights=w), has_aux=True
        )(x)

    clean = run(logps, old, ref, weights)
    dirty = [jnp.where(mask, x, poison) for x in (logps, old, ref, weights)]
    poisoned = run(*dirty)
    with jax.debug_nans(True), jax.debug_infs(True):  # not even on the way; logps stay clean, whose NaN it would report
        run(logps, *dirty[1:])
    assert not mask.all()
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(b).all()


@pytest.mark.parametrize("advantage", [0.7, np.inf])
def test_a_row_without_mask_contributes_zero_and_counts(advantage):
    logps, old, ref, advantages, mask = draw_batch(4)
    three, aux_three = grpo_loss(logps[:3], old[:3], ref[:3], advantages[:3], mask[:3], beta=0.04)
    advantages, mask = advantages.at[3].set(advantage), mask.at[3].set(False)
    with jax.debug_nans(True):  # 0 * inf is one
        (four, aux), grad = jax.value_and_grad(
            lambda x: grpo_loss(x, old, ref, advantages, mask, beta=0.04), has_aux=True
        )(logps)
    np.testing.assert_allclose(four, three * 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(aux["kl"], aux_three["kl"] * 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(aux["ratio"], aux_three["ratio"], rtol=1e-6)
    np.testing.assert_array_equal(grad[3], 0)
    assert np.isfinite(grad).all()


def test_token_weights_scale_the_policy_term_alone():
    logps, old, ref, advantages, mask = draw_batch(5)
    plain, aux = grpo_loss(logps, old, ref, advantages, mask, beta=0.04)
    halved, aux_halved = grpo_loss(
        logps, old, ref, advantages, mask, beta=0.04, token_weights=jnp.full_like(logps, 0.5)
    )
    np.testing.assert_allclose(plain, aux["policy_loss"] + 0.04 * aux["kl"], rtol=1e-6)
    np.testing.assert_allclose(aux_halved["policy_loss"], aux["policy_loss"] / 2, rtol=1e-6)
    assert aux_halved["kl"] == aux["kl"]
    np.testing.assert_allclose(halved, aux["policy_loss"] / 2 + 0.04 * aux["kl"], rtol=1e-6)


def test_a_weight_of_zero_drops_the_token():
    logps, old, ref, advantages, mask = draw_batch(6)
    weights = jnp.ones_like(logps).at[0, 0].set(0.0)
    grad = jax.grad(lambda x: grpo_loss(x, old, ref, advantages, mask, beta=0.0, token_weights=weights)[0])(logps)
    assert grad[0, 0] == 0
    assert (np.asarray(grad)[np.asarray(mask)][1:] != 0).all()


def test_loss_is_float32_for_bf16_log_probs():
    logps, old, ref, advantages, mask = draw_batch(7)
    loss, _ = grpo_loss(logps.astype(jnp.bfloat16), old, ref, advantages, mask, beta=0.04)
    assert loss.dtype == jnp.float32


def test_shapes_must_agree():
    logps, old, ref, advantages, mask = draw_batch(8)
    with pytest.raises(AssertionError):
        grpo_loss(logps, old, ref[:, 1:], advantages, mask, beta=0.04)
    with pytest.raises(AssertionError):
        grpo_loss(logps, old, ref, advantages[:2], mask, beta=0.04)
    with pytest.raises(AssertionError):
        grpo_loss(logps, old, ref, advantages, mask, beta=0.04, token_weights=jnp.ones(4))


# without a reference


def test_without_a_kl_term_the_reference_changes_nothing():
    """The same loss and the same gradient, bit for bit, and no `kl`."""
    key = jax.random.key(5)
    logps, ref = -jax.random.exponential(key, (2, 3, 6))
    advantages, mask = jnp.array([1.0, -2.0, 0.5]), jnp.arange(6) < jnp.array([[6], [3], [0]])

    def run(ref_logps):
        def loss(x):
            return grpo_loss(x, jax.lax.stop_gradient(x), ref_logps, advantages, mask, beta=0.0)

        (value, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logps)
        return value, aux, gradient

    (value, aux, gradient), (no_value, no_aux, no_gradient) = run(ref), run(None)
    np.testing.assert_array_equal(no_gradient, gradient)
    assert no_value == value and aux.keys() - no_aux.keys() == {"kl"}
    assert no_aux == {name: aux[name] for name in no_aux}


def test_a_kl_term_needs_the_reference():
    logps = jnp.zeros((1, 2))
    for beta in (0.04, jnp.float32(0.04)):
        with pytest.raises(ValueError, match="without ref_logps: the KL term needs the reference's log-probs"):
            grpo_loss(logps, logps, None, jnp.zeros(1), jnp.ones((1, 2), bool), beta=beta)
    with pytest.raises(ValueError, match="without ref_logps"):  # not known to be 0
        jax.jit(lambda beta: grpo_loss(logps, logps, None, jnp.zeros(1), jnp.ones((1, 2), bool), beta=beta)[0])(0.0)
