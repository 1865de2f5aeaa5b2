"""Which models a reward function reads."""

import pytest

from rlt_jax import reads as exported
from rlt_jax.configs import RewardConfig
from rlt_jax.rewards.rlt import BOTH, read_by, reads, rlt_reward


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
