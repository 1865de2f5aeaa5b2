"""Scores explanations: computes their log-probs under the models that the reward function reads, then calls it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from rlt_jax.batching import bucket_length
from rlt_jax.configs import RewardConfig
from rlt_jax.data import ChatFormat, judged, score_row_from_ids
from rlt_jax.finite import check_rows
from rlt_jax.models import Model, Params, Work
from rlt_jax.rewards.logprobs import Pass, RowLogprobs, finite_logprobs, gather_logprobs, row_name
from rlt_jax.rewards.rlt import Reads, RewardFn, RewardInputs, Rewards, read_by, rlt_reward
from rlt_jax.types import Completion, Prompt, ScoreRow


class Scored(NamedTuple):
    """Explanations with their rewards."""

    prompts: Sequence[Prompt]
    rows: list[ScoreRow]
    rewards: Rewards
    work: Mapping[str, Work] = {}  # model ("teacher", "student") -> what it computed; only those that were run

    @property
    def reward(self) -> np.ndarray:
        """The rewards f32[B]."""
        return np.asarray(self.rewards.reward, np.float32)


@dataclass(frozen=True)
class Scorer:
    """Teacher, frozen student and reward function. Each call gets the teacher's parameters: training changes them."""

    teacher: Model
    student: Model | None  # None: the reward function does not read it
    student_params: Params | None
    reward_fn: RewardFn
    teacher_temperature: float  # divides the teacher's logits
    student_temperature: float  # divides the student's logits
    chunk: int  # tokens whose logits exist at a time
    teacher_name: str = "teacher"  # in messages
    reward_name: str = "the reward function"  # in messages

    @property
    def reads(self) -> Reads:
        """The models that are run."""
        return read_by(self.reward_fn)

    def score(
        self,
        teacher_params: Params | None,
        prompts: Sequence[Prompt],
        rows: list[ScoreRow],
        *,
        tokens: int,
        numbers: Sequence[int] = (),
    ) -> Scored:
        """Score rows with the models that the reward function reads (see `score_rows`).

        Args:
          teacher_params: None is allowed where it does not read the teacher.
          tokens: per forward pass, at most, unless one row is longer. Changes results only by rounding.
          numbers: of the rows in the data, for messages; (): those of the prompts.
        Raises:
          NotFinite: log-probs, rewards or components are NaN or infinite.
        """
        name = row_name(numbers or [prompt.row.number for prompt in prompts])
        logprobs = partial(finite_logprobs, tokens=tokens, chunk=self.chunk, name=name)
        teacher = partial(
            logprobs, self.teacher, teacher_params, temperature=self.teacher_temperature, who=self.teacher_name
        )
        student = partial(
            logprobs, self.student, self.student_params, temperature=self.student_temperature, who="student"
        )
        return score_rows(
            prompts,
            rows,
            teacher_logprobs=teacher if "teacher" in self.reads else None,
            student_logprobs=student if "student" in self.reads else None,
            reward_fn=self.reward_fn,
            reward_name=self.reward_name,
            name=name,
        )


def make_scorer(
    teacher: Model,
    student: Model | None,
    student_params: Params | None,
    reward: RewardConfig,
    *,
    sampling_temperature: float,
    chunk: int,
    reward_fn: RewardFn | None = None,
    teacher_name: str = "teacher",
) -> Scorer:
    """Build the scorer that `reward` describes.

    Args:
      student, student_params: None is allowed where the reward function does not read the student.
      sampling_temperature: the teacher's; also divides its logits in scoring if `reward` says so.
      reward_fn: your own reward function. None: the RLT reward with the settings of `reward`.
      teacher_name: what the teacher is called in messages.
    """
    settings = "the reward with the settings of `reward`"
    return Scorer(
        teacher,
        student,
        student_params,
        rlt_reward(reward) if reward_fn is None else reward_fn,
        teacher_temperature=reward.teacher_temperature(sampling_temperature),
        student_temperature=reward.student_temperature,
        chunk=chunk,
        teacher_name=teacher_name,
        reward_name=settings if reward_fn is None else f"your reward function {function_name(reward_fn)}",
    )


def tokens_of(rows: Sequence[ScoreRow], batch_size: int) -> int:
    """Tokens of as many rows as `batch_size`, each as long as the longest, padded to its bucket."""
    return batch_size * bucket_length(longest_row(rows))


def longest_row(rows: Sequence[ScoreRow]) -> int:
    """Tokens of the longest sequence that either model reads."""
    return max(max(len(row.teacher_ids), len(row.student_ids)) for row in rows)


def function_name(reward_fn: RewardFn) -> str:
    """The name of a reward function, as in inputs.json."""
    return getattr(reward_fn, "__qualname__", type(reward_fn).__name__)


def score_rows(
    prompts: Sequence[Prompt],
    rows: list[ScoreRow],
    *,
    teacher_logprobs: RowLogprobs | None,
    student_logprobs: RowLogprobs | None,
    reward_fn: RewardFn,
    reward_name: str = "the reward function",
    name: Callable[[int], str] = "explanation {}".format,
) -> Scored:
    """Run teacher and student over each explanation, then compute the rewards.

    Args:
      teacher_logprobs, student_logprobs: None: that model is not run, and the reward function cannot read it.
      reward_name: what the reward function is called in messages.
      name: of the explanation with an index, in messages.
    Raises:
      ValueError: the reward function returned anything but one number per explanation, also in its components.
      NotFinite: a log-prob, a reward or a component is NaN or infinite.
    """
    passes: dict[str, Pass] = {}
    if teacher_logprobs is not None:
        passes["teacher"] = teacher_logprobs(
            [row.teacher_ids for row in rows], wanted=[row.teacher_thought for row in rows]
        )
    if student_logprobs is not None:
        read = [np.concatenate([row.student_thought, row.solution]) for row in rows]
        passes["student"] = student_logprobs([row.student_ids for row in rows], wanted=read)
    student_logps, teacher_logps = (passes[name].logps if name in passes else None for name in ("student", "teacher"))
    inputs = RewardInputs(prompts, rows, gather_logprobs(rows, student_logps, teacher_logps))
    try:
        returned = reward_fn(inputs)
    except Exception as error:  # a bug, of which the traceback says where it is
        error.add_note(f"raised in {reward_name}, which was given {len(rows)} explanations")
        raise
    rewards = returned if isinstance(returned, Rewards) else Rewards(np.asarray(returned, np.float32), {})
    if np.shape(rewards.reward) != (len(rows),):
        raise ValueError(
            f"{reward_name} returned {rewards.reward!r}: expected {len(rows)} finite numbers, one per explanation"
        )
    computed = {"student_logps": student_logps, "teacher_logps": teacher_logps}
    record = {name: np.concatenate(logps) for name, logps in computed.items() if logps is not None}
    record["reward"] = np.asarray(rewards.reward, np.float32)
    check_rows(record["reward"], f"{reward_name} returned", name=name, record=record)
    for component, values in rewards.components.items():
        if np.shape(values) != (len(rows),):
            raise ValueError(
                f"{reward_name} returned {values!r} for its component {component}: expected {len(rows)} numbers, one "
                "per explanation"
            )
        known = {**record, f"component/{component}": np.asarray(values, np.float32)}
        what = f"{reward_name} returned for its component {component}"
        check_rows(np.asarray(values), what, name=name, record=known)
    return Scored(prompts, rows, rewards, {name: made.work for name, made in passes.items()})


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
