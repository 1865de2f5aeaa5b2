"""Write the tables of docs/configuration.md from the schema and the presets.

python scripts/make_config_docs.py            rewrite the tables in place
python scripts/make_config_docs.py --check    change nothing, exit with 1 if they are out of date
"""

import argparse
import ast
import dataclasses
import inspect
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlt_jax.configs import PRESETS, TrainConfig, loss, numbers, presets, reward, schema, train

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
PACKAGE_PARENT = str(Path(presets.__file__).resolve().parents[2]) + "/"
NAMES = {int: "whole number", float: "number", str: "text", bool: "on or off"}


def field_docs() -> dict[str, dict[str, str]]:
    """Class name -> field name -> the docstring below the field in the schema."""
    docs: dict[str, dict[str, str]] = {}
    for node in [
        node for module in (schema, loss, reward, numbers, train) for node in ast.parse(inspect.getsource(module)).body
    ]:
        if isinstance(node, ast.ClassDef):
            docs[node.name] = {
                field.target.id: str(text.value.value)
                for field, text in zip(node.body, node.body[1:])
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            }
    return docs


def flag(path: str) -> str:
    """A field's path as its command-line flag: loss.beta -> --loss.beta."""
    return "--" + path.replace("_", "-")


def type_name(kind: Any) -> str:
    """The values that a flag takes, in words."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of: {type_name(get_args(kind)[0])}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in get_args(kind))
    if get_origin(kind) is dict:
        return "YAML file"
    return "`None`" if kind is type(None) else NAMES[kind]


def value_name(value: Any) -> str:
    """A value as users type it; paths inside the package are relative to its parent folder."""
    if isinstance(value, tuple):
        return " ".join(value_name(item) for item in value)
    if isinstance(value, dict):
        return "none" if not value else str(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).removeprefix(PACKAGE_PARENT)


def row(*cells: str) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def flat(config: TrainConfig) -> dict[str, Any]:
    """Field path -> value, sections flattened."""
    values: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        is_section = isinstance(value, dict)
        values |= {f"{name}.{field}": part for field, part in value.items()} if is_section else {name: value}
    return values


def preset_table() -> str:
    """A table of the fields whose values differ between presets."""
    columns = {name: flat(config) for name, config in PRESETS.items()}
    lines = [row("", *(f"`{name}`" for name in columns)), row(*["---"] * (1 + len(columns)))]
    for path in flat(PRESETS["tiny"]):
        cells = [value_name(column[path]) for column in columns.values()]
        if path != "preset" and len(set(cells)) > 1:
            lines.append(row(f"`{path}`", *cells))
    return "\n".join(lines)


def field_tables() -> str:
    """One table per section: flag, what it takes, its value in two presets, its meaning."""
    docs = field_docs()
    tiny, mono85 = flat(PRESETS["tiny"]), flat(PRESETS["mono85"])
    parts: list[str] = []

    def add_section(title: str, config_class: type, prefix: str) -> None:
        parts.extend([f"### {title}", "", row("Flag", "Takes", "`tiny`", "`mono85`", "Meaning"), row(*["---"] * 5)])
        for name, kind in get_type_hints(config_class).items():
            if not dataclasses.is_dataclass(kind):
                path = prefix + name
                parts.append(
                    row(
                        f"`{flag(path)}`",
                        type_name(kind),
                        value_name(tiny[path]),
                        value_name(mono85[path]),
                        docs[config_class.__name__][name],
                    )
                )
        parts.append("")

    add_section("The run", TrainConfig, "")
    for name, kind in get_type_hints(TrainConfig).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            add_section(f"`{name}`", kind, f"{name}.")
    return "\n".join(parts).rstrip()


def render(document: str) -> str:
    """The document with the parts between marker comments generated again."""
    for name, text in (("presets", preset_table()), ("fields", field_tables())):
        start, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        if document.count(start) != 1 or document.count(end) != 1:
            raise ValueError(f"{DOCUMENT.name} needs each of the markers `{start}` and `{end}` once")
        before, rest = document.split(start)
        document = f"{before}{start}\n\n{text}\n\n{end}{rest.split(end)[1]}"
    return document


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if out of date")
    check = parser.parse_args().check
    old = DOCUMENT.read_text(encoding="utf-8")
    new = render(old)
    if check and new != old:
        sys.exit("docs/configuration.md is out of date: run `python scripts/make_config_docs.py`")
    if not check:
        DOCUMENT.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
