"""Read the raw rows of a data set (hub name, folder or file), without checking them."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlt_jax.data.csv_rows import read_csv
from rlt_jax.data.file_rows import FORMS, Unreadable, form_of, holds_rows, read_json, read_parquet
from rlt_jax.data.folders import choose_files
from rlt_jax.errors import UserError
from rlt_jax.hub import check_dataset
from rlt_jax.paths import did_you_mean, expanded

__all__ = ["Source", "Unreadable", "open_source"]

_MOST_SHOWN = 3  # files in one line


@dataclass(frozen=True)
class Source:
    """Where rows come from."""

    name: str  # as given: hub name, folder or file
    files: tuple[str, ...]  # that are read, relative to the folder; none for a file, a saved folder or a hub name
    not_read: tuple[str, ...]  # the folder's other data
    detail: str  # subset and split, where the files do not tell: `subset main, split train`
    rows: Callable[[], Iterator[tuple[int, object]]]
    """Read all rows: (row number from 0, raw row), `Unreadable` for a row that cannot be parsed. In JSON Lines files
    the number counts lines, including blank ones, so number + 1 is the line in an editor. Parts are numbered on. Raises
    UserError if a file cannot be read."""

    def taken(self, count: int) -> str:
        """`units/train/part-0.jsonl (48 rows)`; several files: `units/a-0.jsonl, ... (2 files, 200,000 rows)`."""
        more = [f"{len(self.files)} files"] if len(self.files) > 1 else []
        facts = ", ".join([*more, *([self.detail] if self.detail else []), _rows(count)])
        return f"{self.place} ({facts})"

    @property
    def place(self) -> str:
        """The file, the first of several, or the name of what has no files."""
        if not self.files:
            return self.name
        return str(Path(self.name) / self.files[0]) + (", ..." if len(self.files) > 1 else "")

    def line(self, count: int) -> str:
        """`units: 48 rows of train/part-0.jsonl; not read: test/part-0.jsonl`."""
        what = f" of {_shown(self.files)}" if self.files else ""
        detail = f" ({self.detail})" if self.detail else ""
        rest = f"; not read: {_shown(self.not_read)}" if self.not_read else ""
        return f"{self.name}: {_rows(count)}{what}{detail}{rest}"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _shown(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_SHOWN
    return ", ".join(names[:_MOST_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def open_source(source: str, split: str, subset: str | None = None, *, flag: str = "--data.subset") -> Source:
    """Find a data set's rows; of the hub's, download them. Local files are not opened yet.

    Args:
      split, subset: which of its rows (see `folders` for what these are in a folder).
      flag: what names the subset, for messages.
    Raises:
      UserError: `source` is not there, has no such split or subset, or it is not clear which files are meant.
    """
    path = Path(expanded(source))
    if not source.strip():  # Path("") would be the current folder
        raise UserError("expected a data set, but its name is empty: give a hub name, a folder, or a file")
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"expected rows at {source!r}, but: {error}: check the path") from None
    if is_folder:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            _no_subset(subset, f"the saved data set {source}", flag)
            return Source(source, (), (), f"split {split}", partial(_read_saved, path, split))
        chosen = choose_files(path, split, subset, flag=flag)
        files, others = (
            tuple(file.relative_to(path).as_posix() for file in some) for some in (chosen.files, chosen.not_read)
        )
        detail = "" if chosen.subset is None else f"subset {chosen.subset}"
        return Source(source, files, others, detail, partial(_read_files, chosen.files))
    if is_file:
        _no_subset(subset, f"the single file {source}", flag)
        if split != "train":
            raise UserError(f"expected split 'train' of the single file {source}, but came {split!r}: leave it out")
        return Source(source, (), (), "", partial(_read_files, [path]))
    if holds_rows(path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        hint = did_you_mean(source)
        raise UserError(f"expected rows at {source!r}, but there is no such file or folder: {hint}check the path")
    return _on_hub(source, split, subset, flag)


def _no_subset(subset: str | None, what: str, flag: str) -> None:
    if subset is not None:
        raise UserError(f"expected no subset of {what}, but came {subset!r}: leave out {flag}")


def _on_hub(name: str, split: str, subset: str | None, flag: str) -> Source:
    check_dataset(name)
    import datasets  # here: the import takes seconds

    try:
        rows: Any = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and "script" in reason:
            raise UserError(
                f"expected a data set of files, but {name!r} is a script, and code that comes with data is never run: "
                "download its files, or convert them to .jsonl or .parquet, and give their folder"
            ) from None
        if "available configs" in reason or "BuilderConfig" in reason:
            came = "none is chosen" if subset is None else f"{subset!r} is chosen"
            raise UserError(
                f"expected one of the subsets of {name!r}, but {came}: {reason}: choose with {flag} NAME"
            ) from None
        raise UserError(
            f"expected {name!r} to be a local file or folder, or a data set of the hub with the split {split!r}, but: "
            f"{reason}: check name, split and network, or download it and give the folder"
        ) from None
    subset = subset or rows.config_name  # the default one
    detail = f"split {split}" if subset in (None, "default") else f"subset {subset}, split {split}"
    return Source(name, (), (), detail, partial(enumerate, rows))


def _read_saved(folder: Path, split: str) -> Iterator[tuple[int, object]]:
    import datasets

    try:
        rows: Any = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"expected a saved data set in {folder}, but: {error}: save it again") from None
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(f"expected split {split!r} in {folder}, but it has {', '.join(rows)}: choose one of these")
        rows = rows[split]
    elif split != "train":
        raise UserError(f"expected split 'train' of {folder}, which has no splits, but came {split!r}: leave it out")
    yield from enumerate(rows)


def _read_saved_split(folder: Path) -> Iterator[tuple[int, object]]:
    yield from _read_saved(folder, "train")


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_csv,
}


def _read_files(files: Sequence[Path]) -> Iterator[tuple[int, object]]:
    offset = 0
    for file in files:
        form = form_of(file)
        if form is None and not file.is_dir():
            raise UserError(f"expected a file that ends in {', '.join(FORMS)}, came {file}: convert it")
        number = -1
        rows = _read_saved_split(file) if form is None or file.is_dir() else _READERS[form](file)
        try:
            for number, raw in rows:
                yield offset + number, raw
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"expected to read rows from {file}, but: {error}: check the file") from None
        offset += number + 1
