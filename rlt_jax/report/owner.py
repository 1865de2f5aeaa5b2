"""One owner at a time: a lock on what a command writes, held for as long as it runs.

The kernel frees the lock when the process ends, however it ends, so a lock file that a killed process leaves behind
locks nothing.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rlt_jax.disk import cannot_write, leftovers
from rlt_jax.errors import UserError
from rlt_jax.report.owner_file import owner_file

FOLDER_LOCK = ".lock"  # in the folder that it locks

_FREED_MEANWHILE = 10  # times to try again, if another owner removes its file or folder between our steps
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

log = logging.getLogger("rlt_jax")


@contextmanager
def sole_owner(lock: Path, name: str, *, advice: str) -> Iterator[None]:
    """Hold a lock for as long as the block runs. On exit the lock file goes, and so do folders made for it, if empty.

    Where the file system has no locks, a file with signs of life takes their place (`owner_file.py`).

    Args:
      lock: the lock file; missing folders are created.
      name: what is locked in the user's words, such as `--output-dir runs/mine`.
      advice: what to do if it is in use.
    Raises:
      UserError: another process (or another block of this one) holds the lock.
      OSError: the lock file cannot be created.
    """
    new_folders = [folder for folder in lock.parents if not folder.exists()]  # innermost first
    with ExitStack() as stack:
        stack.callback(remove_empty, new_folders)
        file = _open_locked(lock, name, advice)
        if file is None:
            stack.enter_context(owner_file(lock, name, advice=advice))
        else:
            stack.callback(_free, lock, file)
        yield


def _free(lock: Path, file: int) -> None:
    with suppress(OSError):  # removed already, or the file system is gone
        if os.path.samestat(os.fstat(file), os.stat(lock)):  # else its folder was moved away, and this is another's
            lock.unlink()
    os.close(file)  # after that: nobody can lock the removed file and take it for the lock


@contextmanager
def sole_writer(path: Path, flag: str) -> Iterator[None]:
    """Be the only one to write a file for as long as the block runs; its lock is the hidden file .NAME.lock beside it.

    Args:
      flag: that names the file, such as `--out`.
    Raises:
      UserError: another command writes it, or the place cannot be written.
    """
    lock, name = path.with_name(f".{path.name}.lock"), f"{flag} {path}"
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_owner(lock, name, advice="wait, stop it, or choose another file"))
        except OSError as error:
            raise cannot_write(name, error, otherwise="choose another file", resumes=False) from error
        _remove_left(path.parent, path.name)
        yield


@contextmanager
def sole_user(folder: Path, flag: str) -> Iterator[None]:
    """Be the only one to write to a folder for as long as the block runs; a new folder goes if it is left empty.

    Args:
      flag: that names the folder, such as `--output-dir`.
    Raises:
      UserError: another command uses it, or it cannot be created or written.
    """
    name = f"{flag} {folder}"
    with ExitStack() as stack:
        try:
            stack.enter_context(
                sole_owner(folder / FOLDER_LOCK, name, advice="wait, stop it, or choose another folder")
            )
        except OSError as error:
            raise UserError(f"{name} cannot be used ({error.strerror}): choose another folder") from error
        _remove_left(folder, None)
        yield


def _remove_left(folder: Path, name: str | None) -> None:
    """Remove the unfinished files of dead processes."""
    for left in list(leftovers(folder, name)):
        with suppress(OSError):
            if left.is_file():
                left.unlink()
                log.info("%s: removed, a killed process left it", left)


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders (innermost first) that are empty."""
    with suppress(OSError):  # not empty, or gone
        for folder in folders:
            folder.rmdir()


def _open_locked(lock: Path, name: str, advice: str) -> int | None:
    """Create, open and lock the file; returns its descriptor, whose closing frees the lock; None: no locks here."""
    for attempt in range(_FREED_MEANWHILE):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file, created = _opened(lock)
        except FileNotFoundError:  # it, or its folder, was removed by an owner that has just ended
            if attempt == _FREED_MEANWHILE - 1:
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 200, 0).decode("utf-8", "replace")
            os.close(file)
            if error.errno in _BUSY:
                raise UserError(f"{name} is in use by another run ({holder or 'just started'}): {advice}") from None
            if error.errno not in _NO_LOCKS:
                raise
            if created:  # else it is another's, who may be about to write into it
                with suppress(OSError):
                    lock.unlink()
            log.info("%s: the file system has no locks (%s), so a file says whose it is", name, error.strerror)
            return None
        with suppress(OSError):
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                os.ftruncate(file, 0)
                os.pwrite(file, _this_process().encode(), 0)
                return file
        os.close(file)  # the file that we locked has been removed
    raise UserError(f"{name} is in use by other runs, which start and end all the time: {advice}")


def _opened(lock: Path) -> tuple[int, bool]:
    """The descriptor of the lock file, and whether this call created it."""
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
    except FileExistsError:
        return os.open(lock, os.O_RDWR), False


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M')}"
