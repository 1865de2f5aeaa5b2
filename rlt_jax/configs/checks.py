"""Checks shared by the configurations: each yields one message per problem."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
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


def column_problems(config: "DataclassInstance", section: str = "") -> Iterator[str]:
    """Columns that are named by an empty text, or twice: the fields of `config` that end in `_column`.

    Args:
      section: of the fields, with its dot, for messages.
    """
    names = {name: column for name, column in asdict(config).items() if name.endswith("_column")}
    yield from text_problems(
        {f"{section}{name}": (column, "the name of a column, or None") for name, column in names.items()}
    )
    fields = [name for name, column in names.items() if column is not None]
    for i, name in enumerate(fields):
        if (other := next((earlier for earlier in fields[:i] if names[earlier] == names[name]), None)) is not None:
            yield f"{section}{other} and {section}{name} name the same column, {names[name]}: give each its own"


def count_problems(counts: Mapping[str, int]) -> Iterator[str]:
    """Counts below 1, by field name."""
    for name, count in counts.items():
        if count < 1:
            yield f"{name}={count}: expected a positive whole number"


def off_at_zero_problems(counts: Mapping[str, tuple[int | None, str]]) -> Iterator[str]:
    """Counts below 0, where 0 turns something off.

    Args:
      counts: field name -> (value, what 0 means); a value of None is fine.
    """
    for name, (count, off) in counts.items():
        if count is not None and count < 0:
            yield f"{name}={count}: expected a positive whole number, or {off}"


def micro_batch_problems(*, micro_batch: int, batch: int) -> Iterator[str]:
    """A micro-batch larger than the batch that it is a part of."""
    if micro_batch > batch >= 1:
        yield (
            f"per_device_train_batch_size={micro_batch} is more than train_batch_size={batch}: "
            f"a micro-batch is a part of the batch, use {batch} or less"
        )


def same_path(path: str | None, other: str | None) -> bool:
    """Whether two values of a setting name the same file, folder or hub name, however they are written."""
    if path is None or other is None:
        return path is other
    return path == other or Path(path).expanduser().resolve() == Path(other).expanduser().resolve()


def vllm_share_problems(share: float, *, of: str) -> Iterator[str]:
    """A share that a vLLM engine cannot take.

    Args:
      of: what it is a share of, such as "the GPU".
    """
    if not 0 < share <= 1:
        yield f"vllm_gpu_memory_utilization={share:g}: expected a share of {of} above 0 and at most 1, such as 0.55"


def seed_problems(seed: int) -> Iterator[str]:
    """A seed outside the range of the random number generators."""
    if not 0 <= seed < 2**31:
        yield f"seed={seed}: expected a whole number from 0 to {2**31 - 1}"


def stop_problems(stop_grace: float) -> Iterator[str]:
    """A time in which nothing can be saved."""
    if stop_grace <= 0:
        yield f"stop_grace={stop_grace:g}: expected a positive number of seconds, such as 60"


def not_finite_problems(values: dict[str, Any], section: str = "") -> Iterator[str]:
    """NaN and infinite numbers in a configuration given as nested dicts; comparisons would not catch a NaN."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from not_finite_problems(value, f"{section}{name}.")
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                yield f"{section}{name}={number}: expected a finite number"
