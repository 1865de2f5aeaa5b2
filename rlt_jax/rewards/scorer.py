"""Scores explanations: computes their log-probs under teacher and student, then calls the reward function."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from rlt_jax.configs import RewardConfig
from rlt_jax.data import ChatFormat, judged, score_row_from_ids
from rlt_jax.models import Model, Params
from rlt_jax.rewards.logprobs import RowLogprobs, gather_logprobs, row_logprobs
from rlt_jax.rewards.rlt import RewardFn, RewardInputs, Rewards, rlt_reward
from rlt_jax.types import Completion, Prompt, ScoreRow


class Scored(NamedTuple):
    """Explanations with their rewards."""

    prompts: Sequence[Prompt]
    rows: list[ScoreRow]
    rewards: Rewards


@dataclass(frozen=True)
class Scorer:
    """Teacher, frozen student and reward function. Each call gets the teacher's parameters: training changes them."""

    teacher: Model
    student: Model
    student_params: Params
    reward_fn: RewardFn
    teacher_temperature: float  # divides the teacher's logits
    student_temperature: float  # divides the student's logits
    chunk: int  # tokens whose logits exist at a time

    def score(
        self, teacher_params: Params, prompts: Sequence[Prompt], rows: list[ScoreRow], *, batch_size: int
    ) -> Scored:
        """Score rows with both models (see `score_rows`).

        Args:
          batch_size: sequences per forward pass, at most. Changes results only by rounding.
        """
        logprobs = partial(row_logprobs, batch_size=batch_size, chunk=self.chunk)
        return score_rows(
            prompts,
            rows,
            teacher_logprobs=partial(logprobs, self.teacher, teacher_params, temperature=self.teacher_temperature),
            student_logprobs=partial(logprobs, self.student, self.student_params, temperature=self.student_temperature),
            reward_fn=self.reward_fn,
        )


def make_scorer(
    teacher: Model,
    student: Model,
    student_params: Params,
    reward: RewardConfig,
    *,
    sampling_temperature: float,
    chunk: int,
    reward_fn: RewardFn | None = None,
) -> Scorer:
    """Build the scorer that `reward` describes.

    Args:
      sampling_temperature: the teacher's; also divides its logits in scoring if `reward` says so.
      reward_fn: your own reward function. None: the RLT reward with the settings of `reward`.
    """
    return Scorer(
        teacher,
        student,
        student_params,
        rlt_reward(reward) if reward_fn is None else reward_fn,
        teacher_temperature=reward.teacher_temperature(sampling_temperature),
        student_temperature=reward.student_temperature,
        chunk=chunk,
    )


def score_rows(
    prompts: Sequence[Prompt],
    rows: list[ScoreRow],
    *,
    teacher_logprobs: RowLogprobs,
    student_logprobs: RowLogprobs,
    reward_fn: RewardFn,
) -> Scored:
    """Run teacher and student over each explanation, then compute the rewards.

    Raises:
      ValueError: the reward function returned anything but one finite number per explanation.
    """
    teacher_logps = teacher_logprobs([row.teacher_ids for row in rows])
    student_logps = student_logprobs([row.student_ids for row in rows])
    returned = reward_fn(RewardInputs(prompts, rows, gather_logprobs(rows, student_logps, teacher_logps)))
    rewards = returned if isinstance(returned, Rewards) else Rewards(np.asarray(returned, np.float32), {})
    if np.shape(rewards.reward) != (len(rows),) or not np.isfinite(rewards.reward).all():
        raise ValueError(
            f"the reward function returned {rewards.reward!r}: expected {len(rows)} finite numbers, one per explanation"
        )
    return Scored(prompts, rows, rewards)


def completion_rows(
    prompts: Sequence[Prompt], completions: Sequence[Completion], *, chat: ChatFormat, eos_ids: tuple[int, ...]
) -> list[ScoreRow]:
    """Turn sampled completions into rows to score; one that forges a tag counts as not matched.

    Token ids stay; only the seam at the end tag is tokenised again.
    """
    return [
        judged(score_row_from_ids(prompt, completion.token_ids, chat, eos_ids), chat)
        for prompt, completion in zip(prompts, completions)
    ]
