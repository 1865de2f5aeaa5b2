"""Runs a command of this package in its own process; its output is shown and saved."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlt_jax import stops
from rlt_jax.secrets import redacted
from rlt_jax.stops import StopRequested
from rlt_jax.terminal import visible


class OutOfTime(Exception):
    """A command was stopped because its time had run out."""


@contextmanager
def registered(pid: int) -> Iterator[None]:
    """Have a command killed if this process is ended at once while the block runs."""
    stops.register_child(pid)
    try:
        yield
    finally:
        stops.unregister_child(pid)


def run_logged(
    module: str, flags: Sequence[str], name: str, log: Path, *, quiet: bool = False, seconds: float | None = None
) -> str | None:
    """Run `python -m MODULE FLAGS`; show each line of its output after `name: `, and append it to `log`.

    A stop is passed on, and the command has its own time to save; it gets no signal but that one (its session is its
    own), as a second would end it at once.

    Args:
      quiet: write the output only to `log`.
      seconds: stop the command after this time. None: never.
    Returns:
      Why the command failed; None if it succeeded.
    Raises:
      OutOfTime: the command was stopped.
      StopRequested: so was this one. After this and any other exception it is no longer running.
    """
    last = ""
    timed_out = threading.Event()
    with (
        log.open("a", encoding="utf-8", buffering=1) as output,
        subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},  # so that the log is whole, whatever this terminal takes
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process,
        registered(process.pid),
    ):

        def stop() -> None:
            timed_out.set()
            process.terminate()

        timer = None if seconds is None else threading.Timer(min(max(seconds, 0), threading.TIMEOUT_MAX), stop)
        if timer is not None:
            timer.start()
        assert process.stdout is not None

        def show(lines: Iterable[str]) -> None:
            nonlocal last
            for line in map(redacted, lines):
                output.write(line)
                if not quiet:
                    print(f"{name}: {visible(line)}", end="", flush=True)
                last = line.strip()
            process.wait()  # else it would still write while the next call resumes its work

        try:
            show(process.stdout)
        except BaseException as error:
            process.send_signal(error.signal if isinstance(error, StopRequested) else signal.SIGTERM)
            own_limit = stops.limit(None)  # the command has one
            if isinstance(error, StopRequested):
                show(process.stdout)  # also what it says of the stop
            else:
                process.stdout.close()  # it must not wait for us to read
                process.wait()
            stops.limit(own_limit)
            raise
        finally:
            if timer is not None:
                timer.cancel()
    if process.returncode == 0:
        return None
    if timed_out.is_set():
        raise OutOfTime
    return f"exit code {process.returncode} ({last}), see {log}"
