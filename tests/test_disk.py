"""Writes that happen whole or not at all, and what a failed one says."""

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from rlt_jax.disk import LineFile, cannot_write, leftovers, process_lives, replace_file, writing_name


@pytest.fixture
def file_limit():
    """Sets the largest size of a file for this process, in bytes: a write behind it fails halfway, with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def limit(size: int):  # not beyond the test: pytest may write to a file itself
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


def test_a_write_that_fails_halfway_leaves_no_part_of_a_line(tmp_path, file_limit):
    path = tmp_path / "lines"
    with LineFile(path) as file:
        file.append(b"first\n")
        with file_limit(10), pytest.raises(OSError, match="File too large") as failure:
            file.append(b"second\n")
        assert failure.value.errno == errno.EFBIG and failure.value.filename == str(path)
        assert path.read_bytes() == b"first\n"
        with file_limit(100):
            file.append(b"second\n", synced=True)
    assert path.read_bytes() == b"first\nsecond\n"
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        file.append(b"third\n")


def test_a_line_never_continues_a_torn_one(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"first\nsec")
    with LineFile(path) as file:
        file.append(b"third\n")
        file.append(b"fourth\n")
    assert path.read_bytes() == b"first\nsec\nthird\nfourth\n"


def test_a_file_is_replaced_whole_or_stays(tmp_path, file_limit):
    path = tmp_path / "config.yaml"
    replace_file(path, "old")
    with file_limit(5), pytest.raises(OSError, match="File too large"):
        replace_file(path, "x" * 50)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    replace_file(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "(No space left on device): make room there and repeat the command, which resumes"),
        (errno.EDQUOT, "make room there, or have your quota raised and repeat the command, which resumes"),
        (errno.EROFS, "(Read-only file system): make the file system writable again and repeat the command"),
        (errno.EIO, "(Input/output error): the disk reports errors"),
        (errno.ENOTDIR, "(Not a directory): choose another file"),
    ],
)
def test_a_failed_write_in_words(number, advice):
    error = OSError(number, os.strerror(number))
    message = str(cannot_write("--out x", error, otherwise="choose another file"))
    assert message.startswith("cannot write --out x (") and advice in message
    assert "resumes" not in str(cannot_write("--out x", error, otherwise="choose", resumes=False))


def test_only_what_dead_processes_left_counts_as_left(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        pass
    dead = process.pid
    ours = writing_name(tmp_path / "mine")
    names = (f".out.writing-{dead}", f".final.replaced-{dead}", ".out.writing-", f"out.writing-{dead}", ".writing-1")
    for path in (ours, *(tmp_path / name for name in names)):
        path.touch()
    assert [path.name for path in leftovers(tmp_path)] == [f".final.replaced-{dead}", f".out.writing-{dead}"]
    assert [path.name for path in leftovers(tmp_path, "out")] == [f".out.writing-{dead}"]
    assert list(leftovers(tmp_path / "none")) == []


def test_a_process_lives_until_it_ends():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as process:
        assert process_lives(process.pid)
        assert not process_lives(process.pid, started=1.0)  # another one had its number then
        process.send_signal(signal.SIGKILL)
        while process_lives(process.pid):  # a zombie does not live
            pass
    assert not process_lives(process.pid)
