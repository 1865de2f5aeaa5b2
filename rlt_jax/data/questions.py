"""Test sets: questions with known answers, free or multiple-choice, by the names of their columns."""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from rlt_jax.data.rows import BadRow, optional_text, read_rows
from rlt_jax.data.sources import Unreadable

ASK_FOR_LETTER = "Answer with the letter of the right option."


@dataclass(frozen=True)
class Question:
    """One usable row of a test set."""

    number: int  # row number in the test set, from 0
    text: str  # what the model is asked, options included
    answer: str  # the right one; with options its letter
    letters: str  # of the options, "ABCD"; empty where the answer is free
    system: str | None  # the row's own system prompt


def load_questions(
    source: str,
    *,
    split: str,
    question_column: str,
    answer_column: str,
    choice_columns: Sequence[str] = (),
    on_bad_row: Literal["skip", "stop"] = "skip",
) -> tuple[tuple[Question, ...], tuple[tuple[int, str], ...]]:
    """Read a test set (see `load_rows` for what `source` may be).

    With `choice_columns`, the wrong options, the question is followed by all options with letters, in an order that
    the row's number decides alone: the same for every model and seed (as in GPQA, where the right one comes first).

    Returns:
      The usable rows, and (row number, reason) of the others.
    Raises:
      UserError: nothing readable there, no usable row, or a bad row when `on_bad_row` is "stop".
    """
    columns = [question_column, answer_column, *choice_columns]
    return read_rows(
        source,
        partial(_question, question=question_column, answer=answer_column, choices=tuple(choice_columns)),
        split=split,
        on_bad_row=on_bad_row,
        needed=f"rows with the columns {', '.join(columns)}, or name the columns (--data.question-column, "
        "--data.answer-column, --data.choice-columns)",
    )


def _question(number: int, raw: object, *, question: str, answer: str, choices: tuple[str, ...]) -> Question:
    if isinstance(raw, Unreadable):
        raise BadRow(raw.reason)
    if not isinstance(raw, Mapping):
        raise BadRow(f"not an object with columns (came {type(raw).__name__})")
    text, right = _cell(raw, question), _cell(raw, answer).strip()
    system = optional_text(raw, "system") or None
    if not choices:
        return Question(number, text, right, "", system)
    options = [right, *(_cell(raw, choice).strip() for choice in choices)]
    if len(set(options)) < len(options):
        raise BadRow("two options are the same")
    letters = string.ascii_uppercase[: len(options)]
    order = np.random.default_rng(number).permutation(len(options))
    lines = [f"{letter}) {options[i]}" for letter, i in zip(letters, order)]
    asked = "\n".join([text, "", *lines, "", ASK_FOR_LETTER])
    return Question(number, asked, letters[list(order).index(0)], letters, system)


def _cell(raw: Mapping, column: str) -> str:
    """A column's text, or its number as text (5.0 as 5)."""
    value = raw.get(column)
    if value is None:
        raise BadRow(f"no {column} (columns: {', '.join(map(str, raw))})")
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, float):  # a cell that was empty in a table
        raise BadRow(f"{column} is empty")
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else optional_text(raw, column)
    if not text or not text.strip():
        raise BadRow(f"{column} is empty")
    return text
