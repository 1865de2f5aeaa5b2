"""Where log lines go: logs/training.log with time stamps, and the console.

Every module logs under the name "rlt_jax" (a command file runs as `__main__`, so `__name__` would not do there).
"""

import logging
from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.logging import RichHandler

from rlt_jax.report.folder import writing_to

LOG_FILE = "logs/training.log"


def setup_logging(run_dir: Path, *, console: Console | None = None) -> logging.Logger:
    """Send the log of rlt_jax (INFO and above) to run_dir/logs/training.log and to the console.

    A second call in the same process takes the place of the first: no line is written twice.

    Args:
      run_dir: the run's folder; logs/ is made in it, and an earlier training.log is continued.
      console: rich's global console when None: the one that the progress display shares, so that lines and bar
        don't overwrite each other.
    Returns:
      The logger "rlt_jax".
    Raises:
      UserError: the folder cannot be written.
    """
    console = console or get_console()
    path = Path(run_dir) / LOG_FILE
    with writing_to(run_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        file_handler = logging.FileHandler(path, encoding="utf-8")
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console_handler: logging.Handler
    if is_live(console):
        console_handler = RichHandler(console=console, show_path=False)
    else:
        console_handler = _PlainHandler(console)
        console_handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("rlt_jax")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library may have given the root logger a handler: no line twice
    logger.addHandler(file_handler)
    logger.addHandler(console_handler)
    return logger


def is_live(console: Console) -> bool:
    """True when the console can redraw a line. Colours forced on a pipe (FORCE_COLOR) don't make it a terminal."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def print_plain(console: Console, text: str) -> None:
    """Write text as it is: no wrapping at 80 columns, no markup, no control characters."""
    console.file.write(text + "\n")
    console.file.flush()


class _PlainHandler(logging.Handler):
    """One line per record on a console that is no terminal; the stream is looked up when writing."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print_plain(self._console, self.format(record))
        except (OSError, ValueError):  # a closed pipe must not end a run
            self.handleError(record)
