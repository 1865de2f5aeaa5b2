"""JSON Lines, files with one JSON object per line: read strictly, written atomically."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlt_jax.errors import UserError
from rlt_jax.report.json_text import json_line, parsed_json
from rlt_jax.report.whole_file import whole_file


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read all objects of a file, in order.

    Raises:
      UserError: the file cannot be read, or a line of it is not a JSON object.
    """
    records, number = [], 0
    try:
        with path.open(encoding="utf-8") as lines:  # not splitlines: texts may hold other line separators
            for number, line in enumerate(lines, start=1):
                record = parsed_json(line)
                if not isinstance(record, dict):
                    raise UserError(_not_json_lines(path, f"line {number} is not an object"))
                records.append(record)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): expected JSON Lines") from None
    except json.JSONDecodeError as error:
        raise UserError(_not_json_lines(path, f"line {number} is not JSON ({error.msg})")) from None
    except UnicodeDecodeError:
        raise UserError(_not_json_lines(path, "it is not UTF-8 text")) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, lists nested without end
        raise UserError(_not_json_lines(path, f"line {number} is not JSON that can be read")) from None
    return records


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]], *, name: str = "the file") -> None:
    """Write one line per object, atomically.

    Args:
      name: the user's name for the file, such as `--out`, for error messages.
    Raises:
      UserError: the file cannot be written.
    """
    with whole_file(path, name) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(map(json_line, records))


def _not_json_lines(path: Path, reason: str) -> str:
    return f"{path}: expected JSON Lines, but {reason}: delete the file and repeat the command that wrote it"
