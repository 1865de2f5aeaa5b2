"""Configurations as YAML files, read strictly: every key must exist and every value must have its field's type.

Scalars follow YAML 1.2, so `1e-6` is a number and `no` a word; PyYAML alone follows YAML 1.1, where they are not.
Nothing in a file is evaluated.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import pydantic
import yaml

from rlt_jax.disk import cannot_write, replace_file
from rlt_jax.errors import UserError
from rlt_jax.paths import did_you_mean, expanded

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

RUN_CONFIG = "the config.yaml of a run folder"

_SCALARS = [  # YAML 1.2, core schema: (tag, pattern, first characters)
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
]

_EXPECTED = {  # pydantic's wording -> ours
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "an object": "a section (lines `key: value`, or {} for none)",
}


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 scalars; rejects aliases and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Reject aliases: a configuration that refers to itself would never end."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (`*name`): write out the value", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Reject duplicate keys: one of the values would be lost."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                mark = node.value[i][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that `_Loader` can read."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write out repeated values: an anchor such as `&id001` means nothing to a reader."""
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}  # drop those of YAML 1.1
    for _tag, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))


def config_yaml(config: "DataclassInstance") -> str:
    """Format a configuration (a dataclass of this package) as YAML, every field in the order of the schema."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def yaml_line(values: Mapping[str, Any]) -> str:
    """A mapping as YAML on one line: `{weight: 0.5}`."""
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=2**31
    ).strip()


def save_config(config: "DataclassInstance", path: str | Path) -> None:
    """Write a configuration with every field to a YAML file; loading it gives an equal configuration.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        replace_file(Path(path), config_yaml(config))
    except OSError as error:
        raise cannot_write(f"the configuration to {path}", error, otherwise="choose another folder") from None


def load_settings(path: str | Path, config_class: type[Config], *, example: str = RUN_CONFIG) -> Config:
    """Read a configuration of any class from a YAML file; missing fields get the class's defaults.

    Args:
      example: where to find an example file, for error messages.
    Raises:
      UserError: no such file, not YAML, an unknown or missing key, a value of the wrong type.
    """
    return build(config_class, read_yaml(path, example=example), source=str(path))


