"""Test sets: questions with known answers, free-form or multiple-choice, read from named columns."""

import logging
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Literal

import numpy as np

from rlt_jax.data.rows import BadRow, optional_text, read_rows
from rlt_jax.data.sources import Unreadable
from rlt_jax.types import WrittenFloat

_log = logging.getLogger("rlt_jax")

MOST_ZEROS = 40  # that are written out in an answer
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
    on_bad_row: Literal["skip", "stop"] = "skip",
    say: Callable[[str], None] = _log.info,
) -> tuple[tuple[Question, ...], tuple[tuple[int, str], ...]]:
    """Read a test set (see `load_rows` for what `source` may be).

    With `choice_columns` (the wrong options), all options follow the question, with letters. Their order depends only
    on the row's number, so it is the same for every model and seed (in GPQA's columns the right one comes first).

    Returns:
      The usable rows, and (row number, reason) for each of the others.
    Raises:
      UserError: `source` cannot be read, no row is usable, or there is a bad row when `on_bad_row` is "stop".
    """
    columns = [question_column, answer_column, *choice_columns]
    rows, skipped, _ = read_rows(
        source,
        partial(_question, question=question_column, answer=answer_column, choices=tuple(choice_columns)),
        split=split,
        subset=subset,
        on_bad_row=on_bad_row,
        say=say,
        needed=f"rows with the columns {', '.join(columns)}, or name the columns (--data.question-column, "
        "--data.answer-column, --data.choice-columns)",
    )
    return rows, skipped


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
    text_with_options = "\n".join([text, "", *lines, "", LETTER_INSTRUCTION])
    return Question(number, text_with_options, letters[list(order).index(0)], letters, system)


def _written_out(number: Decimal) -> str:
    """A number without an exponent, or with one if that would take more than MOST_ZEROS zeros."""
    if not number:
        return "0"
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)  # the number is finite
    kept = "".join(map(str, digits)).rstrip("0")
    exponent += len(digits) - len(kept)
    if exponent > MOST_ZEROS or -exponent - len(kept) > MOST_ZEROS:
        return f"{'-' * sign}{kept}e{exponent}"
    return format(Decimal((sign, tuple(map(int, kept)), exponent)), "f")


def _cell(raw: Mapping, column: str) -> str:
    """A column's text, or its number as text, digit by digit (5.0 as 5, 2e-05 as 0.00002)."""
    value = raw.get(column)
    if value is None:
        raise BadRow(f"no {column} (columns: {', '.join(map(str, raw))})")
    if isinstance(value, float | Decimal):
        number = Decimal(value.text) if isinstance(value, WrittenFloat) else Decimal(str(value))
        if not number.is_finite():  # NaN: an empty cell of a table
            raise BadRow(f"{column} is empty")
        return _written_out(number)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else optional_text(raw, column)
    if not text or not text.strip():
        raise BadRow(f"{column} is empty")
    return text
