"""One owner without locks: on this machine its process decides, on another one its signs of life."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from rlt_jax.errors import UserError
from rlt_jax.report import owner_file as module
from rlt_jax.report.owner_file import owner_file, this_owner


@pytest.fixture
def file(tmp_path):
    return tmp_path / ".lock"


def own(file):
    return owner_file(file, "--out x", advice="wait")


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_the_second_is_refused_until_the_first_ends(file):
    message = rf"--out x is in use by another run \(process {os.getpid()} on"
    with own(file), pytest.raises(UserError, match=message), own(file):
        pass
    with own(file):
        assert [path.name for path in file.parent.iterdir()] == [".lock"]
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("change", [lambda: {"pid": dead_pid()}, lambda: {"started": 1.0}], ids=["dead", "recycled"])
def test_a_dead_process_of_this_machine_owns_nothing(file, logged, change):
    file.write_text(json.dumps(this_owner() | change()))
    with own(file):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert "is dead: taken over" in logged.messages[0]
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("change", [{"host": "other"}, {"boot": "other"}])
def test_another_machine_owns_it_for_as_long_as_it_gives_signs_of_life(file, change):
    file.write_text(json.dumps(this_owner() | {"pid": dead_pid()} | change))
    os.utime(file, (time.time() - 100,) * 2)
    message = r"last seen 1\d\d s ago; if it is dead, this works in \d\d s\): wait"
    with pytest.raises(UserError, match=message), own(file):
        pass
    os.utime(file, (time.time() - 200,) * 2)
    with own(file):
        pass


@pytest.mark.parametrize("text", ["", "process 1 on x", "[", "[1]", '{"host": 1}'])
def test_a_file_that_says_nothing_counts_for_a_while(file, text):
    file.write_text(text)
    with pytest.raises(UserError, match=r"is in use by another run \(just started, last seen"), own(file):
        pass
    os.utime(file, (1, 1))
    with own(file):
        pass


def test_signs_of_life_are_given_and_a_rival_is_reported(file, monkeypatch, logged):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    with own(file):
        os.utime(file, (1, 1))
        while file.stat().st_mtime == 1:
            time.sleep(0.005)
        rival = file.with_name("rival")
        rival.write_text(json.dumps(this_owner()))
        rival.replace(file)
        while not logged.messages:
            time.sleep(0.005)
    assert "another run has taken it over" in logged.messages[0]
    assert file.exists()  # the rival's


def dead_owner() -> dict:
    return this_owner() | {"pid": dead_pid()}


def at_the_look(monkeypatch, number, action):
    """Do something after the `number`th look at whether an owner lives."""
    looks, lives = [], module._lives

    def look(theirs, ours, silent):
        reason = lives(theirs, ours, silent)
        looks.append(theirs)
        if len(looks) == number:
            action()
        return reason

    monkeypatch.setattr(module, "_lives", look)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1, ["the rival"]), (2, ["the rival is refused", "we"])],
    ids=["before we may remove it", "after"],
)
def test_what_was_taken_over_meanwhile_is_not_removed(file, number, expected, monkeypatch):
    """Another one takes the place over between our look at the dead owner and the removal of its file."""
    file.write_text(json.dumps(dead_owner()))
    with ExitStack() as rival:
        entered = []

        def enter():
            try:
                rival.enter_context(own(file))
                entered.append("the rival")
            except UserError:
                entered.append("the rival is refused")

        at_the_look(monkeypatch, number, enter)
        with suppress(UserError), own(file):
            entered.append("we")
        assert entered == expected
    assert list(file.parent.iterdir()) == []


def test_who_removes_a_dead_owner_and_dies_is_removed_too(file, logged):
    first, second = dead_owner(), dead_owner()
    file.write_text(json.dumps(first))
    right = module._right(file, first)
    right.write_text(json.dumps(second))
    with own(file):
        assert [path.name for path in file.parent.iterdir()] == [".lock"]
    file.write_text(json.dumps(first))
    right.write_text(json.dumps(this_owner()))  # alive: at it now
    with pytest.raises(UserError, match=rf"in use by another run \(process {os.getpid()}"), own(file):
        pass


@pytest.mark.parametrize("left", [False, True], ids=["free", "of a dead owner"])
@pytest.mark.parametrize("links", [True, False])
def test_of_many_at_once_one_at_a_time_owns_it(file, left, links, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    inside, most = [], []

    def one(number: int) -> None:
        with suppress(UserError), own(file):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.002)
            inside.remove(number)

    for _ in range(30):  # without the right to remove, one round in four had two owners
        if left:
            file.write_text(json.dumps(dead_owner()))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(one, range(40)))
        assert most and max(most) == 1
        assert list(file.parent.iterdir()) == []


@pytest.fixture(autouse=True)
def threads_in_turn():
    """Let threads take turns as often as processes on other cores would."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)
