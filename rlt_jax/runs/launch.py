"""A command of this project in a process of its own, its output shown and kept."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path


class OutOfTime(Exception):
    """A command was stopped because its time was up."""


def run_logged(
    module: str, flags: Sequence[str], name: str, log: Path, *, quiet: bool = False, seconds: float | None = None
) -> str | None:
    """`python -m MODULE FLAGS`, each line of its output shown behind `name` and appended to `log`.

    Args:
      quiet: keep the output in `log` alone.
      seconds: stop it after so long. None: never.
    Returns:
      Why it failed; None if it did not.
    Raises:
      OutOfTime: it was stopped. On this and every other exception it has ended.
    """
    last = ""
    late = threading.Event()
    with (
        log.open("a", encoding="utf-8", buffering=1) as output,
        subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):

        def stop() -> None:
            late.set()
            process.terminate()

        timer = None if seconds is None else threading.Timer(min(max(seconds, 0), threading.TIMEOUT_MAX), stop)
        if timer is not None:
            timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                output.write(line)
                if not quiet:
                    print(f"{name}: {line}", end="", flush=True)
                last = line.strip()
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()  # it must not write on while the next call goes on with its work
            raise
        finally:
            if timer is not None:
                timer.cancel()
    if process.returncode == 0:
        return None
    if late.is_set():
        raise OutOfTime
    return f"exit code {process.returncode} ({last}), see {log}"
