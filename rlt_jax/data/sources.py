"""Read the raw rows of a data set (hub name, folder or file), without checking them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlt_jax.errors import UserError

_SUFFIXES = (".jsonl", ".json", ".parquet")
_KNOWN_SPLITS = frozenset({"train", "test", "validation", "valid", "val", "dev", "eval"})


@dataclass(frozen=True)
class Unreadable:
    """Stands for a row that could not be parsed."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class WrittenFloat(float):
    """A number of a JSON file with its digits as they were written: a float alone keeps 17 of them."""

    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __reduce__(self) -> tuple[type["WrittenFloat"], tuple[str]]:
        return type(self), (self.text,)


def read_source(source: str, split: str) -> Iterator[tuple[int, object]]:
    """Yield (row number from 0, raw row) for every row; `Unreadable` for a line that is not JSON.

    In JSON Lines files the number counts lines, including blank ones, so number + 1 is the line in an editor. Files of
    a folder are read in the order of their names and numbered consecutively.

    Raises:
      UserError: `source` cannot be read, or has no such split.
    """
    path = Path(source).expanduser()
    if not source.strip():  # Path("") would be the current folder
        raise UserError("expected a data set, but its name is empty: give a hub name, a folder, or a file")
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            yield from _read_saved(path, split)
        else:
            yield from _read_files(_files_of_split(path, split))
    elif path.is_file():
        if split != "train":
            raise UserError(f"expected split 'train' of the single file {source}, but came {split!r}: leave it out")
        yield from _read_files([path])
    elif path.suffix in _SUFFIXES or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"expected rows at {source!r}, but there is no such file or folder: check the path")
    else:
        yield from _read_hub(source, split)


def _read_hub(name: str, split: str) -> Iterator[tuple[int, object]]:
    import datasets  # here: the import takes seconds

    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"expected {name!r} to be a local file or folder, or a data set of the hub with the split {split!r}, but: "
            f"{error}: check name, split and network, or download it and give the folder"
        ) from None
    yield from enumerate(rows)


def _read_saved(folder: Path, split: str) -> Iterator[tuple[int, object]]:
    import datasets

    try:
        rows = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"expected a saved data set in {folder}, but: {error}: save it again") from None
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(f"expected split {split!r} in {folder}, but it has {', '.join(rows)}: choose one of these")
        rows = rows[split]
    elif split != "train":
        raise UserError(f"expected split 'train' of {folder}, which has no splits, but came {split!r}: leave it out")
    yield from enumerate(rows)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """The folder's files with the split in their name; for "train" all files if none has a split in its name."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"expected {', '.join(_SUFFIXES)} files in {folder}, but there are none: check the folder")
    words = {file: set(re.split(r"[^a-z0-9]+", file.stem.lower())) for file in files}
    chosen = [file for file in files if split.lower() in words[file]]
    if not chosen and split == "train" and not any(_KNOWN_SPLITS & words[file] for file in files):
        chosen = files
    if not chosen:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
        raise UserError(
            f"expected a file of split {split!r} in {folder}, but it holds {names}: rename one, or choose another split"
        )
    return chosen


def _read_files(files: list[Path]) -> Iterator[tuple[int, object]]:
    offset = 0
    for file in files:
        if file.suffix not in _SUFFIXES:
            raise UserError(f"expected a file that ends in {', '.join(_SUFFIXES)}, came {file}: convert it")
        number = -1
        rows = _read_parquet(file) if file.suffix == ".parquet" else _read_json(file)
        try:
            for number, raw in rows:
                yield offset + number, raw
        except OSError as error:
            raise UserError(f"expected to read rows from {file}, but: {error}: check the file") from None
        offset += number + 1


def _read_parquet(file: Path) -> Iterator[tuple[int, object]]:
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


def _read_json(file: Path) -> Iterator[tuple[int, object]]:
    """Rows of JSON Lines, or of a single JSON list."""
    with file.open("rb") as lines:
        if file.suffix == ".json" and lines.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
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
        return json.loads(text.decode("utf-8-sig"), parse_float=WrittenFloat)
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        return Unreadable(f"not JSON ({error.msg}, column {error.colno})")
    except RecursionError:
        return Unreadable("not JSON (nested too deeply)")
    except ValueError:  # Python reads integers of up to 4300 digits
        return Unreadable("not JSON (a number has too many digits)")
