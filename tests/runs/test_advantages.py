"""Advantages of a draw: the KL in the reward, terms normalised one by one, completions that are left out."""

from dataclasses import replace

import numpy as np
import pytest

from rlt_jax.configs import PRESETS, AdvantagesConfig, LossConfig
from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite
from rlt_jax.models import Work
from rlt_jax.rewards.logprobs import Pass
from rlt_jax.rewards.rlt import Rewards
from rlt_jax.rewards.scorer import Scored
from rlt_jax.runs.advantages import advantages_of
from rlt_jax.types import Completion

REWARDS = np.array([1.0, 3.0, 2.0, 2.0], np.float32)
COMPLETIONS = [Completion(np.zeros(2, np.int32), np.zeros(2, np.float32), i != 1, 0) for i in range(4)]
BASE = replace(PRESETS["tiny"], output_dir="x", train_batch_size=4, num_generations=2)


def of(rewards=None, policy=None, reference=None, loss=None, **settings):
    config = replace(BASE, advantages=AdvantagesConfig(**settings), loss=LossConfig() if loss is None else loss)
    scored = Scored([], [], Rewards(REWARDS, {}) if rewards is None else rewards)
    return advantages_of(config, scored, COMPLETIONS, policy, reference, reward_name="it", name="row {}".format)


def test_the_default_is_the_papers():
    found = of()
    half = np.sqrt(2)  # of two rewards 2 apart: deviation 1, unbiased standard deviation sqrt(2)
    np.testing.assert_allclose(found.values, [-1 / (half + 1e-4), 1 / (half + 1e-4), 0, 0], rtol=1e-6)
    assert found.trained.all() and found.values.dtype == np.float32


def test_scale_and_baseline():
    np.testing.assert_allclose(of(scale="none").values, [-1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(of(scale="none", baseline="leave_one_out").values, [-2, 2, 0, 0], atol=1e-6)
    batch = REWARDS.std(ddof=1)
    np.testing.assert_allclose(of(scale="batch").values, np.array([-1, 1, 0, 0]) / (batch + 1e-4), rtol=1e-6)


def test_completions_that_are_left_out_have_no_advantage():
    assert of(zero_spread="drop").trained.tolist() == [True, True, False, False]
    cut = of(cut_off="mask")
    assert cut.trained.tolist() == [True, False, True, True] and cut.values[1] == 0 and cut.values[0] < 0
    assert of(zero_spread="drop", cut_off="mask").trained.tolist() == [True, False, False, False]


def test_each_term_weighs_alike_whatever_its_scale():
    """The reward alone would hide the small term; normalised in its group it decides where the large one is even."""
    terms = {"large": np.array([1000.0, 3000, 5, 5], np.float32), "small": np.array([0.02, 0.01, 0.01, 0.03])}
    rewards = Rewards(terms["large"] + terms["small"], {**terms, "other": REWARDS}, ("large", "small"))
    found = of(rewards, aggregation="normalize_then_sum").values
    assert abs(found[0] + found[1]) < 0.1 and abs(found[0]) < 0.1  # the two terms cancel
    assert found[2] < -0.8 and found[3] > 0.8
    with pytest.raises(UserError, match="it names none: let it return Rewards"):
        of(aggregation="normalize_then_sum")


@pytest.mark.parametrize(("kind", "expected"), [("k1", [0.3, 0.0]), ("k2", [0.025, 0.02])])
def test_the_kl_in_the_reward_is_summed_over_each_completion(kind, expected):
    policy = Pass([np.float32([0, -1.0, -2.0]), np.float32([0, -1.0]), *[np.zeros(1, np.float32)] * 2], Work())
    of_reference = [np.float32([0, -1.1, -2.2]), np.float32([0, -1.0 - (kind == "k2") * 0.2])]
    reference = Pass([*of_reference, *[np.zeros(1, np.float32)] * 2], Work())
    loss = LossConfig(beta=2.0, kl_in="reward", kl_kind=kind)
    found = of(policy=policy, reference=reference, loss=loss, scale="none").values
    reward = REWARDS[:2] - 2.0 * np.array(expected)
    np.testing.assert_allclose(found[:2], reward - reward.mean(), rtol=1e-5)
    if kind == "k1":  # as a term by itself, here against the reward: beta is its weight after it was normalised
        terms = Rewards(-REWARDS, {"a": -REWARDS}, ("a",))
        for beta, sign in ((0.1, 1), (2.0, -1)):
            loss = LossConfig(beta=beta, kl_in="reward", kl_kind=kind)
            by_term = of(terms, policy, reference, loss, aggregation="normalize_then_sum").values
            assert sign * by_term[0] > 0.5
    in_loss = of(policy=policy, reference=reference, loss=LossConfig(beta=2.0), scale="none").values
    np.testing.assert_allclose(in_loss[:2], [-1, 1], atol=1e-6)


def test_rewards_too_large_for_a_mean_are_named():
    rewards = Rewards(np.array([3e38, 3e38, -3e38, 3e38], np.float32), {})
    with pytest.raises(NotFinite, match=r"the advantages \(of rewards as large as 3e\+38, by it\)") as fault:
        of(rewards)
    assert fault.value.stage == "advantages" and fault.value.values["reward"][0] == np.float32(3e38)
