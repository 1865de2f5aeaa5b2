"""A column's value as text: texts as they stand, numbers digit by digit, an empty cell as None."""

import math
from collections.abc import Mapping
from decimal import Decimal

import numpy as np

from rlt_jax.types import WrittenFloat

MOST_ZEROS = 40  # that are written out in a number


class BadRow(Exception):
    """Why a row cannot be used; details are in parentheses, so that reasons can be counted without them."""


def text_of(raw: Mapping, column: str, *, name: str | None = None) -> str | None:
    """A column's text; None if the column is missing or the cell is empty (null, or a table's NaN).

    Args:
      name: what the column holds, for messages. None: the column's own name.
    Raises:
      BadRow: it is not text, or not valid Unicode.
    """
    value = raw.get(column)
    if _is_empty(value):
        return None
    if not isinstance(value, str):
        raise BadRow(f"{name or column} is not text (came {type(value).__name__})")
    return _unicode(value, name or column)


def text_or_number_of(raw: Mapping, column: str, *, name: str | None = None) -> str | None:
    """A column's text, or its number as text, digit by digit (5.0 as 5, 2e-05 as 0.00002); None as in `text_of`.

    The digits are those of the file for JSON's numbers and a table's decimals and integers, and the fewest that give
    the same number for a table's floats.

    Args:
      name: as in `text_of`.
    Raises:
      BadRow: it is neither text nor a finite number, such as a truth value, a date or a list.
    """
    value = raw.get(column)
    if _is_empty(value):
        return None
    if isinstance(value, str):
        return _unicode(value, name or column)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | Decimal | np.integer | np.floating):
        raise BadRow(f"{name or column} is neither text nor a number (came {type(value).__name__})")
    if isinstance(value, int | np.integer):
        return str(value)
    number = Decimal(value.text if isinstance(value, WrittenFloat) else str(value))
    if not number.is_finite():
        raise BadRow(f"{name or column} is not a finite number (came {number})")
    return written_out(number)


def written_out(number: Decimal) -> str:
    """A finite number without an exponent, or with one if that would take more than MOST_ZEROS zeros."""
    if not number:
        return "0"
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)  # the number is finite
    kept = "".join(map(str, digits)).rstrip("0")
    exponent += len(digits) - len(kept)
    if exponent > MOST_ZEROS or -exponent - len(kept) > MOST_ZEROS:
        return f"{'-' * sign}{kept}e{exponent}"
    return format(Decimal((sign, tuple(map(int, kept)), exponent)), "f")


def _is_empty(value: object) -> bool:
    """Null, or NaN: an empty cell of a table."""
    if isinstance(value, Decimal):
        return value.is_nan()
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _unicode(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} is not valid Unicode (half a character pair at {error.start})") from None
    return text
