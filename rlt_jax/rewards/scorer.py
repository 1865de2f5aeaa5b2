"""From explanations to rewards: log-probs of teacher and student over them, and the reward function."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from rlt_jax.configs import RewardConfig
from rlt_jax.data import ChatFormat, score_row_from_ids
from rlt_jax.models import Model, Params
from rlt_jax.rewards.logprobs import RowLogprobs, gather_logprobs, row_logprobs
from rlt_jax.rewards.rlt import RewardFn, RewardInputs, Rewards, rlt_reward
from rlt_jax.types import Completion, Prompt, ScoreRow


class Scored(NamedTuple):
    """Explanations with everything that scoring found out about them."""

    prompts: Sequence[Prompt]
    rows: list[ScoreRow]
    rewards: Rewards


@dataclass(frozen=True)
class Scorer:
    """Teacher, frozen student and reward. The teacher's parameters come with each call, as training replaces them."""

    teacher: Model
    student: Model
    student_params: Params
    reward_fn: RewardFn
    teacher_temperature: float  # divides the teacher's logits
    student_temperature: float  # divides the student's logits
    chunk: int  # tokens whose logits exist at one time

    def score(
        self, teacher_params: Params, prompts: Sequence[Prompt], rows: list[ScoreRow], *, batch_size: int
    ) -> Scored:
        """`score_rows` with both models.

        Args:
          batch_size: sequences of a forward pass, at most. Changes the result by rounding alone.
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
    """The scorer that a configuration asks for.

    Args:
      sampling_temperature: of the teacher, which divides its logits where `reward` says so.
      reward_fn: a reward of your own; None: the RLT reward with the coefficients of `reward`.
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
    """One forward pass of the teacher and one of the student over each explanation, then the reward.

    Raises:
      ValueError: the reward function returned something else than one finite number per explanation.
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
    """Sampled completions as rows to score. Token ids go through: only the seam at the end tag is tokenised anew."""
    return [
        score_row_from_ids(prompt, completion.token_ids, chat, eos_ids)
        for prompt, completion in zip(prompts, completions)
    ]
