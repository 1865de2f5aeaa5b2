"""Rows that already have an explanation: the input of `rlt_jax.score`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rlt_jax.data.chat_format import ChatFormat, padded_thought, teacher_prompt_text
from rlt_jax.data.forged import forged_problem, judged, text_problem
from rlt_jax.data.prompts import Room
from rlt_jax.data.rows import BadRow, optional_text, read_rows, row_from
from rlt_jax.data.spans import NO_SOLUTION_TOKEN, explanation_to_completion, score_row_from_text
from rlt_jax.data.tags import Tags
from rlt_jax.errors import UserError
from rlt_jax.types import Row, ScoreRow

_log = logging.getLogger("rlt_jax")


@dataclass(frozen=True)
class ExplainedRow:
    """A row and its explanation in the form of a teacher's raw output after its prompt, including tags."""

    row: Row
    completion: str
    raw: Mapping[str, object]  # all columns, as read


def load_explained_rows(
    source: str,
    tags: Tags,
    *,
    split: str = "train",
    subset: str | None = None,
    on_bad_row: Literal["skip", "stop"] = "skip",
    say: Callable[[str], None] = _log.info,
) -> tuple[tuple[ExplainedRow, ...], tuple[tuple[int, str], ...]]:
    """Read rows with `completion` (raw output) or `explanation` (bare text, to which tags are added).

    Returns:
      The usable rows, and (row number, reason) for each of the others.
    Raises:
      UserError: `source` cannot be read, no row is usable, or there is a bad row when `on_bad_row` is "stop".
    """
    parse = partial(_explained, tags=tags)
    rows, skipped, _ = read_rows(
        source, parse, split=split, subset=subset, on_bad_row=on_bad_row, say=say, flag="--subset"
    )
    return rows, skipped


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
    for explanation in explained:
        row = explanation.row
        scored = score_row_from_text(
            teacher_prompt_text(row.question, row.solution, chat),
            explanation.completion,
            question=row.question,
            solution=row.solution,
            chat=chat,
            row_system=row.system,
        )
        if problem := _forged(explanation, chat) or _problem(row, scored, room):
            skipped.append((row.number, problem))
        else:
            usable.append((explanation, judged(scored, chat)))
    return usable, skipped


def _forged(explained: ExplainedRow, chat: ChatFormat) -> str | None:
    """Which tag row or given explanation forges; a teacher's raw output is judged instead."""
    problem = forged_problem(explained.row, chat)
    given = explained.raw.get("explanation")
    if problem is None and isinstance(given, str):
        problem = text_problem({"explanation": padded_thought(given)}, chat)
    return problem


def _problem(row: Row, scored: ScoreRow, room: Room) -> str | None:
    """Why a row cannot be scored; None if it can."""
    if not len(scored.solution):
        return f"{NO_SOLUTION_TOKEN} ({row.solution!r})"
    for name, ids, positions in (
        ("teacher", scored.teacher_ids, room.teacher),
        ("student", scored.student_ids, room.student),
    ):
        if positions is not None and len(ids) > positions:
            return f"chat exceeds the {name}'s positions ({len(ids)} tokens, at most {positions})"
    return None


def _explained(number: int, raw: object, *, tags: Tags) -> ExplainedRow:
    row = row_from(number, raw)
    assert isinstance(raw, Mapping)  # row_from refuses all else
    completion, explanation = optional_text(raw, "completion"), optional_text(raw, "explanation")
    if completion is not None and explanation is not None:
        raise BadRow("both completion and explanation: keep one")
    if completion is not None:
        return ExplainedRow(row, completion, raw)
    if explanation is None:
        raise BadRow(f"neither completion nor explanation (columns: {', '.join(map(str, raw))})")
    try:
        return ExplainedRow(row, explanation_to_completion(explanation, tags), raw)
    except UserError as error:
        raise BadRow(str(error)) from None
