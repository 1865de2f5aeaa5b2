"""The teacher's reward: the paper's with its settings, or a function of the user's own, named in `fn`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from tyro.constructors import PrimitiveConstructorSpec

from rlt_jax.configs.checks import count_problems, text_problems
from rlt_jax.configs.files import read_yaml, yaml_line, yaml_mapping
from rlt_jax.configs.settings import Settings
from rlt_jax.types import Likelihood, Normalization, Reduction, ScoringModel, StudentTokens


def read_options(word: str) -> dict[str, Any]:
    """The options that a word of the command line gives: a YAML file's name, or a mapping in braces.

    Raises:
      UserError: the file cannot be read, or there is no mapping.
    """
    if word.lstrip().startswith("{"):
        return yaml_mapping(word, source="--reward.options")
    return read_yaml(word, example="one with a line `weight: 0.5` for an option `weight`")


RewardOptions = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: read_options(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda options: [yaml_line(options)],
    ),
]
"""A mapping in a YAML file; on the command line the name of a file with one, or the mapping in braces."""


class FunctionName(NamedTuple):
    """A function as `reward.fn` names it."""

    home: str  # a module's name, or a file's path
    name: str
    in_file: bool


def parse_function_name(fn: str) -> FunctionName | None:
    """The parts of `package.module:function` or `path/to/file.py:function`; None if it is neither."""
    home, colon, name = fn.rpartition(":")
    if not colon or not name.isidentifier():
        return None
    if home.endswith(".py"):
        return FunctionName(home, name, True)
    return FunctionName(home, name, False) if all(part.isidentifier() for part in home.split(".")) else None


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Settings):
    """The teacher's reward: how likely the student finds the solution after the explanation, minus the explanation's KL
    from teacher to student."""

    fn: str | None = None
    """A reward function of your own instead: `path/to/file.py:function`, or `package.module:function`. It is code that
    runs. The settings below are those of the paper's reward, which it may call. None: the paper's reward."""
    options: RewardOptions = field(default_factory=dict, hash=False)
    """Options of fn, its keyword arguments: on the command line a YAML file, or a mapping in braces such as
    '{weight: 0.5}'; in a YAML file a section."""
    fn_sha256: str | None = None
    """SHA-256 that the file of fn must have, as a run's config.yaml records it. None: whatever it has."""
    answer_log_prob_coeff: tuple[float, ...] = (1.0, 0.01)
    """Weight of each reduction of the student's solution log-probs, per nat. A single number applies to all."""
    kl_penalty_reward_coeff: tuple[float, ...] = (3.0, 0.03)
    """Weight of each reduction of the thought's KL, which is subtracted, per nat. A single number applies to all."""
    reduction_log_prob: tuple[Reduction, ...] = ("mean", "min")
    """Reductions of the solution's token log-probs, each to a single number."""
    reduction_kl: tuple[Reduction, ...] = ("mean", "max")
    """Reductions of the thought's token KLs, each to a single number."""
    normalize_log_prob: Normalization | None = None
    """Transform each token log-prob x before the reductions: exp: exp(x); exp_norm: 1 - exp(-x). None: unchanged."""
    normalize_kl: Normalization | None = None
    """Transform each token KL x before the reductions: exp: exp(x); exp_norm: 1 - exp(-x). None: unchanged."""
    clip_log_prob: float | None = 100_000.0
    """Clip token log-probs, after normalisation, to at least minus this, nats. None: no limit."""
    clip_kl: float | None = 100_000.0
    """Clip token KLs, after normalisation, to at most this, nats. None: no limit."""
    use_schulman_kl_estimation: bool = False
    """Estimate the token KL by k3 = kl - 1 + exp(-kl) instead of the log-ratio kl itself."""
    include_teacher_think_entropy: bool = True
    """Include the teacher's log-probs in the thought's KL. Off: it is minus the student's log-probs alone, and the
    teacher does not score explanations."""
    not_matched_penalty: float = -1.0
    """Added once to the reward of an explanation whose tags are not closed, reward units, 0 or less."""
    unbias_teacher_log_probs: bool = True
    """Divide the teacher's logits by the sampling temperature."""
    unbias_student_log_probs_temp: float | None = 0.7
    """Divide the student's logits by this temperature, no unit. None: 1."""
    student_tokens: StudentTokens = "ids"
    """How the student reads explanations. ids: the teacher's token ids, so both models must have one vocabulary; text:
    in tokens of its own, and the KL is over those that both models have for the same characters."""
    use_reference_teacher_model: bool = False
    """Take the teacher's log-probs from the reference instead of from the current policy."""
    likelihood_coeff: float = 0.0
    """Weight of a further term, the likelihood of the solution. 0: no such term, as for the terms below. To have it
    alone, set both weights at the top to 0."""
    likelihood: Likelihood = "logp_per_token"
    """What the likelihood is: its log-prob, nats, or the probability itself; per_token: length-normalised, by the mean
    log-prob and by the geometric mean."""
    copy_coeff: float = 0.0
    """Subtracted times the explanation's copy rate, the share of its tokens that are copied from the solution, reward
    units."""
    repeat_coeff: float = 0.0
    """Subtracted times the explanation's repeat rate, the share of its tokens that it held before, reward units."""
    length_target_coeff: float = 0.0
    """Subtracted, at most, for an explanation whose length is outside of length_target_min to length_target_max, reward
    units."""
    length_target_min: int = 0
    """Shortest explanation without a price, tokens of the thought."""
    length_target_max: int | None = None
    """Longest explanation without a price, tokens of the thought. None: however long."""
    length_target_slack: int = 100
    """How far outside of the range the price is full, tokens; it grows evenly up to there."""
    overlong_coeff: float = 0.0
    """Subtracted, at most, for a completion of nearly overlong_length or more tokens (DAPO's soft overlong punishment),
    reward units."""
    overlong_length: int | None = None
    """Length of a completion, with tags, at which that price is full, tokens: the run's max_completion_length. None:
    only without the term."""
    overlong_buffer: int = 100
    """Over how many tokens up to overlong_length the price grows."""

    def teacher_temperature(self, sampling_temperature: float) -> float:
        """Temperature that divides the teacher's logits; 1 for greedy explanations (sampling temperature 0)."""
        return (sampling_temperature if self.unbias_teacher_log_probs else 1.0) or 1.0

    @property
    def reads(self) -> frozenset[ScoringModel]:
        """The models whose log-probs the paper's reward reads; a KL of weight 0 is still a component."""
        return frozenset(("student", "teacher") if self.include_teacher_think_entropy else ("student",))

    @property
    def student_temperature(self) -> float:
        """Temperature that divides the student's logits."""
        return self.unbias_student_log_probs_temp or 1.0


