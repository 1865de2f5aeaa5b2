"""Rows that already have an explanation: the input of `rlt_jax.score`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rlt_jax.data.cells import BadRow, text_of
from rlt_jax.data.chat_format import ChatFormat, padded_thought, student_header_texts, teacher_prompt_texts
from rlt_jax.data.columns import AS_USUAL, Columns
from rlt_jax.data.forged import forged_problem, judged, text_problem
from rlt_jax.data.lengths import Length, counter_of
from rlt_jax.data.prompts import Room, build_prompts
from rlt_jax.data.rows import columns_of, read_rows, row_from
from rlt_jax.data.spans import (
    NO_SOLUTION_TOKEN,
    ExplanationChats,
    explanation_chats,
    explanation_to_completion,
    score_chats,
)
from rlt_jax.data.tags import Tags
from rlt_jax.errors import UserError
from rlt_jax.types import Prompt, Row, ScoreRow

ANY_LENGTH = 10**9  # tokens

_log = logging.getLogger("rlt_jax")


@dataclass(frozen=True)
class ExplainedRow:
    """A row and its explanation in the form of a teacher's raw output after its prompt, including tags."""

    row: Row
    completion: str
    explanation: str | None  # the bare text that the completion is made of; None: the completion was given
    raw: Mapping[str, object]  # all columns, as read


def load_explained_rows(
    source: str,
    tags: Tags,
    *,
    split: str = "train",
    subset: str | None = None,
    columns: Columns = AS_USUAL,
    on_bad_row: Literal["skip", "stop"] = "skip",
    say: Callable[[str], None] = _log.info,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[tuple[ExplainedRow, ...], tuple[tuple[int, str], ...]]:
    """Read rows with `completion` (raw output) or `explanation` (bare text, to which tags are added).

    Args:
      columns: other names of the columns, as in `load_rows`; of explanation and completion, a named one is read alone.
    Returns:
      The usable rows, and (row number, reason) for each of the others.
    Raises:
      UserError: `source` cannot be read, no row is usable, no row has a named column, or there is a bad row when
        `on_bad_row` is "stop".
    """
    read = read_rows(
        source,
        partial(_explained, tags=tags, columns=columns),
        split=split,
        subset=subset,
        columns=columns,
        parts=("question", "solution", "explanation"),
        on_bad_row=on_bad_row,
        say=say,
        on_progress=on_progress,
        flag="--subset",
        needed="rows with question, solution and either explanation or completion",
    )
    return read.rows, read.skipped


def explained_score_rows(
    explained: Sequence[ExplainedRow], chat: ChatFormat, *, room: Room
) -> tuple[list[tuple[ExplainedRow, ScoreRow]], list[tuple[int, str]]]:
    """The teacher's and the student's sequence of each row, with their spans (see `score_row_from_text`).

    Args:
      room: the lengths that the models were made for.
    Returns:
      The rows that can be scored, and (row number, reason) for each of the others.
    """
    usable, skipped = [], []
    rows = [explanation.row for explanation in explained]
    prompts = teacher_prompt_texts([(row.question, row.solution) for row in rows], chat)
    headers = student_header_texts([(row.question, row.system) for row in rows], chat)
    for explanation, row, prompt, header in zip(explained, rows, prompts, headers):
        chats = explanation_chats(
            prompt, explanation.completion, student_header=header, solution=row.solution, chat=chat
        )
        problem = _forged(explanation, chat)
        problem = problem or _surely_too_long(chats, chat, room)  # before a text of megabytes is tokenised
        if problem is None:
            scored = score_chats(chats, chat)
            if not len(scored.solution):
                problem = f"{NO_SOLUTION_TOKEN} ({row.solution!r})"
            else:
                teacher, student = len(scored.teacher_ids), len(scored.student_ids)
                problem = _too_long("teacher", Length.exact(teacher), room.teacher)
                problem = problem or _too_long("student", Length.exact(student), room.student)
        if problem is None:
            usable.append((explanation, judged(scored, chat)))
        else:
            skipped.append((row.number, problem))
    return usable, skipped


def with_prompts(
    pairs: Sequence[tuple[ExplainedRow, ScoreRow]], chat: ChatFormat
) -> tuple[list[tuple[ExplainedRow, ScoreRow]], list[Prompt], list[tuple[int, str]]]:
    """Rows that can be scored with the prompt of each, as a teacher would have been given it, however long.

    Returns:
      The rows that have a prompt, their prompts, and (row number, reason) for each of the others.
    """
    built = build_prompts([explained.row for explained, _ in pairs], chat, max_prompt_length=ANY_LENGTH)
    prompts = {prompt.row.number: prompt for prompt in built.prompts.take(range(len(built.prompts)))}
    kept = [pair for pair in pairs if pair[0].row.number in prompts]
    return kept, [prompts[explained.row.number] for explained, _ in kept], list(built.skipped)


def _forged(explained: ExplainedRow, chat: ChatFormat) -> str | None:
    """Which tag row or given explanation forges; a teacher's raw output is judged instead."""
    problem = forged_problem(explained.row, chat)
    if problem is None and explained.explanation is not None:
        problem = text_problem({"explanation": padded_thought(explained.explanation)}, chat)
    return problem


def _surely_too_long(chats: ExplanationChats, chat: ChatFormat, room: Room) -> str | None:
    """What `_too_long` says of chats that need not be tokenised for it."""
    teacher = counter_of(chat.tokenizer).bounds(chats.teacher)
    if problem := _too_long("teacher", teacher, room.teacher):
        return problem
    return _too_long("student", counter_of(chat.student).bounds(chats.student), room.student)


def _too_long(model: str, length: Length, positions: int | None) -> str | None:
    """Why a chat cannot be scored; None if it can, as far as is known of its length."""
    if positions is None or length.low <= positions:
        return None
    return f"chat exceeds the {model}'s positions ({length} tokens, at most {positions})"


def _explained(number: int, raw: object, *, tags: Tags, columns: Columns) -> ExplainedRow:
    raw = columns_of(raw)
    row = row_from(number, raw, columns=columns)
    completion = explanation = None
    if columns.explanation is None:
        completion = text_of(raw, columns.of("completion", raw))
    if columns.completion is None:
        explanation = text_of(raw, columns.of("explanation", raw))
    if completion is not None and explanation is not None:
        raise BadRow("both completion and explanation: keep one, or name the column to read")
    if completion is not None:
        return ExplainedRow(row, completion, None, raw)
    if explanation is None:
        missing = next((part for part in ("explanation", "completion") if part in columns.named), None)
        what = f"no {missing}" if missing else "neither completion nor explanation"
        raise BadRow(f"{what} (columns: {', '.join(map(str, raw))})")
    try:
        return ExplainedRow(row, explanation_to_completion(explanation, tags), explanation, raw)
    except UserError as error:
        raise BadRow(str(error)) from None
