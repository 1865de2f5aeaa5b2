"""Settings for scoring existing explanations. The defaults are the paper's RLT reward."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlt_jax.configs.checks import check_problems, column_problems, count_problems, text_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.reward import RewardConfig, reward_problems
from rlt_jax.configs.settings import Settings
from rlt_jax.types import StoredDtype, TagFormat


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Settings):
    """Rewards and components of existing explanations."""

    teacher: str
    """Teacher that wrote, or could have written, the explanations: a local Hugging Face folder or a hub name."""
    student: str
    """Frozen model whose log-probs make the reward: folder or hub name."""
    data: str
    """Rows with question, solution and either completion (a teacher's raw output after its prompt, whose tags count) or
    explanation (bare text, which always counts as matched): a hub name, a local folder, or a .jsonl, .json, .parquet or
    .csv file."""
    split: str = "train"
    """Split of --data."""
    subset: str | None = None
    """Subset (configuration) of --data. None: the only one, or the default that the data set names."""
    question_column: str | None = None
    """Column with the question. None: `question`, or `prompt`."""
    solution_column: str | None = None
    """Column with the solution, as text or as a number. None: `solution`. A named question or solution is read instead
    of the row's `conversations`."""
    explanation_column: str | None = None
    """Column with the explanation, as bare text. None: `explanation`."""
    completion_column: str | None = None
    """Column with the teacher's raw output. None: `completion`. Of this and the explanation, a named one is read
    alone."""
    system_column: str | None = None
    """Column with the student's system prompt. None: `system`."""
    out: MayChange[str]
    """JSON Lines file to write: rewards and components, in the order of --data. It must not exist."""
    best_of_question: int | None = None
    """Select this many explanations of each question (same question and solution), the best-rewarded. None: all."""
    top_fraction: float | None = None
    """Select this share of the rows, the best-rewarded, in (0, 1]; after best_of_question. None: all."""
    selected_out: MayChange[str | None] = None
    """File for the selected rows, as they are in --data and in its order, with `reward` and `rank` (1: best)."""
    histogram: MayChange[str | None] = None
    """Histogram of the rewards to write, a .png file."""
    temperature: float = 0.7
    """Sampling temperature of the teacher, no unit; divides its logits if reward.unbias_teacher_log_probs is on."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward. reward.unbias_student_log_probs_temp is the student's temperature."""
    tags: TagFormat | None = None
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`. None: as the
    model was trained (rlt_jax.json in its folder), else bespoke."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the one that the teacher was trained with (rlt_jax.json in its
    folder), else the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the one that the student was
    trained with (rlt_jax.json in its folder), else the default prompt."""
    on_contradiction: MayChange[Literal["stop", "warn"]] = "stop"
    """What to do if tags, prompts, roles or chat templates contradict rlt_jax.json in a model's folder: stop, or
    warn and go on."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with an unusable row: skip (number, reason and count are reported) or stop."""
    dtype: StoredDtype = "auto"
    """Dtype of weights and activations. auto: as stored in each model folder."""
    score_batch_size: MayChange[int] = 8
    """As many tokens per forward pass as this many of the longest rows have. Changes memory, not results."""
    logprob_chunk: MayChange[int] = 1024
    """Chunk size for logits over the vocabulary, tokens. Changes memory, not results."""


def check_score_config(config: ScoreConfig) -> None:
    """Reject inconsistent settings.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    check_problems(config, _score_problems)


def _score_problems(config: ScoreConfig) -> Iterator[str]:
    yield from text_problems(
        {
            "teacher": (config.teacher, "a model folder or hub name"),
            "student": (config.student, "a model folder or hub name"),
            "data": (config.data, "a hub name, folder or file"),
            "split": (config.split, "the name of a split, such as train"),
            "subset": (config.subset, "the name of a subset, or None"),
            "out": (config.out, "a file to write"),
            "selected_out": (config.selected_out, "a file to write, or None"),
            "histogram": (config.histogram, "a .png file to write, or None"),
        }
    )
    yield from column_problems(config)
    if config.explanation_column is not None and config.completion_column is not None:
        yield "explanation_column and completion_column: a row has one of them: name only one"
    yield from _selection_problems(config)
    if config.temperature <= 0:
        yield f"temperature={config.temperature:g}: expected a number above 0"
    yield from count_problems({"score_batch_size": config.score_batch_size, "logprob_chunk": config.logprob_chunk})
    yield from reward_problems(config.reward)


def _selection_problems(config: ScoreConfig) -> Iterator[str]:
    if config.best_of_question is not None and config.best_of_question < 1:
        yield f"best_of_question={config.best_of_question}: expected a positive whole number, or None for all"
    if config.top_fraction is not None and not 0 < config.top_fraction <= 1:
        yield f"top_fraction={config.top_fraction:g}: expected a share above 0 and at most 1, such as 0.5"
    if config.selected_out is None and (config.best_of_question, config.top_fraction) != (None, None):
        yield "best_of_question and top_fraction select rows for selected_out: give that file"
    if config.histogram is not None and not config.histogram.endswith(".png"):
        yield f"histogram={config.histogram}: expected a name that ends in .png"
    files = [Path(name).absolute() for name in (config.out, config.selected_out, config.histogram) if name is not None]
    if len(set(files)) < len(files):
        yield "out, selected_out and histogram name the same file: give each a different one"
