"""Writes that happen whole or not at all, and a failed one in words: disks fill up, folders vanish, processes die."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from rlt_jax.errors import DISK_ERRORS, UserError

_ADVICE = {  # what to do about a disk that does not take a write, by the kind of failure
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have your quota raised",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`), or use a file system that holds such files",
    errno.EROFS: "make the file system writable again",
    errno.EIO: "the disk reports errors: save what is on it, and replace it",
    errno.ESTALE: "the file server lost the folder: mount it again",
    errno.ENODEV: "the disk is gone: mount it again",
}

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(writing|replaced)-(?P<pid>[0-9]+)")  # hidden, beside what it becomes


def cannot_write(what: object, error: OSError, *, otherwise: str, resumes: bool = True) -> UserError:
    """The message for a file or folder that cannot be written.

    Args:
      what: the file or folder, with the user's name for it.
      otherwise: advice for failures that are not the disk's, such as a path that cannot be.
      resumes: whether repeating the command resumes its work.
    """
    advice = otherwise
    if error.errno in DISK_ERRORS:
        advice = f"{_ADVICE[error.errno]} and repeat the command{', which resumes' if resumes else ''}"
    return UserError(f"cannot write {what} ({error.strerror}): {advice}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces `path` once the block has succeeded and it is on disk, else is removed.

    Raises:
      OSError: it cannot be written; it holds the path.
    """
    temporary = writing_name(path)
    try:
        with _named(path):
            yield temporary
            to_disk(temporary)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace a file by a new one with this content: whatever happens, one of both is there, and whole.

    Raises:
      OSError: as in `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def writing_name(path: Path) -> Path:
    """The name beside `path` under which this process writes what becomes it."""
    return path.with_name(f".{path.name}.writing-{os.getpid()}")


def to_disk(path: Path) -> None:
    """Return once a file or folder is on disk, so that a power cut does not take it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LineFile:
    """A file to which whole lines are appended: a write that fails leaves no part of its lines behind.

    Nothing is buffered here, so every line is the system's as soon as it is written.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises OSError."""
        self.path = path
        self._descriptor: int | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def append(self, lines: bytes, *, synced: bool = False) -> None:
        """Append lines; if the last one there is torn, they do not continue it.

        Args:
          synced: return once they are on disk.
        Raises:
          OSError: they cannot be written; it holds the path.
          ValueError: the file is closed.
        """
        if self._descriptor is None:
            raise ValueError(f"{self.path}: write to closed file")
        rest = memoryview(b"\n" + lines if self._torn else lines)
        size = os.fstat(self._descriptor).st_size
        with _named(self.path):
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                if synced:
                    os.fsync(self._descriptor)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, size)
                raise
        self._torn = False

    def sync(self) -> None:
        """Return once all lines are on disk. Raises OSError."""
        if self._descriptor is not None:
            with _named(self.path):
                os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):  # every line was written before
                os.close(descriptor)

    def __enter__(self) -> "LineFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the path into an OSError that has none, or that of a temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def process_lives(pid: int, *, started: float | None = None) -> bool:
    """Whether a process of this machine runs.

    Args:
      started: when it started, seconds since 1970: another process that got its number later is not it. None: unknown.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(process.create_time() - started) < 2
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def leftovers(folder: Path, name: str | None = None) -> Iterator[Path]:
    """What dead processes were writing in a folder, and had set aside (see `writing_name`).

    Ask only while nobody else writes there: on another machine, a process with the same number may live.

    Args:
      name: of the file that it would have become. None: any.
    """
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            match = _LEFTOVER.fullmatch(path.name)
            if match and name in (None, match["name"]) and not process_lives(int(match["pid"])):
                yield path
