"""A command that gets signals while it works."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil


class Stopped(NamedTuple):
    """How a command ended."""

    code: int
    seconds: float  # from the first signal to the end
    printed: str  # on both streams

    @property
    def messages(self) -> list[str]:
        """The lines that say what a stop leaves."""
        return [line for line in self.printed.splitlines() if "stopped by SIG" in line]

    def check(self, number: int) -> str:
        """The one message of a stop in order, with its exit code, no traceback and no process left behind."""
        assert self.code == 128 + number, self.printed[-3000:]
        assert "Traceback" not in self.printed and "Exception ignored" not in self.printed, self.printed[-3000:]
        assert len(self.messages) == 1, self.printed[-3000:]
        (message,) = self.messages
        assert message.startswith(f"stopped by {signal.Signals(number).name}"), message
        return message


def stop_when(
    seen: str | Callable[[], bool],
    name: str,
    *flags: object,
    number: int = signal.SIGTERM,
    again: float | None = None,
    delay: float = 0.0,
    cwd: Path | None = None,
) -> Stopped:
    """Run `python -m rlt_jax.NAME` and send it a signal.

    Args:
      seen: when: after a line of output that holds this text, or once this is true.
      again: seconds after which the signal is sent once more.
      delay: seconds to wait after what is seen.
    """
    line = [sys.executable, "-m", f"rlt_jax.{name}", *map(str, flags)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind `&` ignores Ctrl-C
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd)
    signal.signal(signal.SIGINT, before)
    printed, started = b"", time.monotonic()
    assert process.stdout is not None
    children: list[psutil.Process] = []
    try:
        while not (seen.encode() in printed if isinstance(seen, str) else seen()):
            assert process.poll() is None and time.monotonic() - started < 120, printed.decode()[-3000:]
            if select.select([process.stdout], [], [], 0.002)[0]:
                printed += os.read(process.stdout.fileno(), 1 << 16)
        time.sleep(delay)
        children = psutil.Process(process.pid).children(recursive=True)
        sent = time.monotonic()
        process.send_signal(number)
        if again is not None:
            time.sleep(again)
            process.send_signal(number)
        printed += process.stdout.read()
        code = process.wait(timeout=90)
        seconds = time.monotonic() - sent
        _, alive = psutil.wait_procs(children, timeout=3)
        assert not alive, f"left over: {alive}"
        return Stopped(code, seconds, printed.decode())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def leftovers(folder: Path) -> Sequence[str]:
    """Temporary files and folders, and locks."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return [name for name in names if "writing-" in name or "tmp" in name or name.endswith(".lock")]
