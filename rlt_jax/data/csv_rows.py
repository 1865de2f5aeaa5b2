"""The rows of a table of text, as spreadsheets and pandas write it (CSV, RFC 4180; TSV).

Every cell stays the text that stands there, so that 0.00002 and 007 keep their digits. The delimiter is the comma,
semicolon or tab that cuts the header line into most names. An empty cell is a missing one.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from rlt_jax.data.file_rows import Unreadable, form_of, open_bytes
from rlt_jax.errors import UserError

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_LARGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131072


def read_csv(file: Path) -> Iterator[tuple[int, dict[str, str | None] | Unreadable]]:
    """Yield (row number from 0, column -> text or None) for every row below the header; blank lines do not count.

    A row with fewer cells than the header lacks the last columns; one with more is `Unreadable`.

    Raises:
      UserError: no header, names that are empty or occur twice, bytes that are not UTF-8, or quotes that do not close:
        what follows them could only be guessed.
    """
    csv.field_size_limit(_LARGEST_CELL)
    number = -1
    try:
        with io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig", newline="") as lines:
            first = next((line for line in lines if line.strip("\r\n")), "")
            delimiter = _delimiter(first, file)
            spaced = f"{delimiter} " in first  # `a, "b"`: else quotes after a space would be part of the text
            reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True, skipinitialspace=spaced)
            columns = _columns(next(reader, []), file)
            for number, cells in enumerate(filter(None, reader)):
                yield number, _row(cells, columns)
    except UnicodeDecodeError:
        raise UserError(
            f"expected text in UTF-8, but {file} has other bytes {_near(number)}: save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise UserError(
            f"expected a table in {file}, but its quotes do not close {_near(number)}: {error}: put a cell with a "
            'quote in quotes and double those inside ("a ""word"""), or give the rows as .jsonl'
        ) from None


def _near(number: int) -> str:
    return "in or after the header" if number < 0 else f"after row {number}"


def _delimiter(header: str, file: Path) -> str:
    """What cuts the header line into most cells."""
    counts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in _DELIMITERS}
    most = max(counts.values())
    marks = [mark for mark, count in counts.items() if count == most]
    if most <= 1:
        return "\t" if form_of(file) == ".tsv" else ","
    if len(marks) > 1:
        raise UserError(
            f"expected one delimiter in the header of {file}, but {' and '.join(_DELIMITERS[mark] for mark in marks)} "
            "cut it into equally many names: put the names in quotes"
        )
    return marks[0]


def _columns(header: list[str], file: Path) -> list[str]:
    names = [name.strip() for name in header]
    if not names:
        raise UserError(f"expected a header line with the names of the columns in {file}, but it is empty: add one")
    if any("\0" in name for name in names):
        raise UserError(f"expected text in UTF-8, but {file} has NUL bytes: save it as UTF-8")
    if "" in names:
        raise UserError(
            f"expected a name for each column of {file}, but column {names.index('') + 1} of {len(names)} has none: "
            "name it, or leave it out (pandas: to_csv(..., index=False))"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"expected different columns in {file}, but {', '.join(twice)} is there twice: rename one")
    return names


def _row(cells: list[str], columns: list[str]) -> dict[str, str | None] | Unreadable:
    if len(cells) > len(columns):
        return Unreadable(f"more cells than columns ({len(cells)}, header {len(columns)})")
    for name, cell in zip(columns, cells):
        if "\0" in cell:
            return Unreadable(f"NUL bytes (column {name})")
        if cell.startswith(" ") and cell.lstrip().startswith('"') and cell.rstrip().endswith('"'):
            return Unreadable(f"a space before the quotes of a cell (column {name})")
    missing = [None] * (len(columns) - len(cells))
    return dict(zip(columns, [*(cell or None for cell in cells), *missing]))
