"""Which settings may change when work that was begun is resumed: a property of each field."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


class _MayChange:
    """The mark of such a field."""


MayChange = Annotated[T, _MayChange]
"""Type of a field, or of a whole section, that changes no result beyond rounding."""


def deciding_settings(config: "DataclassInstance") -> dict[str, Any]:
    """The values of a configuration that decide its results, as nested dicts; those that may change are left out."""
    hints = get_type_hints(type(config), include_extras=True)
    decided = {}
    for field in dataclasses.fields(config):
        if _MayChange in get_args(hints[field.name]):
            continue
        value = getattr(config, field.name)
        is_section = dataclasses.is_dataclass(value) and not isinstance(value, type)
        decided[field.name] = deciding_settings(value) if is_section else value
    return decided


def changed_fields(ours: "DataclassInstance", theirs: "DataclassInstance") -> list[str]:
    """Names (`loss.beta`) of the fields in which two configurations of one class decide otherwise."""
    other = dict(leaves(deciding_settings(theirs)))
    return [name for name, value in leaves(deciding_settings(ours)) if value != other[name]]


def leaves(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """(`loss.beta`, value) of all nested values."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value
