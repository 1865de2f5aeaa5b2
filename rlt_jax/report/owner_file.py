"""One owner where the file system has no locks, as on some network file systems: a file that says whose the place is.

The file is made whole or not at all, by one of those who try (a hard link fails if its name is taken). It names machine
and process, and is touched every half minute. On the owner's machine it counts for as long as the process runs, on
another one for as long as it is touched.

Only one may remove it: who makes a second file, the right to remove this very record, in the same way. Between the look
at a dead owner's record and its removal, nobody can take the place over, so nobody removes a living owner's. The right
of one who dies meanwhile is removed like any dead owner's file.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from rlt_jax.disk import process_lives
from rlt_jax.errors import UserError

BEAT_SECONDS = 30.0  # between two touches
DEAD_SECONDS = 180.0  # without a touch, after which an owner on another machine counts as dead
ATTEMPTS = 10  # if others take and leave the place between our steps

log = logging.getLogger("rlt_jax")

Record = Mapping[str, Any]


@contextmanager
def owner_file(file: Path, name: str, *, advice: str) -> Iterator[None]:
    """Own a place for as long as the block runs.

    Args:
      file: that says so; its folder exists.
      name, advice: as in `sole_owner`.
    Raises:
      UserError: another owner lives, or may live.
      OSError: the file cannot be made.
    """
    ours = this_owner()
    _take(file, ours, name, advice)
    stop = threading.Event()
    beat = threading.Thread(target=_touch, args=(file, ours, name, stop), name="owner-file", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        with suppress(OSError):
            _leave(file, ours)


def this_owner() -> dict[str, Any]:
    """What the file says of this process."""
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": process.pid,
        "started": process.create_time(),
        "since": time.strftime("%Y-%m-%d %H:%M"),
        "token": uuid.uuid4().hex,
    }


def _boot() -> str:
    """Which start of which machine this is; machines may share a name."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return str(round(psutil.boot_time()))


def _take(file: Path, ours: Record, name: str, advice: str) -> None:
    made = file.with_name(f"{file.name}-{ours['token']}")
    made.write_text(json.dumps(ours), encoding="utf-8")
    try:
        for _ in range(ATTEMPTS):
            if _link(made, file):
                return
            if (reason := _remove_dead(file, ours, made, name)) is not None:
                raise UserError(f"{name} is in use by another run ({reason}): {advice}")
    finally:
        with suppress(OSError):
            made.unlink()
    raise UserError(f"{name} is in use by other runs, which start and end all the time: {advice}")


def _leave(file: Path, ours: Record) -> None:
    """Remove our own file, unless another machine, to which we seemed dead, has taken the place over or does so now."""
    right = _right(file, ours)
    if _link(file, right):
        if _read(file) == ours:
            file.unlink()
        right.unlink()


def _right(file: Path, theirs: Record | None) -> Path:
    """The file whose maker alone may remove this record: a record is of one owner, once removed it never returns."""
    return file.with_name(f"{file.name}-dead-{theirs['token'] if theirs else 'unread'}")


def _remove_dead(file: Path, ours: Record, made: Path, name: str) -> str | None:
    """Remove the file of a dead owner; one that is gone meanwhile is no error.

    Returns:
      Who the owner is, or who removes it just now, if that one lives or may live.
    """
    try:
        theirs, reason = _judge(file, ours, made)
        if reason is not None:
            return reason
        right = _right(file, theirs)
        if not _link(made, right):
            return _remove_dead(right, ours, made, name)
        try:
            if _judge(file, ours, made) == (theirs, None):  # still, now that nobody else may remove it
                log.warning("%s: its owner (%s) is dead: taken over", name, _described(theirs))
                file.unlink()
        finally:
            right.unlink()
    except FileNotFoundError:
        pass
    return None


def _judge(file: Path, ours: Record, made: Path) -> tuple[dict[str, Any] | None, str | None]:
    """What the file says, and who its owner is if it lives or may live.

    Raises:
      FileNotFoundError: its owner has just ended.
    """
    theirs = _read(file)
    os.utime(made)
    silent = made.stat().st_mtime - file.stat().st_mtime  # by the one clock of the file server
    return theirs, _lives(theirs, ours, silent)


def _link(made: Path, file: Path) -> bool:
    """Give the file a second name, unless that is taken."""
    try:
        os.link(made, file)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        try:  # no links here either
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(made.read_bytes())
    return True


def _lives(theirs: Record | None, ours: Record, silent: float) -> str | None:
    """Who the owner is, if it lives or may live; None if it is dead.

    Args:
      theirs: None if the file cannot be read.
      silent: seconds since it was touched.
    """
    if theirs is not None and (theirs["host"], theirs["boot"]) == (ours["host"], ours["boot"]):
        return _described(theirs) if process_lives(theirs["pid"], started=theirs["started"]) else None
    if silent >= DEAD_SECONDS:
        return None
    left = DEAD_SECONDS - silent
    return f"{_described(theirs)}, last seen {silent:.0f} s ago; if it is dead, this works in {left:.0f} s"


def _described(theirs: Record | None) -> str:
    if theirs is None:
        return "just started"
    return f"process {theirs['pid']} on {theirs['host']} since {theirs['since']}"


def _read(file: Path) -> dict[str, Any] | None:
    """The record; None if there is none in the file."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    kinds = {"host": str, "boot": str, "pid": int, "started": float, "since": str, "token": str}
    if not isinstance(record, dict) or any(type(record.get(key)) is not kind for key, kind in kinds.items()):
        return None
    return record


def _touch(file: Path, ours: Record, name: str, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        try:
            if _read(file) != ours:
                log.error("%s: another run has taken it over, as this one seemed dead: stop one of both", name)
                return
            os.utime(file)
        except OSError as error:
            log.warning("%s: no sign of life could be given (%s)", name, error.strerror)
