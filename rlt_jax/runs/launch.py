"""Runs a command of this package in its own process; its output is shown and saved."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from rlt_jax.terminal import visible


class OutOfTime(Exception):
    """A command was stopped because its time had run out."""


def run_logged(
    module: str, flags: Sequence[str], name: str, log: Path, *, quiet: bool = False, seconds: float | None = None
) -> str | None:
    """Run `python -m MODULE FLAGS`; show each line of its output after `name: `, and append it to `log`.

    Args:
      quiet: write the output only to `log`.
      seconds: stop the command after this time. None: never.
    Returns:
      Why the command failed; None if it succeeded.
    Raises:
      OutOfTime: the command was stopped. After this and any other exception it is no longer running.
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
        ) as process,
    ):

        def stop() -> None:
            timed_out.set()
            process.terminate()

        timer = None if seconds is None else threading.Timer(min(max(seconds, 0), threading.TIMEOUT_MAX), stop)
        if timer is not None:
            timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                output.write(line)
                if not quiet:
                    print(f"{name}: {visible(line)}", end="", flush=True)
                last = line.strip()
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()  # else it would still write while the next call resumes its work
            raise
        finally:
            if timer is not None:
                timer.cancel()
    if process.returncode == 0:
        return None
    if timed_out.is_set():
        raise OutOfTime
    return f"exit code {process.returncode} ({last}), see {log}"
