"""manifest.json of a folder of arrays: what belongs in it, with a checksum of everything, itself too.

It is written last. A folder without it, or of which anything differs from it, is damaged.
"""

import errno
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_type_hints

from rlt_jax.checkpoints.checksums import checksum, file_sums
from rlt_jax.disk import to_disk
from rlt_jax.errors import UserError

MANIFEST_FILE = "manifest.json"
FORMAT = 1  # of the folder; raised when an older reader would misread it
_LARGEST = 64 << 20  # bytes of a manifest: a run's has about 0.1 MB
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EAGAIN}  # the data may be whole all the same


class Damaged(Exception):
    """What is stored is not what was written. The message says what differs."""


@dataclass(frozen=True)
class StoredArray:
    """One array."""

    name: str  # in the tree, such as [0].params['w']
    part: int  # the folder of arrays it is in
    dtype: str
    shape: tuple[int, ...]
    checksum: str  # of its bytes in C order

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class StoredFile:
    """One file."""

    path: str  # relative to the folder, with /
    size: int  # bytes
    checksum: str


Entry = TypeVar("Entry", StoredArray, StoredFile)


@dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    arrays: tuple[StoredArray, ...]
    files: tuple[StoredFile, ...]
    facts: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.size for file in self.files)


def write_manifest(folder: Path, arrays: Iterable[StoredArray], facts: Mapping[str, Any]) -> Manifest:
    """Describe all files of `folder` in its manifest; on return all of it is on the disk.

    Raises:
      OSError: something cannot be read or written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = file_sums(paths, sync=True)
    files = tuple(StoredFile(path.relative_to(folder).as_posix(), *found) for path, found in zip(paths, sums))
    manifest = Manifest(tuple(arrays), files, dict(facts))
    record = {"format": FORMAT, **asdict(manifest)}
    with (folder / MANIFEST_FILE).open("x", encoding="utf-8") as file:
        json.dump({**record, "checksum": _record_checksum(record)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for inside in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        to_disk(inside)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; the files it lists are not looked at.

    Raises:
      Damaged: it is missing or not as it was written.
      UserError: it is of a newer version, or cannot be opened at all.
    """
    record = _read_record(folder)
    written = record.pop("checksum", None)
    if not (isinstance(record.get("format"), int) and isinstance(written, str)):
        raise Damaged(f"{MANIFEST_FILE} is none of rlt_jax")
    if written != _record_checksum(record):
        raise Damaged(f"{MANIFEST_FILE} does not match its checksum")
    if record["format"] > FORMAT:
        raise UserError(
            f"{folder}: expected format {FORMAT} or older, but it was written by a newer version of rlt_jax (format "
            f"{record['format']}): update rlt_jax, or choose another folder"
        )
    try:
        arrays = tuple(_parsed(StoredArray, entry) for entry in record["arrays"])
        files = tuple(_parsed(StoredFile, entry) for entry in record["files"])
        return Manifest(arrays, files, {**record["facts"]})
    except (KeyError, TypeError) as error:
        raise Damaged(f"{MANIFEST_FILE} lacks what belongs in it ({error})") from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare size and checksum of every file with the manifest; files that it does not list are ignored.

    Raises:
      Damaged: a file is missing, differs, or lies outside the folder.
      UserError: the folder cannot be read now (see `unreadable`).
    """
    inside = folder.resolve()
    for file in manifest.files:
        _check_place(inside, file)
    try:
        found = file_sums(inside / file.path for file in manifest.files)
    except OSError as error:
        raise unreadable(folder, error) from error
    for file, (_, found_checksum) in zip(manifest.files, found):
        if found_checksum != file.checksum:
            raise Damaged(f"{file.path} does not match its checksum")


def unreadable(folder: Path, error: OSError) -> Exception:
    """What to raise: Damaged, or a UserError where permissions or the state of the system are the reason."""
    name = "" if error.filename is None else f"{os.path.relpath(error.filename, folder)}: "
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError | TimeoutError | InterruptedError) or error.errno in _PASSING:
        return UserError(f"{folder}: expected a checkpoint that can be read, but {name}{reason}: fix that, and repeat")
    return Damaged(f"{name}{reason}")


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise Damaged("it is a file, not a folder")
        if path.resolve().parent != folder.resolve():
            raise Damaged(f"{MANIFEST_FILE} is a link to another place")
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            raise Damaged(f"{MANIFEST_FILE} is no file, or a far too large one")
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST_FILE} is missing") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, or text nested without end
        raise (unreadable(folder, error) if isinstance(error, OSError) else Damaged(str(error))) from error
    except ValueError as error:
        raise Damaged(f"{MANIFEST_FILE} is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise Damaged(f"{MANIFEST_FILE} is no object")
    return record


def _parsed(kind: type[Entry], entry: Mapping[str, Any]) -> Entry:
    """An entry of a manifest.

    Raises:
      KeyError, TypeError: it has other fields, or values of other types.
    """
    for name, hint in get_type_hints(kind).items():
        values, expected = (entry[name], int) if name == "shape" else ([entry[name]], hint)
        if not (isinstance(values, list) and all(type(value) is expected for value in values)):
            raise TypeError(f"{name}: {entry[name]!r}")
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    return kind(**fields)


def _check_place(inside: Path, file: StoredFile) -> None:
    """Refuse a path that is no plain relative one inside the folder, and a file that is missing or of another size."""
    parts = PurePosixPath(file.path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in file.path:
        raise Damaged(f"{MANIFEST_FILE} names {file.path!r}, which is not inside the folder")
    path = inside / file.path
    try:
        if not path.resolve(strict=True).is_relative_to(inside):
            raise Damaged(f"{file.path} is a link that leads out of the folder")
        size = path.stat().st_size
    except FileNotFoundError:
        raise Damaged(f"{file.path} is missing") from None
    except RuntimeError:
        raise Damaged(f"{file.path} is a link in a circle") from None
    except OSError as error:
        raise unreadable(inside, error) from error
    if not path.is_file():
        raise Damaged(f"{file.path} is no regular file")
    if size != file.size:
        raise Damaged(f"{file.path} has {size} bytes instead of {file.size}")


def _record_checksum(record: Mapping[str, Any]) -> str:
    return checksum(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())
