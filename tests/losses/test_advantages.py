"""Advantages: golden numbers of the original and of TRL; shifts, permutations, huge rewards."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_jax.losses import component_advantages, group_advantages, weighted_rewards, zero_spread
from tests.losses.trl_cases import cases, with_array

few = settings(max_examples=10, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)


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
    np.testing.assert_array_equal(group_advantages(jnp.asarray([1.0, -3.0, 1e20]), 1, eps=0.0), 0)


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


# ---- components

# Departure: of three equal rewards TRL's float32 mean is one ulp off, and the group gets advantages of 1e-4.
DIFFERS = "adv_group_zero_var_inexact"
compiled = jax.jit(component_advantages, static_argnames=("num_generations", "scale", "aggregation", "baseline"))


@pytest.mark.parametrize("name", with_array("out_advantages"))
def test_trl(name):
    case = cases()[name]
    hyper, rewards, weights = case.hyper, case.arrays["rewards_per_func"], case.arrays["reward_weights"]
    size = case.record["group_size"]
    options = {"scale": hyper.get("scale_rewards"), "aggregation": hyper.get("multi_objective_aggregation")}
    if case.record["trainer"] == "rloo":
        # Its trainer sums, clips and takes the KL off first: what comes in here is one reward.
        rewards = np.asarray(weighted_rewards(rewards, weights))
        if hyper["reward_clip_range"] is not None:
            rewards = np.clip(rewards, *hyper["reward_clip_range"])
        if hyper["beta"] != 0:
            difference = case.arrays["old_logps"] - case.arrays["ref_logps"]
            rewards = rewards - hyper["beta"] * np.sum(difference, axis=1, where=case.arrays["mask"] == 1)
        rewards, weights = rewards[:, None], np.ones(1, np.float32)
        options = {"scale": "batch" if hyper["normalize_advantages"] else "none", "baseline": "leave_one_out"}
    # Completions without any reward count nowhere, nor does a missing component: all cases in one shape compile less.
    rows, columns = rewards.shape
    rewards = np.pad(rewards, ((0, 24 - rows), (0, 3 - columns)), constant_values=np.nan)
    weights = np.pad(weights, (0, 3 - columns))
    ours = np.asarray(compiled(rewards, weights, size, **options))
    assert not ours[rows:].any()
    expected = np.pad(case.arrays["out_advantages"], (0, 24 - rows))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-3 if name == DIFFERS else 1e-5)
    if options["scale"] in ("group", "none") and options.get("aggregation") != "normalize_then_sum":
        still = np.asarray(zero_spread(weighted_rewards(rewards, weights), size))
        np.testing.assert_array_equal(still, (ours.reshape(-1, size) == 0).all(axis=1))


def test_trl_differs_where_equal_rewards_round():
    case = cases()[DIFFERS]
    ours = np.asarray(component_advantages(case.arrays["rewards_per_func"], case.arrays["reward_weights"], 3))
    recorded = case.arrays["out_advantages"]
    assert 1e-5 < np.abs(recorded[ours == 0]).max() < 1e-3 and (ours == 0).sum() == 3


@few
@given(seeds, st.sampled_from([1, 2, 4]))
def test_one_component_is_the_plain_group(seed, size):
    rewards = np.random.default_rng(seed).normal(size=8).astype(np.float32)
    ours = compiled(rewards[:, None], jnp.ones(1), size)
    np.testing.assert_allclose(ours, group_advantages(rewards, size), rtol=1e-5, atol=1e-6)


@few
@given(seeds)
def test_gdpo_does_not_see_a_components_scale(seed):
    rewards = np.random.default_rng(seed).normal(size=(8, 2)).astype(np.float32)
    scaled = rewards * np.float32([1000, 1])
    options = {"aggregation": "normalize_then_sum", "eps": 0.0}
    plain = compiled(rewards, jnp.ones(2), 4, **options)
    np.testing.assert_allclose(compiled(scaled, jnp.ones(2), 4, **options), plain, rtol=1e-3, atol=1e-4)
    assert not np.allclose(compiled(scaled, jnp.ones(2), 4), compiled(rewards, jnp.ones(2), 4))


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize(("aggregation", "eps"), [("sum_then_normalize", 0.0), ("normalize_then_sum", 1e-4)])
def test_equal_components_get_exact_zeros_and_huge_ones_stay_finite(aggregation, eps, scale, baseline):
    rewards = np.float32([[0.1, 7.3], [0.1, 7.3], [0.1, 7.3], [1e30, 1.0], [0.0, 2.0], [0.0, np.nan]])
    options = {"scale": scale, "baseline": baseline, "aggregation": aggregation, "eps": eps}
    ours = np.asarray(compiled(rewards, jnp.float32([1.0, 0.5]), 3, **options))
    np.testing.assert_array_equal(ours[:3], 0)
    assert np.isfinite(ours).all() and ours[3] > max(ours[4], ours[5])
    np.testing.assert_array_equal(zero_spread(rewards, 3), [True, False])


def test_leave_one_out_by_hand():
    rewards = jnp.float32([[1.0], [2.0], [6.0], [5.0], [jnp.nan], [9.0]])
    ours = compiled(rewards, jnp.ones(1), 3, scale="none", baseline="leave_one_out")
    np.testing.assert_allclose(ours, [1 - 4, 2 - 3.5, 6 - 1.5, 5 - 9, 0, 9 - 5], rtol=1e-6)


def test_groups_without_spread():
    nan = jnp.nan
    rewards = jnp.float32([1, 1, 1, 2, nan, 3, nan, nan, 3, nan, 3, 3])
    np.testing.assert_array_equal(zero_spread(rewards, 2), [True, False, True, True, True, True])
    components = jnp.stack([jnp.ones(12), rewards], axis=1)
    np.testing.assert_array_equal(zero_spread(components, 2), [True, False, True, True, True, True])
    np.testing.assert_array_equal(zero_spread(components[:, ::-1] * 2, 12), [False])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "rows"}, r"scale='rows': expected one of 'group', 'batch', 'none'"),
        ({"aggregation": "sum"}, r"aggregation='sum': expected one of 'sum_then_normalize', 'normalize_then_sum'"),
        ({"baseline": "value"}, r"baseline='value': expected one of 'mean', 'leave_one_out'"),
        ({"num_generations": 3}, r"num_generations=3 does not divide the 4 rewards"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        component_advantages(jnp.zeros((4, 2)), jnp.ones(2), **({"num_generations": 2} | options))
