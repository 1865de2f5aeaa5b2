"""The one way to write JSON: what any reader takes, with the digits that numbers had where they came from.

JSON has no NaN and no infinity, so these become null.
"""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import simplejson

from rlt_jax.types import WrittenFloat


def json_text(value: object, *, indent: int | None = None) -> str:
    """A value as JSON text: NumPy's numbers and arrays as Python's, numbers of a JSON file and decimals digit by digit.

    Texts are written as they are, or escaped if they hold half a character pair, which UTF-8 cannot.

    Raises:
      TypeError: a part of the value is nothing that JSON has, such as a date or bytes.
    """
    plain = _plain(value)
    try:
        return _dumps(plain, indent, as_ascii=False)
    except UnicodeEncodeError:
        return _dumps(plain, indent, as_ascii=True)


def json_line(record: Mapping[str, object]) -> str:
    """A record as a line of JSON Lines, with its end."""
    return json_text(record) + "\n"


def parsed_json(text: str | bytes) -> Any:
    """The value of a JSON text of our own; a bare NaN or infinity, as older files have them, is null.

    Raises:
      json.JSONDecodeError, UnicodeDecodeError: it is not JSON.
    """
    return json.loads(text, parse_constant=lambda name: None)


def _dumps(plain: object, indent: int | None, *, as_ascii: bool) -> str:
    """JSON text that UTF-8 can hold; raises UnicodeEncodeError if it cannot."""
    text = simplejson.dumps(
        plain,
        indent=indent,
        ensure_ascii=as_ascii,
        allow_nan=False,
        encoding=None,  # else bytes would be written as text
    )
    text.encode()
    return text


def _plain(value: object) -> object:
    """A value that `simplejson` writes as it should."""
    match value:
        case np.generic() | np.ndarray():
            return _plain(value.tolist())
        case WrittenFloat():  # beyond a float's range it is infinite, but its text is not
            return None if math.isnan(value) else simplejson.RawJSON(value.text)
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return value if value.is_finite() else None
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
