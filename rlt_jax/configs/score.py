"""What scoring existing explanations can be told. Defaults are the paper's RLT reward."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rlt_jax.configs.checks import not_finite_problems, text_problems
from rlt_jax.configs.files import type_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.schema import RewardConfig, reward_problems
from rlt_jax.errors import UserError
from rlt_jax.types import StoredDtype, TagFormat


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Rewards and components of existing explanations."""

    teacher: str
    """Model that wrote, or might have written, the explanations: a local Hugging Face folder or a hub name."""
    student: str
    """Model that is asked how likely the solution is: folder or hub name."""
    data: str
    """JSON Lines, a row each: question, solution and either completion (a teacher's raw output after its prompt, whose
    tags are scored) or explanation (bare text, always matched)."""
    out: MayChange[str]
    """File to write: the rows' rewards and components, JSON Lines in the order of --data. It must not exist."""
    best_of_question: int | None = None
    """Keep the best-rewarded explanations of each question (the same question and solution), rows. None: all."""
    top_fraction: float | None = None
    """Keep this share of the rows, the best-rewarded, in (0, 1]; after best_of_question. None: all."""
    selected_out: MayChange[str | None] = None
    """File to write the kept rows to, as they are in --data, in its order, plus `reward` and `rank` (1: the best)."""
    histogram: MayChange[str | None] = None
    """Picture of the rewards to write, a .png file."""
    temperature: float = 0.7
    """Sampling temperature of the teacher, which divides its logits when reward.unbias_teacher_log_probs, no unit."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward. reward.unbias_student_log_probs_temp is the student's temperature."""
    tags: TagFormat = "bespoke"
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the default prompt."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with a row that cannot be scored: skip it, with number, reason and a count, or stop."""
    dtype: StoredDtype = "auto"
    """Number format of weights and activations. auto: as stored in each model folder."""
    score_batch_size: MayChange[int] = 8
    """Sequences per forward pass. Changes memory, not results."""
    logprob_chunk: MayChange[int] = 1024
    """Tokens whose logits over the vocabulary are held at once, tokens. Changes memory, not results."""


def check_score_config(config: ScoreConfig) -> None:
    """Stop if the scores cannot be what the user wants.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(not_finite_problems(asdict(config)))
    if not problems:
        problems = [*_score_problems(config), *reward_problems(config.reward)]
    if problems:
        raise UserError("\n".join(problems))


def _score_problems(config: ScoreConfig) -> Iterator[str]:
    yield from text_problems(
        {
            "teacher": (config.teacher, "a model folder or hub name"),
            "student": (config.student, "a model folder or hub name"),
            "data": (config.data, "a folder or file"),
            "out": (config.out, "a file to write"),
            "selected_out": (config.selected_out, "a file to write, or None"),
            "histogram": (config.histogram, "a .png file to write, or None"),
        }
    )
    yield from _ranking_problems(config)
    if config.temperature <= 0:
        yield f"temperature={config.temperature:g}: expected a number above 0"
    for name, count in {"score_batch_size": config.score_batch_size, "logprob_chunk": config.logprob_chunk}.items():
        if count < 1:
            yield f"{name}={count}: expected a positive whole number"


def _ranking_problems(config: ScoreConfig) -> Iterator[str]:
    if config.best_of_question is not None and config.best_of_question < 1:
        yield f"best_of_question={config.best_of_question}: expected a positive whole number, or None for all"
    if config.top_fraction is not None and not 0 < config.top_fraction <= 1:
        yield f"top_fraction={config.top_fraction:g}: expected a share above 0 and at most 1, such as 0.5"
    if config.selected_out is None and (config.best_of_question, config.top_fraction) != (None, None):
        yield "best_of_question and top_fraction select rows for selected_out: name that file"
    if config.histogram is not None and not config.histogram.endswith(".png"):
        yield f"histogram={config.histogram}: expected a name that ends in .png"
    files = [Path(name).absolute() for name in (config.out, config.selected_out, config.histogram) if name is not None]
    if len(set(files)) < len(files):
        yield "out, selected_out and histogram name one file twice: give each its own"
