"""Compare formulas with math-verify, in a process of its own that can be stopped at any time.

A single power such as 9^9^9 keeps Python inside one call that no signal interrupts, and signals reach the main thread
alone. So the comparison runs in a child process, which is killed when its time is over; grading threads take turns.
"""

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
from pathlib import Path

SECONDS = 2.0  # for one comparison; what takes longer is not equal
START_SECONDS = 120.0  # for the process to import math-verify: a second, or many on a busy machine
LONGEST = 1000  # characters of a formula


class _Worker:
    """The child process: one line of JSON in, one line out."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        program = Path(__file__).with_name("math_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the command's: a killed comparison would count as not equal
        )
        self.ready = False

    def ask(self, expected: str, given: str) -> bool | None:
        """Whether the formulas are equal; None if the process does not answer in time."""
        if not self.ready:
            if self._line(START_SECONDS) != b"ready\n":
                raise RuntimeError("math_worker.py did not start: is math-verify installed?")
            self.ready = True
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps([expected, given]).encode() + b"\n")
        except BrokenPipeError:
            return None
        line = self._line(SECONDS)
        return json.loads(line) if line else None

    def _line(self, seconds: float) -> bytes:
        """The next line; b"" if there is none in time."""
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline() if selector.select(seconds) else b""

    def stop(self) -> None:
        """Kill the process."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_worker: _Worker | None = None


def are_equal(expected: str, given: str) -> bool:
    """Whether two LaTeX formulas are equal as mathematics, without rounding; False if that takes more than SECONDS."""
    global _worker
    if expected == given:
        return True
    if max(len(expected), len(given)) > LONGEST:
        return False
    with _lock:
        if _worker is None or _worker.owner != os.getpid() or _worker.process.poll() is not None:
            _worker = _Worker()
        answer = _worker.ask(expected, given)
        if answer is None:
            _worker.stop()
            _worker = _Worker()  # loads while the caller goes on
    return bool(answer)


@atexit.register
def _stop() -> None:
    if _worker is not None:
        _worker.stop()
