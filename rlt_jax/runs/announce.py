"""What a command is about to do, in two or three lines: on which rows, evaluated on which, with which prompts and tags.

Pure functions of what is known before models are loaded. Files are shown by their names as given.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlt_jax.configs import (
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    QuestionsConfig,
    RowsConfig,
    ScoreConfig,
    SftConfig,
    TrainConfig,
)
from rlt_jax.data import ChatFormat
from rlt_jax.data.chat_format import ROWS_FIRST
from rlt_jax.data.model_record import RECORD_FILE, tag_format_of
from rlt_jax.runs.own_reward import reward_lines
from rlt_jax.types import Row

FIRST_WORDS = 6  # of a prompt


def train_lines(
    config: TrainConfig, chat: ChatFormat, *, trained: int, skipped: int, held_out: int, rows: Sequence[Row]
) -> list[str]:
    """The start of an RLT run.

    Args:
      trained, held_out: prompts to train and to evaluate on.
      skipped: rows of the training split that are neither, as they cannot be used.
      rows: some that are trained on, whose own `system` may be the student's prompt.
    """
    used = f", each draw for {config.steps_per_draw} steps" if config.steps_per_draw > 1 else ""
    return [
        f"training the teacher {_short(config.teacher)} on {_taken(trained, config.data, skipped)}, "
        f"{config.max_steps} steps of {config.questions_per_draw} questions x {config.num_generations} completions"
        f"{used}; the frozen student {_short(config.student)} gives the reward",
        evaluation_line(config.data, config.eval_steps, held_out),
        f"prompts: {teacher_words(config.data, chat)}, {student_words(config.data, chat, rows)}; {tags_words(chat)}",
        *reward_lines(config.reward),
    ]


def sft_lines(
    config: SftConfig,
    chat: ChatFormat,
    *,
    trained: int,
    skipped: int,
    held_out: int,
    steps: int,
    rows: Sequence[Row],
) -> list[str]:
    """The start of a supervised run; arguments as in `train_lines`, and the number of gradient steps."""
    target = "explanations, given question and solution"
    prompt = teacher_words(config.data, chat)
    if config.target == "student":
        target, prompt = "thoughts and solutions, given the question", student_words(config.data, chat, rows)
    return [
        f"fine-tuning the {config.target} {_short(config.model)} to write {target}, on {trained} training examples of "
        f"{rows_of(config.data)} ({skipped} skipped), {steps} steps of {config.train_batch_size} rows",
        evaluation_line(config.data, config.eval_steps, held_out),
        f"prompts: {prompt}; {tags_words(chat)}",
    ]


def generate_lines(config: GenerateConfig, chat: ChatFormat, *, explained: int, skipped: int) -> list[str]:
    """The start of `generate`: rows to explain, and rows that are skipped."""
    reward = (
        f"the frozen student {_short(config.student)} gives the reward"
        if config.student
        else "no student, so no rewards"
    )
    each = "1 explanation each" if config.samples == 1 else f"{config.samples} explanations each"
    return [
        f"the teacher {_short(config.teacher)} explains {_taken(explained, config.data, skipped)}, {each}; {reward}",
        f"prompts: {teacher_words(config.data, chat)}; {tags_words(chat)}",
        *(reward_lines(config.reward) if config.student else ()),
    ]


def score_lines(config: ScoreConfig, chat: ChatFormat, *, rows: Sequence[Row], skipped: int) -> list[str]:
    """The start of `score`: rows to score, and how many could not be read."""
    return [
        f"scoring {_rows(len(rows))} of {_short(config.data)} ({skipped} skipped): teacher {_short(config.teacher)}, "
        f"frozen student {_short(config.student)}",
        f"prompts: {teacher_words(config, chat)}, {student_words(config, chat, rows)}; {tags_words(chat)}",
        *reward_lines(config.reward),
    ]


def evaluate_lines(config: EvaluateConfig, chat: ChatFormat, *, asked: int, skipped: int) -> list[str]:
    """The start of `evaluate`: questions to ask, and rows that are skipped."""
    each = "1 answer each" if config.samples == 1 else f"{config.samples} answers each"
    file = config.system_prompt_file
    if config.prompt == "chat":
        words = "no system prompt" if file is None else f"from {_short(file)} {_quoted(chat.student_prompt)}"
        prompt = f"the model's own chat, {words}"
    else:
        note = " (rows with a `system` keep it)" if file is None else ""
        prompt = f"{_student_prompt(chat)}{note}; {tags_words(chat)}"
    return [
        f"asking {_short(config.model)} {asked} questions of {rows_of(config.data)} ({skipped} skipped), {each}; "
        f"answers are the column {config.data.answer_column}",
        f"prompts: {prompt}",
    ]


def attention_line(kernels: Mapping[str, str]) -> str:
    """Which attention runs (`models.kernel_name`), for each model by its name."""
    if len(set(kernels.values())) == 1:
        return f"attention: {next(iter(kernels.values()))}"
    return "attention: " + ", ".join(f"{kernel} for the {name}" for name, kernel in kernels.items())


def evaluation_line(data: DataConfig, eval_steps: int, held_out: int) -> str:
    """Which rows a run is evaluated on, and when."""
    if held_out == 0:
        return "no evaluation"
    own = data.eval_path is None and data.eval_split is None
    if eval_steps == 0:
        away = f"; {_rows(held_out)} {evaluated_rows(data)} are held out, and not trained on" if own else ""
        return f"no evaluation{away}"
    note = ", which are not trained on" if own else ""
    return f"evaluating every {eval_steps} steps on {_rows(held_out)} {evaluated_rows(data)}{note}"


def evaluated_rows(data: DataConfig) -> str:
    """Where the held-out rows are, such as `at the end of units.jsonl`."""
    if data.eval_path is None and data.eval_split is None:
        return f"at the end of {rows_of(data)}"
    return f"of {_source(data.eval_path or data.path, data.eval_split or 'train')}"


def rows_of(data: DataConfig | RowsConfig | QuestionsConfig) -> str:
    """A source and its split, such as `units.jsonl` or `org/name (split test)`."""
    return _source(data.path, data.split)


def teacher_words(data: DataConfig | RowsConfig | ScoreConfig, chat: ChatFormat) -> str:
    """Where the teacher's system prompt is from, and its first words."""
    return f"teacher's {_from(chat.sources.teacher_prompt)} {_quoted(chat.teacher_prompt)}"


