"""Test sets: questions with known answers, free-form or multiple-choice, read from named columns."""

import logging
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from rlt_jax.data.cells import BadRow, text_of, text_or_number_of
from rlt_jax.data.columns import Columns, Spelling, as_arguments
from rlt_jax.data.rows import columns_of, read_rows

_log = logging.getLogger("rlt_jax")

LETTER_INSTRUCTION = "Answer with the letter of the right option."


@dataclass(frozen=True)
class Question:
    """One usable row of a test set."""

    number: int  # row number in the test set, from 0
    text: str  # options included
    answer: str  # the right one; with options, its letter
    letters: str  # of the options, such as "ABCD"; empty for free-form answers
    system: str | None  # the row's own system prompt


def load_questions(
    source: str,
    *,
    split: str,
    subset: str | None = None,
    question_column: str,
    answer_column: str,
    choice_columns: Sequence[str] = (),
    system_column: str | None = None,
    spelled: Spelling = as_arguments,
    on_bad_row: Literal["skip", "stop"] = "skip",
    say: Callable[[str], None] = _log.info,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[tuple[Question, ...], tuple[tuple[int, str], ...]]:
    """Read a test set (see `load_rows` for what `source` may be).

    With `choice_columns` (the wrong options), all options follow the question, with letters. Their order depends only
    on the row's number, so it is the same for every model and seed (in GPQA's columns the right one comes first).

    Args:
      system_column: with the student's system prompt. None: `system`.
      spelled: how the user names columns, for messages.
    Returns:
      The usable rows, and (row number, reason) for each of the others.
    Raises:
      UserError: `source` cannot be read, no row is usable, no row has a named column, or there is a bad row when
        `on_bad_row` is "stop".
    """
    columns = Columns(question=question_column, answer=answer_column, system=system_column, spelled=spelled)
    flags = spelled({"question": "NAME", "answer": "NAME"})
    read = read_rows(
        source,
        partial(_question, question=question_column, answer=answer_column, columns=columns, choices=choice_columns),
        split=split,
        subset=subset,
        columns=columns,
        parts=("question", "answer"),
        named={} if system_column is None else {"system": system_column},
        on_bad_row=on_bad_row,
        say=say,
        on_progress=on_progress,
        needed=f"rows with the columns {', '.join([question_column, answer_column, *choice_columns])}, or name the "
        f"columns ({flags})",
    )
    return read.rows, read.skipped


def _question(
    number: int, raw: object, *, question: str, answer: str, columns: Columns, choices: Sequence[str]
) -> Question:
    raw = columns_of(raw)
    text, right = _cell(raw, question), _cell(raw, answer).strip()
    system = text_of(raw, columns.of("system", raw)) or None
    if not choices:
        return Question(number, text, right, "", system)
    options = [right, *(_cell(raw, choice).strip() for choice in choices)]
    if len(set(options)) < len(options):
        raise BadRow("two options are the same")
    letters = string.ascii_uppercase[: len(options)]
    order = np.random.default_rng(number).permutation(len(options))
    lines = [f"{letter}) {options[i]}" for letter, i in zip(letters, order)]
    text_with_options = "\n".join([text, "", *lines, "", LETTER_INSTRUCTION])
    return Question(number, text_with_options, letters[list(order).index(0)], letters, system)


def _cell(raw: Mapping, column: str) -> str:
    """A column's text, or its number as text, digit by digit."""
    if column not in raw or raw[column] is None:
        raise BadRow(f"no {column} (columns: {', '.join(map(str, raw))})")
    text = text_or_number_of(raw, column)
    if text is None or not text.strip():  # NaN: an empty cell of a table
        raise BadRow(f"{column} is empty")
    return text
