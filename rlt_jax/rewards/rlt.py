"""The RLT reward, and the interface of reward functions: what they receive and return.

Your own reward is a plain function of `RewardInputs` (see docs/guide.md).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rlt_jax.configs import RewardConfig
from rlt_jax.losses import teacher_reward
from rlt_jax.types import Prompt, RewardLogprobs, ScoreRow


class RewardInputs(NamedTuple):
    """What a reward function receives: B explanations with their texts, tokens and log-probs."""

    prompts: Sequence[Prompt]  # B: question, solution, the ids that the teacher continued; () in `rlt_jax.score`
    rows: Sequence[ScoreRow]  # B: explanation text, both token sequences, match, copy rate
    logprobs: RewardLogprobs  # padded log-probs of both models, nats


class Rewards(NamedTuple):
    """What a reward function returns, all of it finite; a bare f32[B] array also works."""

    reward: np.ndarray  # f32[B]
    components: Mapping[str, np.ndarray]  # name -> f32[B], logged with the reward


RewardFn = Callable[[RewardInputs], Rewards | np.ndarray]


def rlt_reward(config: RewardConfig) -> RewardFn:
    """The paper's reward, `losses.teacher_reward`, with the settings of `config`. Compiles once per bucket."""
    reward = jax.jit(
        partial(
            teacher_reward,
            answer_log_prob_coeff=_unwrap_single(config.answer_log_prob_coeff),
            kl_penalty_reward_coeff=_unwrap_single(config.kl_penalty_reward_coeff),
            reduction_log_prob=config.reduction_log_prob,
            reduction_kl=config.reduction_kl,
            normalize_log_prob=config.normalize_log_prob,
            normalize_kl=config.normalize_kl,
            clip_log_prob=config.clip_log_prob,
            clip_kl=config.clip_kl,
            use_schulman_kl_estimation=config.use_schulman_kl_estimation,
            include_teacher_think_entropy=config.include_teacher_think_entropy,
            not_matched_penalty=config.not_matched_penalty,
        )
    )

    def reward_fn(inputs: RewardInputs) -> Rewards:
        logprobs = inputs.logprobs
        scored = jax.device_get(
            reward(
                logprobs.solution_logps,
                logprobs.solution_mask,
                logprobs.student_thought_logps,
                logprobs.teacher_thought_logps,
                logprobs.thought_mask,
                logprobs.matched,
            )
        )
        return Rewards(scored.reward, scored.components)

    return reward_fn


def _unwrap_single(coefficients: tuple[float, ...]) -> float | tuple[float, ...]:
    """A single coefficient as a number, which `teacher_reward` applies to every reduction."""
    return coefficients[0] if len(coefficients) == 1 else coefficients


def reward_columns(rewards: Rewards, i: int) -> dict[str, Any]:
    """Reward and components of explanation i, as columns of a record."""
    components = {name: float(values[i]) for name, values in rewards.components.items()}
    return {"reward": float(rewards.reward[i]), "components": components}
