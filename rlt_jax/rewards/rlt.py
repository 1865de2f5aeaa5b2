"""The RLT reward, and the interface of reward functions: what they receive and return, and which models they read.

Your own reward is a plain function of `RewardInputs` (see docs/guide.md).
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from rlt_jax.configs import RewardConfig
from rlt_jax.losses import reward_terms, teacher_reward
from rlt_jax.types import Prompt, RewardLogprobs, ScoreRow, ScoringModel


class RewardInputs(NamedTuple):
    """What a reward function receives: B explanations with their texts, tokens and log-probs."""

    prompts: Sequence[Prompt]  # B: question, solution, the ids that the teacher continued
    rows: Sequence[ScoreRow]  # B: explanation text, both token sequences, match, copy rate
    logprobs: RewardLogprobs  # padded log-probs of the models that the function reads, nats


class Rewards(NamedTuple):
    """What a reward function returns, all of it finite; a bare f32[B] array also works."""

    reward: np.ndarray  # f32[B]
    components: Mapping[str, np.ndarray]  # name -> f32[B], logged with the reward
    terms: Sequence[str] = ()  # components whose sum is the reward, for advantages.aggregation; (): it is no such sum


RewardFn = Callable[[RewardInputs], Rewards | np.ndarray]
Reads = frozenset[ScoringModel]

BOTH: Reads = frozenset(get_args(ScoringModel))


def reads(*models: ScoringModel) -> Callable[[RewardFn], RewardFn]:
    """Declare whose log-probs a reward function reads: no other model is run for it, nor loaded if nothing needs it.

        @reads("student")
        def helpful(inputs): ...

    Without this decorator a function is taken to read both; `@reads()` is for one that reads texts alone.

    Raises:
      ValueError: a name that is neither "student" nor "teacher".
    """
    declared = _as_reads(models, "reads(...)")

    def declare(reward_fn: RewardFn) -> RewardFn:
        reward_fn.reads = declared  # type: ignore[attr-defined]
        return reward_fn

    return declare


def read_by(reward_fn: RewardFn) -> Reads:
    """The models whose log-probs a reward function reads, as `reads` declared; both if nothing is declared.

    Raises:
      ValueError: an attribute `reads` of its own that is no collection of "student" and "teacher".
    """
    declared = getattr(reward_fn, "reads", None)
    return BOTH if declared is None else _as_reads(declared, f"the attribute `reads` of {reward_fn!r}")


def _as_reads(models: Any, what: str) -> Reads:
    names = (models,) if isinstance(models, str) or not isinstance(models, Iterable) else tuple(models)
    if unknown := [name for name in names if name not in BOTH]:
        raise ValueError(f"{what}: expected none, one or both of 'student' and 'teacher', got {unknown[0]!r}")
    return frozenset(names)


_teacher_reward = jax.jit(
    teacher_reward,
    static_argnames=[
        name
        for name, parameter in inspect.signature(teacher_reward).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ],
)


def rlt_reward(config: RewardConfig) -> RewardFn:
    """The paper's reward, `losses.teacher_reward`, with the settings of `config`. Compiles once per bucket.

    Terms beside the paper's (`losses.reward_terms`) are added where their weight is not 0, and are then components; the
    components `total_...` are of the paper's terms alone.

    It reads both models, and without include_teacher_think_entropy the student alone. A reward function of one's own
    may call it at every step: the same settings are not compiled again.
    """
    reward = partial(
        _teacher_reward,
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

    @reads(*config.reads)
    def reward_fn(inputs: RewardInputs) -> Rewards:
        logprobs = inputs.logprobs
        scored = jax.device_get(
            reward(
                logprobs.solution_logps,
                logprobs.solution_mask,
                logprobs.student_thought_logps,
                logprobs.teacher_thought_logps if "teacher" in config.reads else None,
                logprobs.thought_mask,
                logprobs.matched,
            )
        )
        terms = _terms(config, inputs)
        kl = "kl_reward" if config.include_teacher_think_entropy else "surprisal_reward"
        names = ("solution_logp_reward", kl, "match_reward", *terms)
        return Rewards(sum(terms.values(), scored.reward), {**scored.components, **terms}, names)

    return reward_fn


def _terms(config: RewardConfig, inputs: RewardInputs) -> dict[str, np.ndarray]:
    """The terms beside the paper's whose weight is not 0, with it: `NAME_reward` -> f32[B]."""
    logprobs, rows = inputs.logprobs, inputs.rows
    terms: dict[str, tuple[float, Callable[[], np.ndarray]]] = {  # name -> (weight, the term), computed if it has one
        "likelihood": (
            config.likelihood_coeff,
            lambda: reward_terms.likelihood(logprobs.solution_logps, logprobs.solution_mask, kind=config.likelihood),
        ),
        "copy": (config.copy_coeff, lambda: reward_terms.copy_penalty(np.array([row.copy_rate for row in rows]))),
        "repeat": (
            config.repeat_coeff,
            lambda: reward_terms.repetition_penalty(np.array([row.repeat_rate for row in rows])),
        ),
        "length_target": (
            config.length_target_coeff,
            lambda: reward_terms.length_target(
                logprobs.thought_mask.sum(axis=1),
                low=config.length_target_min,
                high=config.length_target_max,
                slack=config.length_target_slack,
            ),
        ),
        "overlong": (
            config.overlong_coeff,
            lambda: reward_terms.soft_overlong(
                written_tokens(inputs), longest=config.overlong_length or 0, buffer=config.overlong_buffer
            ),
        ),
    }
    return {f"{name}_reward": np.float32(weight) * term() for name, (weight, term) in terms.items() if weight}


def written_tokens(inputs: RewardInputs) -> np.ndarray:
    """Tokens that the teacher wrote for each explanation, i64[B]: the thought, its end tag, and EOS if it came."""
    return np.array(
        [len(row.teacher_ids) - len(prompt.teacher_ids) for row, prompt in zip(inputs.rows, inputs.prompts)]
    )


def _unwrap_single(coefficients: tuple[float, ...]) -> float | tuple[float, ...]:
    """A single coefficient as a number, which `teacher_reward` applies to every reduction."""
    return coefficients[0] if len(coefficients) == 1 else coefficients


def reward_columns(rewards: Rewards, i: int) -> dict[str, Any]:
    """Reward and components of explanation i, as columns of a record."""
    components = {name: float(values[i]) for name, values in rewards.components.items()}
    return {"reward": float(rewards.reward[i]), "components": components}