def student_words(data: DataConfig | RowsConfig | ScoreConfig, chat: ChatFormat, rows: Sequence[Row]) -> str:
    """Where the student's system prompt is from, and its first words."""
    named = _student_prompt(chat)
    own = [row.system for row in rows if row.system is not None]
    if chat.student_prompt_overrides_rows or not own:
        return f"student's {named}"
    if len(own) < len(rows):
        return f"student's the rows' own `system` {_quoted(own[0])}, for rows without one {named}"
    return f"student's the rows' own `system` {_quoted(own[0])}"


def tags_words(chat: ChatFormat) -> str:
    """The style of the tags, and one of them."""
    return f"tags {tag_format_of(chat.tags)} ({chat.tags.explanation_start} ...)"


def _student_prompt(chat: ChatFormat) -> str:
    """The prompt of rows without one of their own."""
    return f"{_from(chat.sources.student_prompt.removeprefix(ROWS_FIRST))} {_quoted(chat.student_prompt)}"


def _from(source: str) -> str:
    """Where a prompt is from: a file, the model's folder, or a default."""
    if Path(source).name == RECORD_FILE:
        return "from its folder"
    return source if source == "default" else f"from {_short(source)}"


def _source(path: str, split: str) -> str:
    return _short(path) if split == "train" else f"{_short(path)} (split {split})"


def _quoted(prompt: str) -> str:
    words = prompt.split()
    return f'"{" ".join(words[:FIRST_WORDS])}{" ..." if len(words) > FIRST_WORDS else ""}"'


def _taken(count: int, data: DataConfig | RowsConfig, skipped: int) -> str:
    return f"{_rows(count)} of {rows_of(data)} ({skipped} skipped)"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _short(path: str) -> str:
    """A path as given; relative to the working folder where that is shorter."""
    given = Path(path)
    if given.is_absolute() and given.is_relative_to(Path.cwd()):
        return str(given.relative_to(Path.cwd()))
    return path
