"""What two arms measure alike."""

from dataclasses import replace

import pytest

from rlt_jax.configs import PRESETS, DataConfig
from rlt_jax.studies.comparable import KL, LOGP, REWARD, differing_fields, same_rows, unlike_metrics

TINY = PRESETS["tiny"]


def reward(**changes):
    return replace(TINY, reward=replace(TINY.reward, **changes))


UNLIKE = {
    "nothing": (replace(TINY, seed=3, output_dir="x"), {}),
    "the loss": (replace(TINY, loss=replace(TINY.loss, beta=0.0)), {}),
    "a weight": (
        reward(kl_penalty_reward_coeff=(0.0,), not_matched_penalty=0.0),
        {REWARD: "reward.kl_penalty_reward_coeff, reward.not_matched_penalty"},
    ),
    "the estimator": (
        reward(use_schulman_kl_estimation=True),
        dict.fromkeys((REWARD, KL), "reward.use_schulman_kl_estimation"),
    ),
    "how explanations are read": (
        reward(student_tokens="text"),
        dict.fromkeys((REWARD, KL), "reward.student_tokens"),
    ),
    "the student's temperature": (
        reward(unbias_student_log_probs_temp=1.0),
        dict.fromkeys((REWARD, LOGP, KL), "reward.unbias_student_log_probs_temp"),
    ),
    "the student": (replace(TINY, student="other"), dict.fromkeys((REWARD, LOGP, KL), "student")),
    "the temperature": (replace(TINY, temperature=1.0), dict.fromkeys((REWARD, KL), "temperature")),
    "the teacher": (replace(TINY, teacher="other"), {}),
}


@pytest.mark.parametrize(("run", "unlike"), UNLIKE.values(), ids=UNLIKE.keys())
def test_what_an_arm_measures_in_another_way(run, unlike):
    assert unlike_metrics(run, TINY) == unlike


ROWS = {
    "other training rows": (DataConfig(path="b", eval_path="e"), DataConfig(path="a", eval_path="e"), True),
    "the end of other rows": (DataConfig(path="a/x.jsonl"), DataConfig(path="b/x.jsonl"), False),
    "another number": (DataConfig(path="a", eval_rows=8), DataConfig(path="a", eval_rows=9), False),
    "another column": (DataConfig(path="a", question_column="q"), DataConfig(path="a"), False),
    "another way of reading": (DataConfig(path="a", on_bad_row="stop"), DataConfig(path="a"), True),
}


@pytest.mark.parametrize(("one", "other", "same"), ROWS.values(), ids=ROWS.keys())
def test_which_arms_are_evaluated_on_the_same_rows(one, other, same):
    assert same_rows(replace(TINY, data=one), replace(TINY, data=other)) == same


def test_the_fields_in_which_arms_differ():
    arms = {"a": replace(TINY, output_dir="a"), "b": replace(reward(clip_kl=None), output_dir="b", max_steps=3)}
    assert differing_fields(arms) == {
        "max_steps": {"a": 40, "b": 3},
        "reward.clip_kl": {"a": 100_000.0, "b": None},
    }
