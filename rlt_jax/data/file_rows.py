"""The rows of one file of JSON Lines, JSON or parquet, without checking them; `csv_rows` reads tables of text."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from rlt_jax.errors import UserError
from rlt_jax.types import WrittenFloat

FORMS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")  # gzip is read, the others are refused


@dataclass(frozen=True)
class Unreadable:
    """Stands for a row that could not be parsed."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def form_of(file: Path) -> str | None:
    """The suffix that says how to read a file, such as `.jsonl` of rows.jsonl, ROWS.JSONL and rows.jsonl.gz.

    Returns None for a file of no such form, and for a packed file that is not read.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if suffixes[-1:] == [".gz"] and suffixes[0] != ".parquet":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMS else None


def holds_rows(file: Path) -> bool:
    """Whether a file holds rows by its name: one of the FORMS, packed or not."""
    name = file.with_suffix("") if file.suffix.lower() in _PACKED else file
    return name.suffix.lower() in FORMS


def stem_of(file: Path) -> str:
    """The name without the suffixes of its form and packing: `train` of train.jsonl.gz."""
    name = file.with_suffix("") if file.suffix.lower() in _PACKED else file
    return name.stem


def open_bytes(file: Path) -> BinaryIO:
    """The file's bytes; those of a gzip file unpacked."""
    return cast(BinaryIO, gzip.open(file)) if file.suffix.lower() == ".gz" else file.open("rb")


def read_parquet(file: Path) -> Iterator[tuple[int, object]]:
    """Yield (row number from 0, row).

    Raises:
      UserError: it is no parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
            for raw in batch.to_pylist():
                yield number, raw
                number += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"expected a parquet file, but {file} is not one: {error}: write it again") from None


def read_json(file: Path) -> Iterator[tuple[int, object]]:
    """Yield (row number from 0, row) of JSON Lines, where blank lines count, or of a single JSON list.

    Raises:
      UserError: a JSON list that cannot be parsed.
    """
    with open_bytes(file) as lines:
        if form_of(file) == ".json" and lines.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            lines.seek(0)
            rows = _parse(lines.read())
            if not isinstance(rows, list):
                raise UserError(f"expected a JSON list of rows in {file}, but: {rows}: fix the file")
            yield from enumerate(rows)
            return
        lines.seek(0)
        for number, line in enumerate(lines):
            if line.strip():
                yield number, _parse(line)


def _parse(text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8-sig"), parse_float=WrittenFloat, parse_constant=lambda name: None)
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        return Unreadable(f"not JSON ({error.msg}, column {error.colno})")
    except RecursionError:
        return Unreadable("not JSON (nested too deeply)")
    except ValueError:  # Python reads integers of up to 4300 digits
        return Unreadable("not JSON (a number has too many digits)")