def read_yaml(path: str | Path, *, example: str = RUN_CONFIG) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Args:
      example: where to find an example file, for error messages.
    Raises:
      UserError: the file cannot be read, is not YAML, or does not hold a mapping.
    """
    try:
        text = Path(expanded(str(path), name="the configuration file")).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot read the configuration file {path} ({error.strerror}): {did_you_mean(path)}expected a YAML file, "
            f"such as {example}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected YAML text in UTF-8, found another byte at {error.start}") from None
    return yaml_mapping(text, source=str(path), example=example)


def yaml_mapping(text: str, *, source: str, example: str = RUN_CONFIG) -> dict[str, Any]:
    """Read the mapping in a YAML text.

    Args:
      source: where the text is from, for messages.
      example: where to find an example, for messages.
    Raises:
      UserError: it is not YAML, or does not hold a mapping.
    """
    try:
        values = yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError) as error:
        # control characters, extreme nesting or numbers, a value that does not match its explicit `!!tag`
        raise UserError(f"{source}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        came = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(f"{source}: expected lines `key: value`, found {came}; an example is {example}")
    return values


def yaml_values(text: str) -> list[Any]:
    """Read a list in YAML from one line, such as `[0, 0.04]` or `[[mean], [mean, max]]`.

    Raises:
      UserError: it is not YAML, or no list; the message is the reason alone.
    """
    try:
        values = yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, LookupError) as error:
        reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).splitlines()[0]
        raise UserError(f"not YAML: {reason}") from None
    if not isinstance(values, list):
        raise UserError(f"found a {type(values).__name__}")
    return values


def build(
    config_class: type[Config],
    values: Mapping[str, Any],
    *,
    source: str,
    base: Config | None = None,
    known: str = "--help lists all fields",
) -> Config:
    """Build a configuration from nested plain values, strictly typed.

    Args:
      source: where the values came from, for error messages.
      base: provides the missing fields. None: they get the class's defaults.
      known: where the fields are listed, for messages.
    Raises:
      UserError: all unknown keys, missing keys and values of the wrong type, one per line.
    """
    problems = list(_unknown_keys(config_class, values, known=known))
    defaults = class_defaults(config_class) if base is None else dataclasses.asdict(base)
    merged = merged_values(defaults, values)
    try:
        config = pydantic.TypeAdapter(config_class).validate_json(json.dumps(merged, default=_unsupported), strict=True)
    except pydantic.ValidationError as error:
        problems += map(_message, error.errors(include_url=False))
    if problems:
        raise UserError("\n".join(f"{source}: {problem}" for problem in problems))
    return config


def without_unknown(
    config_class: "type[DataclassInstance]", values: Mapping[str, Any], section: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """(`values` without the keys that the class does not have, the names of those keys).

    Such as those of a configuration that another version wrote.
    """
    known: dict[str, Any] = {}
    unknown = []
    fields = get_type_hints(config_class)
    for key, value in values.items():
        if key not in fields:
            unknown.append(f"{section}{key}")
        elif dataclasses.is_dataclass(fields[key]) and isinstance(value, dict):
            known[key], names = without_unknown(fields[key], value, f"{section}{key}.")
            unknown += names
        else:
            known[key] = value
    return known, unknown


def without_mistyped(
    config_class: "type[DataclassInstance]", values: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """(`values` without those that do not have their field's type, a message for each of them).

    Such as those of a field that had another type in another version. Keys must be known (`without_unknown`).
    """
    kept = merged_values({}, values)
    try:
        merged = json.dumps(merged_values(class_defaults(config_class), kept), default=_unsupported)
        pydantic.TypeAdapter(config_class).validate_json(merged, strict=True)
    except pydantic.ValidationError as error:
        problems = [
            _message(problem) for problem in error.errors(include_url=False) if _removed(kept, list(problem["loc"]))
        ]
        return kept, list(dict.fromkeys(problems))
    return kept, []


def _removed(values: dict[str, Any], path: list[Any]) -> bool:
    """Take the value at a path of keys, or the innermost part of it that is a field's, out of nested dicts."""
    first, *rest = path
    if first not in values:
        return False
    if rest and isinstance(values[first], dict):
        values[first] = dict(values[first])
        return _removed(values[first], rest)
    del values[first]
    return True


def type_problems(config: "DataclassInstance") -> list[str]:
    """A message for each value that does not have its field's type; dataclasses themselves do not check types."""
    text = json.dumps(dataclasses.asdict(config), default=_unsupported)
    try:
        pydantic.TypeAdapter(type(config)).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        return [_message(problem) for problem in error.errors(include_url=False)]
    return []


def class_defaults(config_class: "type[DataclassInstance]") -> dict[str, Any]:
    """Default values of a class; for a section those that this class gives it, not those of the section's class."""
    values = {}
    for field in dataclasses.fields(config_class):
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
    return {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for name, value in values.items()
    }


def merged_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, with those of `values` where both have one."""
    sections = {
        key: merged_values(base[key], value)
        for key, value in values.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **values, **sections}


def field_names(config_class: "type[DataclassInstance]", section: str = "") -> Iterator[str]:
    """Names of all fields with their section, such as `loss.beta`, in the order of the schema."""
    for name, kind in get_type_hints(config_class).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from field_names(kind, f"{section}{name}.")
        else:
            yield f"{section}{name}"


def _unknown_keys(
    config_class: "type[DataclassInstance]",
    values: Mapping[str, Any],
    section: str = "",
    whole: "type[DataclassInstance] | None" = None,
    *,
    known: str,
) -> Iterator[str]:
    """A message for each unknown key.

    Args:
      whole: the class that holds the section; None: `config_class` is no section.
    """
    fields = get_type_hints(config_class)  # a dataclass's fields, without their MayChange
    whole = config_class if whole is None else whole
    for key, value in values.items():
        kind = fields.get(key)
        if key not in fields:
            names = list(field_names(whole))
            if f"{section}{key}" in names:
                outer, _, inner = f"{section}{key}".rpartition(".")
                yield f"{section}{key}: expected a section here: write {outer.replace('.', ': {')}: {{{inner}: ...}}"
                continue
            near = _nearest_field(str(key), section, list(fields), names)
            yield f"{section}{key}: no such field: {f'did you mean {near}?' if near else known}"
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
            yield from _unknown_keys(kind, value, f"{section}{key}.", whole, known=known)


def _nearest_field(key: str, section: str, fields: Sequence[str], names: Sequence[str]) -> str | None:
    """The field that was probably meant: of this name in another section, else of a like one, here or elsewhere.

    Args:
      fields: of the section.
      names: of all fields, with their sections.
    """
    last = key.rpartition(".")[2]
    if elsewhere := [name for name in names if name.rpartition(".")[2] == last]:
        return " or ".join(elsewhere)
    if near := difflib.get_close_matches(key, fields, n=1):
        return f"{section}{near[0]}"
    by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)
    return by_last[near[0]] if near else None


def _message(error: Any) -> str:
    """The message for a pydantic error."""
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{where}: missing: give it a value"
    if error["type"] == "dataclass_type":
        return f"{where}: expected a section (indented lines `key: value`), came {error['input']!r}"
    expected = error["msg"].removeprefix("Input should be ")
    expected = _EXPECTED.get(expected, expected)
    return f"{where}={error['input']!r}: expected {expected}"


def _unsupported(value: object) -> list[str]:
    """Replace a value that JSON cannot hold (a Path, an array) by a list, which the field's type rejects."""
    return [repr(value)]
