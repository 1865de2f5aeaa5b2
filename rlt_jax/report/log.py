"""Logging to logs/training.log, with time stamps, and to the console.

Every module logs under the name "rlt_jax" (commands run as `__main__`, so `__name__` would not work there).
"""

import io
import logging
from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from rlt_jax.disk import LineFile
from rlt_jax.report.folder import writing_to
from rlt_jax.terminal import VisibleFormatter, open_terminal, takes

LOG_FILE = "logs/training.log"
ENGINE_LOG_FILE = "logs/vllm.log"  # of a vLLM engine that the run starts
WIDE = 60  # columns of a terminal from which time and level stand in columns of their own
TABLE_SIGNS = "─│┏±−→×…"


def setup_logging(run_dir: Path | None, *, console: Console | None = None) -> logging.Logger:
    """Send the log of rlt_jax (INFO and above) to run_dir/logs/training.log and to the console.

    A second call in the same process replaces the first, so that no line is written twice.

    Args:
      run_dir: the run's folder; logs/ is created in it, and an existing training.log is appended to. None: not known to
        be wanted yet: lines for the file are held until `start_log_file`.
      console: None: rich's global console, which the progress display uses too, so that log lines and progress bar do
        not overwrite each other.
    Returns:
      The logger "rlt_jax".
    Raises:
      UserError: the folder cannot be written.
    """
    open_terminal()  # for a script that calls a command's function
    console = console or get_console()
    file_handler = _HeldRecords() if run_dir is None else _file_handler(run_dir)
    console_handler: logging.Handler
    if is_live(console):
        wide = console.width >= WIDE
        console_handler = RichHandler(console=console, show_time=wide, show_level=wide, show_path=False)
        console_handler.setFormatter(VisibleFormatter("%(message)s" if wide else "%(levelname)s %(message)s"))
    else:
        console_handler = _PlainHandler(console)
        console_handler.setFormatter(VisibleFormatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("rlt_jax")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the root logger may have a handler of another library, which would repeat every line
    logger.addHandler(file_handler)
    logger.addHandler(console_handler)
    return logger


def start_log_file(run_dir: Path) -> None:
    """Write the held lines, with their times, and all later ones to run_dir/logs/training.log; once written, no more.

    Raises:
      UserError: the folder cannot be written.
    """
    logger = logging.getLogger("rlt_jax")
    for held in [handler for handler in logger.handlers if isinstance(handler, _HeldRecords)]:
        file_handler = _file_handler(run_dir)
        logger.addHandler(file_handler)
        logger.removeHandler(held)
        for record in held.records:
            file_handler.handle(record)


def log_to_file(text: str) -> None:
    """Add a line to training.log, if it is open, and not to the console."""
    logger = logging.getLogger("rlt_jax")
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None)
    for handler in logger.handlers:
        if isinstance(handler, _LogFile):
            handler.handle(record)


def _file_handler(run_dir: Path) -> logging.Handler:
    path = Path(run_dir) / LOG_FILE
    with writing_to(run_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(LineFile(path))
    handler.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def is_live(console: Console) -> bool:
    """Whether the console can redraw a line. A pipe is no terminal, even with forced colours (FORCE_COLOR)."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def shows_tables(console: Console, *, width: int) -> bool:
    """Whether the console is a terminal on which a table of this width stays one: wide enough, and with all its signs.

    A sign that is replaced by several would shift the columns, and a table that is too wide loses its cells.
    """
    return is_live(console) and width <= console.width and takes(console.file, TABLE_SIGNS)


def table_width(*tables: Table) -> int:
    """Columns that the widest table takes if nothing is cut off."""
    unlimited = Console(file=io.StringIO(), width=10_000)
    return max(unlimited.measure(table).maximum for table in tables)


def print_plain(console: Console, text: str) -> None:
    """Write text unchanged: no wrapping at 80 columns, no markup, no control characters."""
    console.file.write(text + "\n")
    console.file.flush()


class _HeldRecords(logging.Handler):
    """Keeps records for a file that there may never be."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _LogFile(logging.Handler):
    """Appends to a file; if it cannot be written, one warning says so, and later lines are tried again."""

    def __init__(self, file: LineFile) -> None:
        super().__init__()
        self._file = file
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        # a row may hold half of a surrogate pair, which UTF-8 cannot write
        line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        try:
            self._file.append(line)
        except OSError as error:
            if not self._failed:
                self._failed = True
                advice = "%s cannot be written (%s): going on without it"
                logging.getLogger("rlt_jax").warning(advice, self._file.path, error.strerror)
        except ValueError:  # closed: a thread that logs at the very end
            pass

    def close(self) -> None:
        self._file.close()
        super().close()


class _PlainHandler(logging.Handler):
    """One line per record on a console that is not a terminal; looks up the stream at every write."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print_plain(self._console, self.format(record))
        except BrokenPipeError:  # the run ends as any other write would end it
            raise
        except (OSError, ValueError):
            self.handleError(record)
