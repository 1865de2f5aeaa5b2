"""Checks of single values of a config.json; each returns the value or refuses it with words."""

import math

from rlt_jax.errors import UserError


def size(value: object, name: str, where: str) -> int:
    """A positive integer.

    Raises:
      UserError: it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: expected {name} to be a positive integer, got {value!r}: correct it")
    return value


def positive(value: object, name: str, where: str) -> float:
    """A positive number, as a float.

    Raises:
      UserError: it is something else, or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UserError(f"{where}: expected {name} to be a positive number, got {value!r}: correct it")
    return float(value)


def flag(value: object, name: str, where: str) -> bool:
    """True or false.

    Raises:
      UserError: it is something else.
    """
    if not isinstance(value, bool):
        raise UserError(f"{where}: expected {name} to be true or false, got {value!r}: correct it")
    return value
