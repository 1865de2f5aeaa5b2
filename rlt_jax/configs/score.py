"""What scoring existing explanations can be told. Defaults are the paper's RLT reward."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from rlt_jax.configs.check import not_finite_problems, reward_problems, text_problems
from rlt_jax.configs.files import type_problems
from rlt_jax.configs.schema import RewardConfig
from rlt_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Rewards and components of existing explanations."""

    teacher: str
    """Model that wrote, or might have written, the explanations: a local Hugging Face folder or a hub name."""
    student: str
    """Model that is asked how likely the solution is: folder or hub name."""
    data: str
    """JSON Lines, a row each: question, solution and either completion (a teacher's raw output after its prompt, whose
    tags are judged) or explanation (bare text, always matched)."""
    out: str
    """File to write: the rows' rewards and components, JSON Lines in the order of --data. It must not exist."""
    temperature: float = 0.7
    """Sampling temperature of the teacher, which divides its logits when reward.unbias_teacher_log_probs, no unit."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward. reward.unbias_student_log_probs_temp is the student's temperature."""
    tags: Literal["bespoke", "r1"] = "bespoke"
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the default prompt."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with a row that cannot be scored: skip it, with number, reason and a count, or stop."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number format of weights and activations. auto: as stored in each model folder."""
    score_batch_size: int = 8
    """Sequences per forward pass. Changes memory, not results."""
    logprob_chunk: int = 1024
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
        }
    )
    if config.temperature <= 0:
        yield f"temperature={config.temperature:g}: expected a number above 0"
    for name, count in {"score_batch_size": config.score_batch_size, "logprob_chunk": config.logprob_chunk}.items():
        if count < 1:
            yield f"{name}={count}: expected a positive whole number"
