"""Which settings may change when interrupted work is resumed: marked at each field."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


class _MayChange:
    """Marks a field that may change."""


MayChange = Annotated[T, _MayChange]
"""Type of a field, or of a whole section, that does not change results beyond rounding."""


def deciding_settings(config: "DataclassInstance") -> dict[str, Any]:
    """The settings that decide the results, as nested dicts: all but those marked `MayChange`."""
    hints = get_type_hints(type(config), include_extras=True)
    settings = {}
    for field in dataclasses.fields(config):
        if _MayChange in get_args(hints[field.name]):
            continue
        value = getattr(config, field.name)
        is_section = dataclasses.is_dataclass(value) and not isinstance(value, type)
        settings[field.name] = deciding_settings(value) if is_section else value
    return settings


def changed_fields(config: "DataclassInstance", saved: "DataclassInstance") -> list[str]:
    """Names (`loss.beta`) of the deciding settings that differ between two configurations of one class."""
    before = dict(leaves(deciding_settings(saved)))
    return [name for name, value in leaves(deciding_settings(config)) if value != before[name]]


def leaves(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested values to pairs of name (`loss.beta`) and value."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value
