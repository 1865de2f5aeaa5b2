"""Which settings may change when interrupted work is resumed: marked at each field.

Three kinds of fields: `MayChange` has no influence on results; `Steers` has an influence on how training continues, but
results before and after a change measure the same thing; a field without a mark decides what is measured.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


class _MayChange:
    """Marks a field that may change."""


class _Steers:
    """Marks a field that a run may change on its way, by name."""


MayChange = Annotated[T, _MayChange]
"""Type of a field, or of a whole section, that does not change results beyond rounding."""

Steers = Annotated[T, _Steers]
"""Type of a field, or of a whole section, that changes how a run trains, but not what its evaluations measure."""


class Change(NamedTuple):
    """A setting that differs between two parts of a run."""

    name: str  # with its section: `loss.beta`
    before: Any
    now: Any
    steers: bool  # whether it is marked `Steers`

    def __str__(self) -> str:
        return f"{self.name} {shown(self.before)} -> {shown(self.now)}"


def shown(value: Any) -> str:
    """A value in a message: numbers of a list with blanks between them, as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def deciding_settings(config: "DataclassInstance") -> dict[str, Any]:
    """The settings that decide the results, as nested dicts: all but those marked `MayChange`."""
    hints = get_type_hints(type(config), include_extras=True)
    settings = {}
    for field in dataclasses.fields(config):
        if _MayChange in get_args(hints[field.name]):
            continue
        value = getattr(config, field.name)
        settings[field.name] = deciding_settings(value) if _is_section(value) else value
    return settings


def changed_fields(config: "DataclassInstance", saved: "DataclassInstance") -> list[str]:
    """Names (`loss.beta`) of the deciding settings that differ between two configurations of one class."""
    return [change.name for change in changes(config, saved)]


def changes(config: "DataclassInstance", saved: "DataclassInstance") -> list[Change]:
    """The deciding settings in which `config` differs from `saved`, of one class, in the order of their fields."""
    before, now = dict(leaves(deciding_settings(saved))), dict(leaves(deciding_settings(config)))
    steering = set(_steering(config))
    return [  # a mapping of any keys, such as a reward function's options, may have other ones
        Change(name, before.get(name), now.get(name), name in steering)
        for name in dict.fromkeys([*now, *before])
        if now.get(name) != before.get(name)
    ]


def leaves(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested values to pairs of name (`loss.beta`) and value."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value


def _steering(config: "DataclassInstance", section: str = "", *, marked: bool = False) -> Iterator[str]:
    """Names of the fields marked `Steers`, themselves or by their section."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, steers = getattr(config, field.name), marked or _Steers in get_args(hints[field.name])
        if _is_section(value):
            yield from _steering(value, f"{section}{field.name}.", marked=steers)
        elif steers:
            yield f"{section}{field.name}"


def _is_section(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
