"""Which models a reward function reads, and the terms beside the paper's."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rlt_jax import reads as exported
from rlt_jax.configs import RewardConfig
from rlt_jax.rewards.rlt import BOTH, RewardInputs, read_by, reads, rlt_reward
from rlt_jax.types import RewardLogprobs


def test_a_reward_function_reads_both_models_unless_it_says_otherwise():
    assert exported is reads
    assert read_by(lambda inputs: inputs.logprobs.matched) == BOTH == {"student", "teacher"}
    assert read_by(reads("teacher")(lambda inputs: inputs.logprobs.matched)) == {"teacher"}
    assert read_by(reads()(lambda inputs: inputs.logprobs.matched)) == frozenset()
    assert read_by(rlt_reward(RewardConfig())) == RewardConfig().reads == BOTH
    surprisal = RewardConfig(include_teacher_think_entropy=False)
    assert read_by(rlt_reward(surprisal)) == surprisal.reads == {"student"}


@pytest.mark.parametrize("declared", ["students", 3, ["student", None], {"teacher": 1, "reference": 2}], ids=str)
def test_a_declaration_of_anything_else_is_refused(declared):
    def reward_fn(inputs):
        return inputs.logprobs.matched

    reward_fn.reads = declared
    with pytest.raises(ValueError, match=r"the attribute `reads` of .*reward_fn.*: expected none, one or both of"):
        read_by(reward_fn)
    with pytest.raises(ValueError, match=r"^reads\(\.\.\.\): expected none, one or both of"):
        reads("student", "students")


@pytest.fixture
def inputs() -> RewardInputs:
    """Two thoughts of 3 and 1 tokens, of the 5 and 9 that the teacher wrote; solutions of 2 and 1."""
    logprobs = RewardLogprobs(
        np.array([[-0.5, -1.5], [-0.25, 0.0]], np.float32),
        np.array([[True, True], [True, False]]),
        np.array([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]], np.float32),
        np.array([[-0.5, -1.0, -2.0], [-3.0, 0.0, 0.0]], np.float32),
        np.array([[True, True, True], [True, False, False]]),
        np.array([True, True]),
    )
    rows = [
        SimpleNamespace(copy_rate=copied, repeat_rate=repeated, teacher_ids=np.zeros(length))
        for copied, repeated, length in ((0.5, 0.0, 7), (0.0, 0.25, 11))
    ]
    return RewardInputs([SimpleNamespace(teacher_ids=np.zeros(2))] * 2, rows, logprobs)


TERMS = [  # settings -> the component, and its values by hand
    ({"likelihood_coeff": 2.0}, "likelihood_reward", [-2.0, -0.5]),
    ({"likelihood_coeff": 2.0, "likelihood": "prob"}, "likelihood_reward", [2 * np.exp(-2), 2 * np.exp(-0.25)]),
    ({"copy_coeff": 3.0}, "copy_reward", [-1.5, 0.0]),
    ({"repeat_coeff": 2.0}, "repeat_reward", [0.0, -0.5]),
    (
        {"length_target_coeff": 2.0, "length_target_min": 2, "length_target_max": 2, "length_target_slack": 4},
        "length_target_reward",
        [-0.5, -0.5],
    ),
    ({"overlong_coeff": 2.0, "overlong_length": 8, "overlong_buffer": 4}, "overlong_reward", [-0.5, -2.0]),
]


@pytest.mark.parametrize(
    ("settings", "name", "values"), TERMS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_term_is_added_with_its_weight_and_is_a_component(inputs, settings, name, values):
    usual, found = rlt_reward(RewardConfig())(inputs), rlt_reward(RewardConfig(**settings))(inputs)
    assert found.components.keys() - usual.components.keys() == {name}
    np.testing.assert_allclose(found.components[name], values, rtol=1e-6)
    np.testing.assert_allclose(found.reward - usual.reward, values, rtol=1e-5)
    assert all(np.array_equal(found.components[other], usual.components[other]) for other in usual.components)


def test_terms_add_up_and_without_weights_nothing_changes(inputs):
    usual = rlt_reward(RewardConfig())(inputs)
    every = RewardConfig(**{key: value for settings, *_ in TERMS for key, value in settings.items()})
    found = rlt_reward(every)(inputs)
    more = sum(found.components[name] for name in {name for _, name, _ in TERMS})
    np.testing.assert_allclose(found.reward, usual.reward + more, rtol=1e-6)
    off = replace(every, **{name: 0.0 for name in vars(every) if name.endswith("_coeff") and name in UNUSED})
    without = rlt_reward(off)(inputs)
    assert without.components.keys() == usual.components.keys()
    assert without.reward.tobytes() == usual.reward.tobytes()
    assert rlt_reward(RewardConfig())(inputs._replace(prompts=())).reward.tobytes() == usual.reward.tobytes()


UNUSED = {"likelihood_coeff", "copy_coeff", "repeat_coeff", "length_target_coeff", "overlong_coeff"}


def test_every_term_has_a_test():
    weights = {name for name in vars(RewardConfig()) if name.endswith("_coeff")}
    assert weights - {"answer_log_prob_coeff", "kl_penalty_reward_coeff"} == UNUSED
    assert {name for settings, *_ in TERMS for name in settings if name.endswith("_coeff")} == UNUSED
