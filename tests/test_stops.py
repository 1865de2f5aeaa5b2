"""What a signal does to a process, by what the process is doing."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import psutil
import pytest

from rlt_jax import stops
from rlt_jax.stops import StopRequested

PRESSED_AGAIN = stops.SAME_PRESS + 0.2  # seconds
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

BEFORE = """
import gc, os, signal, subprocess, sys, time
from rlt_jax import stops
from rlt_jax.errors import UserError, run_command

def work(seconds=60.0):
    print("working", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)

def until_stopped():  # however busy the machine is
    print("working", flush=True)
    while stops.requested() is None:
        time.sleep(0.01)

"""


class Process:
    """A script that runs as a command, and its end."""

    def __init__(self, script: str, *, ignored: tuple[int, ...] = ()) -> None:
        dispositions = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind `&` ignores Ctrl-C
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        code = BEFORE + textwrap.dedent(script) + "\nrun_command(main)\nprint('after')\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number, handler in dispositions.items():
            signal.signal(number, handler)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "working\n"

    def send(self, *numbers: int, pause: float = 0.0) -> None:
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(pause)

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def end(self) -> tuple[int, str, str]:
        """(exit code, stdout after "working", stderr)"""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_a_command_with_its_code_and_one_line(number):
    process = Process("def main(): work()")
    process.send(number)
    name = signal.Signals(number).name
    assert process.end() == (128 + number, "", f"stopped by {name}: the same command starts again\n")


def test_an_uncaught_bug_during_a_stop_keeps_its_traceback():
    process = Process("""
        def main():
            try:
                work()
            finally:
                raise ZeroDivisionError
    """)
    process.send(signal.SIGTERM)
    code, _, err = process.end()
    assert code == 1 and "ZeroDivisionError" in err


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_stays_ignored(ignored):
    """`nohup`, and a background job of a script."""
    process = Process("def main(): work(0.6)", ignored=(ignored,))
    process.send(ignored)
    assert process.end() == (0, "after\n", "")
    process = Process("def main(): work()", ignored=(ignored,))
    process.send(ignored, signal.SIGTERM, pause=0.4)
    assert process.end()[0] == 143


def test_what_is_held_is_finished_first():
    process = Process("""
        def main():
            with stops.reported(lambda: "all is well"):
                with stops.held():
                    until_stopped()
                    print("whole", stops.requested(), stops.due(), flush=True)
                print("never")
    """)
    process.send(signal.SIGTERM)
    assert process.end() == (143, "whole 15 False\n", "stopped by SIGTERM: all is well\n")


def test_a_cooperative_block_ends_at_its_checks():
    process = Process("""
        def main():
            with stops.held(), stops.cooperative():
                until_stopped()
                print("not yet", flush=True)
                with stops.held():
                    stops.check()
                    print("nor here", flush=True)
                print("never")
    """)
    process.send(signal.SIGINT)
    code, out, err = process.end()
    assert (code, out) == (130, "not yet\nnor here\n") and err.count("\n") == 1


def test_a_second_signal_ends_at_once_whatever_holds():
    process = Process("""
        def main():
            stops.note_saved("step 3 is saved")
            with stops.held():
                until_stopped()
                print("noted", flush=True)
                time.sleep(60)
    """)
    process.send(signal.SIGINT)
    assert process.line() == "noted"
    time.sleep(PRESSED_AGAIN)
    process.send(signal.SIGTERM)
    expected = "stopped by SIGINT at once, by a second SIGTERM: step 3 is saved\n"
    assert process.end() == (130, "", expected)


def test_two_signals_of_one_press_are_one():
    """A scheduler signals a command and what started it, which passes it on."""
    process = Process("""
        def main():
            with stops.held():
                until_stopped()
                time.sleep(1.0)  # the others come
    """)
    process.send(signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    assert process.end() == (143, "", "stopped by SIGTERM: the same command starts again\n")


def test_the_grace_ends_what_does_not_end():
    """Also while the main thread is in C code, where no handler of Python's runs."""
    process = Process("""
        def main():
            stops.limit(0.5)
            with stops.held():
                import hashlib
                print("working", flush=True)
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
    """)
    process.send(signal.SIGTERM)
    started = time.monotonic()
    code, _, err = process.end()
    assert time.monotonic() - started < 10
    assert code == 143
    assert err == "stopped by SIGTERM 0.5 seconds later, as it had not come to an end\n"


@pytest.mark.parametrize("signals", [1, 2])
def test_no_child_process_survives(signals):
    process = Process(
        """
        def main():
            child = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
            stops.register_child(child.pid)
            with stops.held():
                print("working", flush=True)
                print(child.pid, flush=True)
                until_stopped()
                print("noted", flush=True)
                work(SECONDS)
    """.replace("SECONDS", "0" if signals == 1 else "60")
    )
    group = int(process.line())
    until = time.monotonic() + 30
    while len(members := members_of(group)) < 3:  # the shell begins
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(members) == 3
    process.send(signal.SIGTERM)
    if signals == 2:
        assert [process.line(), process.line()] == ["working", "noted"]
        time.sleep(PRESSED_AGAIN)
        process.send(signal.SIGTERM)
    assert process.end()[0] == 143
    assert psutil.wait_procs(members, timeout=10)[1] == []


def members_of(group: int) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with suppress(ProcessLookupError):  # it has just ended
            if os.getpgid(one.pid) == group:
                found.append(one)
    return found


def test_a_stop_that_python_drops_is_raised_again():
    """An exception cannot leave a `__del__`; it is neither shown nor lost."""
    process = Process("""
        class Slow:
            def __del__(self):
                work(1.0)

        def main():
            slow = Slow()
            del slow
            work()
    """)
    process.send(signal.SIGTERM)
    assert process.end() == (143, "working\n", "stopped by SIGTERM: the same command starts again\n")


def test_a_stop_ends_a_command_whose_output_nobody_reads_any_more():
    """The same Ctrl-C has ended `| tee`; what is to be saved still is."""
    process = Process("""
        def main():
            with stops.reported(lambda: "saved"), stops.held():
                until_stopped()
                for _ in range(100):
                    print("a line of a step", flush=True)
                print("to the end", file=sys.stderr, flush=True)
    """)
    assert process.process.stdout is not None and process.process.stderr is not None
    process.process.stdout.close()
    process.send(signal.SIGINT)
    assert process.process.stderr.read() == "to the end\nstopped by SIGINT: saved\n"
    assert process.process.wait(10) == 130


def test_a_forked_process_has_its_own_signals():
    process = Process("""
        def main():
            ready, done = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(done, b".")
                time.sleep(60)
            os.read(ready, 1)
            print("working", flush=True)
            os.kill(pid, signal.SIGTERM)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stops.requested())
    """)
    assert process.end() == (0, "-15 None\nafter\n", "")


def test_without_a_command_nothing_is_handled():
    """`train()` in a script: its handlers are its own."""
    before = [signal.getsignal(number) for number in NUMBERS]
    with stops.held():
        stops.check()
        assert [signal.getsignal(number) for number in NUMBERS] == before and stops.requested() is None
    with stops.handled():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        with pytest.raises(StopRequested), stops.reported(lambda: "kept"):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in NUMBERS] == before and stops.requested() is None
