"""Checks shared by the configurations: each yields one message per problem."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from rlt_jax.configs.files import type_problems
from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def check_problems(config: Config, find_problems: Callable[[Config], Iterable[str]]) -> None:
    """Raise all problems of a configuration at once.

    `find_problems` compares numbers, so it runs only if all values have the right types and all numbers are finite.

    Raises:
      UserError: every problem, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(not_finite_problems(asdict(config))) or list(find_problems(config))
    if problems:
        raise UserError("\n".join(problems))


def text_problems(texts: Mapping[str, tuple[str | None, str]]) -> Iterator[str]:
    """Texts that are empty.

    Args:
      texts: field name -> (value, what is expected there).
    """
    for name, (text, expected) in texts.items():
        if text is not None and not text.strip():
            yield f"{name} is empty: expected {expected}"


def count_problems(counts: Mapping[str, int]) -> Iterator[str]:
    """Counts below 1, by field name."""
    for name, count in counts.items():
        if count < 1:
            yield f"{name}={count}: expected a positive whole number"


def seed_problems(seed: int) -> Iterator[str]:
    """A seed outside the range of the random number generators."""
    if not 0 <= seed < 2**31:
        yield f"seed={seed}: expected a whole number from 0 to {2**31 - 1}"


def not_finite_problems(values: dict[str, Any], section: str = "") -> Iterator[str]:
    """NaN and infinite numbers in a configuration given as nested dicts; comparisons would not catch a NaN."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from not_finite_problems(value, f"{section}{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                yield f"{section}{name}={number}: expected a finite number"
