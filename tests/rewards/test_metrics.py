"""Metrics of a batch: the original's numbers, hand-computed ones, and a doc that names every metric."""

import re
from pathlib import Path

import numpy as np
import pytest

from rlt_jax.losses.component_names import REDUCTIONS
from rlt_jax.losses.teacher_reward import teacher_reward
from rlt_jax.rewards.metrics import completion_metrics, eval_metrics, reward_metrics

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.mark.parametrize("num_generations", [2, 4, 8])
def test_reward_and_its_spread_are_the_originals(golden, num_generations):
    cases = np.load(golden / "grpo_cases.npz")
    rewards = cases[f"adv{num_generations}/rewards"]
    metrics = reward_metrics(rewards, {}, num_generations)
    assert metrics["reward"] == pytest.approx(float(cases[f"adv{num_generations}/metric_reward"]), abs=1e-6)
    assert metrics["reward_std"] == pytest.approx(float(cases[f"adv{num_generations}/metric_reward_std"]), abs=1e-6)
    assert metrics["zero_spread_share"] == pytest.approx(1 / 3)  # the last of three groups


def test_equal_rewards_have_no_spread_whatever_rounding_does():
    rewards = np.full(6, 0.1, dtype=np.float32)
    assert reward_metrics(rewards, {}, 3)["zero_spread_share"] == 1.0


def test_components_are_means():
    components = {"kl_reward": np.array([1.0, 2.0, 3.0, 6.0]), "match_reward": np.array([0, -1, 0, 0], np.float32)}
    metrics = reward_metrics(np.array([1.0, 3.0, 5.0, 9.0]), components, 2)
    assert metrics == {
        "reward": 4.5,
        "reward_std": pytest.approx((2**0.5 + 8**0.5) / 2),
        "zero_spread_share": 0.0,
        "near_zero_spread_share": 0.0,
        "component/kl_reward": 3.0,
        "component/match_reward": -0.25,
    }


def test_one_completion_per_question_has_no_spread_to_report():
    assert reward_metrics(np.array([1.0, 2.0]), {}, 1) == {"reward": 1.5}


@pytest.mark.parametrize(
    ("rewards", "components", "num_generations", "message"),
    [
        (np.ones(5), {}, 2, "5 rewards are not whole groups of num_generations=2"),
        (np.ones(4), {}, 0, "4 rewards are not whole groups of num_generations=0"),
        (np.ones((2, 2)), {}, 2, r"rewards: expected one dimension, at least one value, got shape \(2, 2\)"),
        (np.ones(0), {}, 2, r"rewards: expected one dimension, at least one value, got shape \(0,\)"),
        (np.ones(4), {"kl": np.ones(3)}, 2, r"kl: expected shape \(4,\), got shape \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(rewards, components, num_generations, message):
    with pytest.raises(ValueError, match=message):
        reward_metrics(rewards, components, num_generations)


def test_completion_metrics_by_hand():
    metrics = completion_metrics(
        lengths=np.array([3, 10, 5, 6]),
        finished=np.array([True, False, True, True]),
        matched=np.array([True, False, False, True]),
        copy_rates=np.array([0.0, 0.5, 0.25, 0.25]),
        repeat_rates=np.array([0.0, 0.0, 0.5, 0.3]),
        trace_copy_rates=np.array([0.3, np.nan, 0.5, np.nan]),
    )
    assert metrics == {
        "completion_length/min": 3.0,
        "completion_length/mean": 6.0,
        "completion_length/max": 10.0,
        "cut_off_share": 0.25,
        "match_rate": 0.5,
        "copy_rate": 0.25,
        "repeat_rate": pytest.approx(0.2),
        "trace_copy_rate": pytest.approx(0.4),
    }


def test_rows_without_traces_have_no_trace_copy_rate():
    ones = np.ones(2)
    metrics = completion_metrics(ones, ones, ones, ones, ones, trace_copy_rates=np.full(2, np.nan))
    assert "trace_copy_rate" not in metrics


def test_completion_arrays_must_be_of_one_length():
    with pytest.raises(ValueError, match=r"matched: expected shape \(2,\), got shape \(3,\)"):
        completion_metrics(np.ones(2), np.ones(2), np.ones(3), np.ones(2), np.ones(2))


def test_every_metric_is_documented_once():
    names = re.findall(r"^\| `([^`]+)` \|", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(names) == len(set(names)), "a metric stands in the table twice"
    spans, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
    scored = teacher_reward(
        spans,
        ones,
        spans,
        spans,
        ones,
        ones[:, 0],
        answer_log_prob_coeff=(1.0, 0.01),
        kl_penalty_reward_coeff=(3.0, 0.03),
        reduction_log_prob=("mean", "min"),
        reduction_kl=("mean", "max"),
    )
    emitted = reward_metrics(np.asarray(scored.reward), scored.components, 2)
    ones = np.ones(2)
    emitted |= completion_metrics(ones, ones, ones, ones, ones, trace_copy_rates=ones)
    assert len(emitted) > 30
    reduction = re.compile(f"/({'|'.join(REDUCTIONS)})$")
    for name in emitted:
        shown = reduction.sub("/R", name) if name.startswith("component/") else name
        assert shown in names, f"docs/metrics.md lacks {shown}"


def test_held_out_metrics_stand_under_eval():
    assert eval_metrics({"reward": 1.0, "component/kl_reward": 2.0}) == {
        "eval/reward": 1.0,
        "eval/component/kl_reward": 2.0,
    }
