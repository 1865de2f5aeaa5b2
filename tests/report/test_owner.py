"""One owner at a time, whatever becomes of the one before."""

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlt_jax.errors import UserError
from rlt_jax.report.owner import sole_owner, sole_writer

HOLD = """
import sys
from pathlib import Path
from rlt_jax.report.owner import sole_owner
with sole_owner(Path(sys.argv[1]), "--out x", advice="wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def own(lock: Path):
    return sole_owner(lock, "--output-dir runs/mine", advice="wait, or choose another folder")


def held_elsewhere(lock: Path) -> subprocess.Popen:
    """A process that holds the lock until it is killed or its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_and_hears_who_the_first_is(tmp_path):
    lock = tmp_path / ".lock"
    process = held_elsewhere(lock)
    with pytest.raises(UserError) as refusal, own(lock):
        pass
    expected = (
        rf"--output-dir runs/mine is in use by another run \(process {process.pid} on \S+ since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d\): wait, or choose another folder"
    )
    assert re.fullmatch(expected, str(refusal.value))
    assert lock.exists()  # it is the first one's
    process.communicate("")
    assert process.returncode == 0 and not lock.exists()


def test_a_killed_owner_locks_nothing(tmp_path):
    lock = tmp_path / ".lock"
    process = held_elsewhere(lock)
    process.kill()
    process.wait()
    assert lock.exists()
    with own(lock):
        assert f"process {os.getpid()} " in lock.read_text()
    assert not lock.exists()


def test_of_two_blocks_in_one_process_one_is_refused(tmp_path):
    with own(tmp_path / ".lock"), pytest.raises(UserError, match=f"process {os.getpid()} "), own(tmp_path / ".lock"):
        pass
    with own(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("failure", [None, RuntimeError])
def test_new_folders_go_unless_something_is_in_them(tmp_path, failure):
    lock = tmp_path / "a" / "b" / ".lock"
    with pytest.raises(failure or ZeroDivisionError), own(lock):
        raise (failure or ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []
    with own(lock):
        (lock.parent / "kept").write_text("")
    assert [path.name for path in lock.parent.iterdir()] == ["kept"]
    with own(lock):  # a folder that was there stays, even if it is empty now
        (lock.parent / "kept").unlink()
    assert lock.parent.is_dir()


def test_an_owner_whose_file_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    """Between the second's opening and locking, the first one removes its file; a third makes a new one."""
    lock, flock, opened = tmp_path / ".lock", fcntl.flock, []

    def late(file: int, operation: int) -> None:
        if not opened:
            lock.unlink()
            lock.write_text("")
        opened.append(file)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with own(lock):
        assert len(opened) == 2
        monkeypatch.undo()
        with pytest.raises(UserError, match="is in use"), own(lock):
            pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, logged):
    def unsupported(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with own(tmp_path / ".lock"):
        pass
    assert logged.messages == [
        "--output-dir runs/mine cannot be locked (No locks available): make sure that no other run writes to it"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), own(tmp_path / "file" / "run" / ".lock"):
        pass


def test_the_lock_of_a_file_is_hidden_beside_it(tmp_path):
    with sole_writer(tmp_path / "new" / "out.jsonl", "--out"):
        assert [path.name for path in tmp_path.rglob("*")] == ["new", ".out.jsonl.lock"]
        message = r"--out .*/out.jsonl is in use by another run .*: wait, stop it, or choose"
        with pytest.raises(UserError, match=message), sole_writer(tmp_path / "new" / "out.jsonl", "--out"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"cannot write --histogram .*/out.png \(File exists\): choose another file"
    with pytest.raises(UserError, match=message), sole_writer(tmp_path / "file" / "out.png", "--histogram"):
        pass
