"""Arms of an ablation study: which fields each of them changes, as its file and the command line give them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import product
from typing import Any

from rlt_jax.configs.files import merged_values, yaml_values
from rlt_jax.configs.resume import leaves, shown
from rlt_jax.errors import UserError

Fields = dict[str, Any]  # field with its section, such as `loss.beta` -> value

RESERVED = ("preset", "seed", "output_dir", "resume", "accept_changes")  # of a run, set by the study, not by its arms
BASE_ARM = "base"  # name of the only arm of a grid without arms


def read_grid(options: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The grid of `--grid FIELD=VALUES ...`: field -> values.

    VALUES is a YAML list, whose brackets may be left out: `loss.beta=0,0.04`, `reward.reduction_kl=[[mean], [max]]`.
    As in flags, dashes stand for underscores, and `None`, `True` and `False` for themselves.

    Raises:
      UserError: all options that are no such text, or name a field twice, one per line.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    problems = []
    for option in options:
        field, equals, text = option.partition("=")
        field, text = field.strip().replace("-", "_"), text.strip()
        if not equals or not field or not text:
            problems.append(f"--grid {option}: expected FIELD=VALUES, such as loss.beta=0,0.04")
            continue
        if field in grid:
            problems.append(f"--grid {option}: {field} is given twice: give all its values at once")
        try:
            values = yaml_values(text if text.startswith("[") else f"[{text}]")
        except UserError as error:
            problems.append(
                f"--grid {option}: expected a list such as 0,0.04, or [[mean], [mean, max]] for values that are lists "
                f"themselves: {error}"
            )
            continue
        grid[field] = tuple(map(_as_in_flags, values))
    if problems:
        raise UserError("\n".join(problems))
    return grid


def all_arms(arms: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Fields]]:
    """Every arm at every point of the grid: its name, such as `no-kl+loss.beta=0.04`, and its fields."""
    for arm, changes in (arms or {BASE_ARM: {}}).items():
        for point in product(*grid.values()):
            settings = dict(zip(grid, point))
            name = "+".join([arm, *(f"{field}={_folder_name(value)}" for field, value in settings.items())])
            yield name, {**dict(leaves(changes)), **settings}


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """{"loss.beta": 0.1} -> {"loss": {"beta": 0.1}}."""
    return reduce(merged_values, (_nested(field, value) for field, value in fields.items()), {})


def arm_problems(arms: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Mistakes in arms and grid that show without building their runs, one message each."""
    if not arms and not grid:
        yield "neither arms nor grid: give the settings to compare"
    for field, values in grid.items():
        yield from list_problems(f"grid.{field}", values)
        if any(isinstance(value, dict) for value in values):
            yield f"grid.{field} holds a section: name a single field, such as loss.beta, or make it arms"
    for arm, changes in arms.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", arm):
            yield f"arms: {arm!r} cannot be a folder's name: use letters, digits, dot, dash and underscore"
        fields = [field for field, _ in leaves(changes)]
        for field in dict.fromkeys(field for field in fields if fields.count(field) > 1):
            yield f"arms.{arm} sets {field} in two ways: give it once"
        for outer in [field for field in fields if any(other.startswith(f"{field}.") for other in fields)]:
            yield f"arms.{arm} sets {outer} and a field of it: give {outer} as a section, or single fields"
        for field in [field for field in fields if field in grid]:
            yield f"arms.{arm} sets {field}, which the grid sets too: leave it out of one of them"
    given = {**{f"arms.{arm}": dict(leaves(changes)) for arm, changes in arms.items()}, "grid": grid}
    for name, fields_of in given.items():
        for field in [field for field in fields_of if field in RESERVED]:
            yield f"{name} sets {field}, which the study sets: leave it out"
        for field, value in fields_of.items():
            if "None" in (value if name == "grid" and not isinstance(value, str) else (value,)):
                yield f"{name} sets {field} to the text 'None': write null for no value"
    names = [name for name, _ in all_arms(arms, grid)]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"two arms get the folder {name}: write the values of the grid as arms, with your own names"


def list_problems(name: str, values: Sequence[Any]) -> Iterator[str]:
    """An empty list, or a value twice."""
    if not values:
        yield f"{name} is empty: give one or more values"
    if any(_same(value, other) for i, value in enumerate(values) for other in values[:i]):
        yield f"{name} holds a value twice: give it once"


def fields_text(fields: Mapping[str, Any]) -> str:
    """Fields in a message: `loss.beta=0, reward.reduction_kl=mean max`."""
    return ", ".join(f"{field}={shown(value)}" for field, value in fields.items())


def _same(one: object, other: object) -> bool:
    """Whether two values of a file are the same; 1 and true are not, 1 and 1.0 are."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _as_in_flags(value: Any) -> Any:
    """A value of the command line: `None` is no value, also within a list."""
    if isinstance(value, list):
        return [_as_in_flags(item) for item in value]
    return None if value == "None" else value


def _nested(field: str, value: object) -> dict[str, Any]:
    first, _, rest = field.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _folder_name(value: object) -> str:
    """A value as part of a folder's name."""
    values: Iterable[object] = value if isinstance(value, list) else [value]
    return re.sub(r"[^A-Za-z0-9._,+-]+", "-", ",".join(map(str, values)))
