"""From completions to rewards: spans from token ids, log-probs of both models over them, and the reward function.

A researcher's own reward is a plain function of `RewardInputs` (see docs/guide.md); the RLT reward is `rlt_reward`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rlt_jax.configs import RewardConfig
from rlt_jax.data import Layout, score_row_from_ids
from rlt_jax.losses import teacher_reward
from rlt_jax.scoring import RowLogprobs, gather_spans
from rlt_jax.types import Completion, Prompt, ScoreRow, Spans


class RewardInputs(NamedTuple):
    """What a reward function sees: B explanations, their texts, their tokens and their log-probs."""

    prompts: Sequence[Prompt]  # B of them: the question, its solution, the ids the teacher continued; () in `score`
    rows: Sequence[ScoreRow]  # B of them: explanation text, both token sequences, match, copy rate
    spans: Spans  # padded log-probs, nats


class Rewards(NamedTuple):
    """What it returns; a bare f32[B] array will do as well."""

    reward: np.ndarray  # f32[B]
    components: Mapping[str, np.ndarray]  # name -> f32[B], logged beside the reward


RewardFn = Callable[[RewardInputs], Rewards | np.ndarray]


def reward_columns(rewards: Rewards, i: int) -> dict[str, Any]:
    """Reward and components of explanation i, as they stand in a line of a file."""
    components = {name: float(values[i]) for name, values in rewards.components.items()}
    return {"reward": float(rewards.reward[i]), "components": components}


def rlt_reward(config: RewardConfig) -> RewardFn:
    """The paper's reward, `losses.teacher_reward`, with the coefficients of `config`. Compiled once per bucket."""
    reward = jax.jit(
        partial(
            teacher_reward,
            answer_log_prob_coeff=_one_for_all(config.answer_log_prob_coeff),
            kl_penalty_reward_coeff=_one_for_all(config.kl_penalty_reward_coeff),
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
        spans = inputs.spans
        scored = jax.device_get(
            reward(
                spans.solution_logps,
                spans.solution_mask,
                spans.student_thought_logps,
                spans.teacher_thought_logps,
                spans.thought_mask,
                spans.matched,
            )
        )
        return Rewards(scored.reward, scored.components)

    return reward_fn


def _one_for_all(coefficients: tuple[float, ...]) -> float | tuple[float, ...]:
    """A single weight as the number that `teacher_reward` gives to every reduction."""
    return coefficients[0] if len(coefficients) == 1 else coefficients


class Judged(NamedTuple):
    """Completions with everything that scoring found out about them."""

    prompts: Sequence[Prompt]
    rows: list[ScoreRow]
    rewards: Rewards


def judge_rows(
    prompts: Sequence[Prompt],
    rows: list[ScoreRow],
    *,
    teacher_logprobs: RowLogprobs,
    student_logprobs: RowLogprobs,
    reward_fn: RewardFn,
) -> Judged:
    """Score explanations: one forward of the teacher and one of the student over each, then the reward.

    Raises:
      ValueError: the reward function returned something else than one finite number per explanation.
    """
    teacher_logps = teacher_logprobs([row.teacher_ids for row in rows])
    student_logps = student_logprobs([row.student_ids for row in rows])
    returned = reward_fn(RewardInputs(prompts, rows, gather_spans(rows, student_logps, teacher_logps)))
    rewards = returned if isinstance(returned, Rewards) else Rewards(np.asarray(returned, np.float32), {})
    if np.shape(rewards.reward) != (len(rows),) or not np.isfinite(rewards.reward).all():
        raise ValueError(
            f"the reward function returned {rewards.reward!r}: expected {len(rows)} finite numbers, one per explanation"
        )
    return Judged(prompts, rows, rewards)


def judge_completions(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    layout: Layout,
    eos_ids: tuple[int, ...],
    teacher_logprobs: RowLogprobs,
    student_logprobs: RowLogprobs,
    reward_fn: RewardFn,
) -> Judged:
    """`judge_rows` of sampled completions. Token ids go through: only the seam at the end tag is tokenised anew."""
    rows = [
        score_row_from_ids(prompt, completion.token_ids, layout, eos_ids)
        for prompt, completion in zip(prompts, completions)
    ]
    return judge_rows(
        prompts, rows, teacher_logprobs=teacher_logprobs, student_logprobs=student_logprobs, reward_fn=reward_fn
    )