_FORMS = "path/to/file.py:function or package.module:function"


def reward_problems(reward: RewardConfig) -> Iterator[str]:
    """Invalid settings of the reward, one message each. A function of the user's own is not loaded."""
    yield from _function_problems(reward)
    pairs = (
        ("answer_log_prob_coeff", reward.answer_log_prob_coeff, "reduction_log_prob", reward.reduction_log_prob),
        ("kl_penalty_reward_coeff", reward.kl_penalty_reward_coeff, "reduction_kl", reward.reduction_kl),
    )
    for coeff_name, coeffs, reduction_name, reductions in pairs:
        if not reductions:
            yield f"reward.{reduction_name} is empty: expected at least one; with a weight of 0 the term is off"
        elif len(coeffs) not in (1, len(reductions)):
            yield (
                f"reward.{coeff_name} has {len(coeffs)} weights and reward.{reduction_name} has {len(reductions)} "
                f"reductions: give one weight for all or {len(reductions)}, "
                f"as in {_flag('reward.' + coeff_name)} {' '.join(['1'] * len(reductions))}"
            )
        if len(set(reductions)) < len(reductions):
            yield f"reward.{reduction_name} names a reduction twice: give it once, with the sum of the weights"
    for name, clip in (("clip_log_prob", reward.clip_log_prob), ("clip_kl", reward.clip_kl)):
        if clip is not None and clip <= 0:
            yield f"reward.{name}={clip:g}: expected a positive number of nats, or None for no limit"
    if reward.not_matched_penalty > 0:
        yield (
            f"reward.not_matched_penalty={reward.not_matched_penalty:g} would reward unclosed tags: "
            "expected 0 or a negative number"
        )
    if reward.unbias_student_log_probs_temp is not None and reward.unbias_student_log_probs_temp <= 0:
        yield (
            f"reward.unbias_student_log_probs_temp={reward.unbias_student_log_probs_temp:g}: "
            "expected a temperature above 0, or None for 1"
        )
    yield from _term_problems(reward)


def _term_problems(reward: RewardConfig) -> Iterator[str]:
    """Of the terms beside the paper's."""
    for name in ("likelihood_coeff", "copy_coeff", "repeat_coeff", "length_target_coeff", "overlong_coeff"):
        if (coeff := getattr(reward, name)) < 0:
            yield f"reward.{name}={coeff:g}: expected a weight above 0, or 0 for no such term"
    yield from count_problems(
        {
            "reward.length_target_slack": reward.length_target_slack,
            "reward.overlong_buffer": reward.overlong_buffer,
            "reward.overlong_length": 1 if reward.overlong_length is None else reward.overlong_length,
        }
    )
    low, high = reward.length_target_min, reward.length_target_max
    if low < 0 or (high is not None and high < low):
        yield (
            f"reward.length_target_min={low}, reward.length_target_max={high}: expected 0 or more tokens, and a "
            "maximum that is not below the minimum, or None"
        )
    elif reward.length_target_coeff > 0 and (low, high) == (0, None):
        yield (
            f"reward.length_target_coeff={reward.length_target_coeff:g} without a range: give "
            "--reward.length-target-min or --reward.length-target-max, tokens"
        )
    if reward.overlong_coeff > 0 and reward.overlong_length is None:
        yield (
            f"reward.overlong_coeff={reward.overlong_coeff:g} without reward.overlong_length: give the length at which "
            "completions are cut off, the value of --max-completion-length"
        )
    elif reward.overlong_length is not None and reward.overlong_buffer > reward.overlong_length >= 1:
        yield (
            f"reward.overlong_buffer={reward.overlong_buffer} is more than reward.overlong_length="
            f"{reward.overlong_length}: expected a part of it"
        )


def _function_problems(reward: RewardConfig) -> Iterator[str]:
    yield from text_problems({"reward.fn": (reward.fn, f"{_FORMS}, or None for the paper's reward")})
    if reward.fn is None:
        if reward.options:
            yield f"reward.options={yaml_line(reward.options)} without reward.fn: give the function that has them"
        if reward.fn_sha256 is not None:
            yield "reward.fn_sha256 without reward.fn: give the function whose file that is, or leave it out"
    elif reward.fn.strip() and parse_function_name(reward.fn) is None:
        yield f"reward.fn={reward.fn}: expected {_FORMS}, such as rewards/mine.py:short"
    if reward.fn_sha256 is not None and not re.fullmatch("[0-9a-f]{64}", reward.fn_sha256):
        yield f"reward.fn_sha256={reward.fn_sha256}: expected 64 digits 0-9 and a-f, as `sha256sum FILE` prints them"


def _flag(name: str) -> str:
    """The flag of a field: `reward.clip_kl` -> `--reward.clip-kl`."""
    return "--" + name.replace("_", "-")
