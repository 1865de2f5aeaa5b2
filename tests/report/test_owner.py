"""One owner at a time, whatever becomes of the one before."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlt_jax.errors import UserError
from rlt_jax.report.owner import sole_owner, sole_user, sole_writer

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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_file_says_whose_it_is(tmp_path, monkeypatch, logged, number):
    def unsupported(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock, message = tmp_path / "new" / ".lock", rf"is in use by another run \(process {os.getpid()} on"
    with own(lock), pytest.raises(UserError, match=message), own(lock):
        pass
    with own(lock):
        assert [path.name for path in lock.parent.iterdir()] == [".lock"]
    assert "the file system has no locks" in logged.messages[0]
    assert list(tmp_path.iterdir()) == []
    lock = tmp_path / ".lock"
    lock.touch()  # another's, who has not written into it yet
    with pytest.raises(UserError, match=r"is in use by another run \(just started"), own(lock):
        pass
    assert lock.exists()


def test_a_child_does_not_hold_the_lock_of_a_killed_owner(tmp_path):
    lock = tmp_path / ".lock"
    program = HOLD.replace(
        'print("held", flush=True)',
        'import subprocess; child = subprocess.Popen(["sleep", "60"]); print(child.pid, flush=True)',
    )
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdin=-1, stdout=-1, text=True) as process:
        child = int(process.stdout.readline())
        process.kill()
    try:
        with own(lock):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_a_killed_process_was_writing_goes(tmp_path, logged):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    left = tmp_path / f".out.jsonl.writing-{process.pid}"
    others = {tmp_path / f".other.jsonl.writing-{process.pid}", tmp_path / f".out.jsonl.writing-{os.getpid()}"}
    for path in (left, *others):
        path.touch()
    with sole_writer(tmp_path / "out.jsonl", "--out"):
        assert not left.exists()
    assert set(tmp_path.iterdir()) == others
    with sole_user(tmp_path, "--output-dir"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / f".out.jsonl.writing-{os.getpid()}"]
    assert logged.messages[0] == f"{left}: removed, a killed process left it"


def test_the_lock_of_a_folder_in_the_place_of_ours_is_left_alone(tmp_path):
    with own(tmp_path / "run" / ".lock"):
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".lock").write_text("another's")
    assert (tmp_path / "run" / ".lock").exists()


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
