"""Output that any terminal takes: ASCII alone, a closed or full one, a pipe whose reader has gone.

`open_terminal` makes the process's stdout and stderr such streams. A sign that the encoding lacks is written as one
that reads alike (`±` as `+/-`), else as `?`; files have an encoding of their own, UTF-8. Text from rows and files is
shown by `visible`, which keeps it from steering the terminal.
"""

import codecs
import errno
import io
import logging
import os
import re
import select
import sys
import threading
from typing import IO, TextIO

from rlt_jax.secrets import redacted
from rlt_jax.stops import requested

REPLACE = "rlt_jax.replace"  # name of the error handler for signs that an encoding lacks

ALIKE = {
    "±": "+/-",
    "×": "x",
    "·": "*",
    "÷": "/",
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "→": "->",
    "←": "<-",
    "↔": "<->",
    "⇒": "=>",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "≈": "~",
    "…": "...",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "•": "*",
    "✓": "ok",
    "✔": "ok",
    "✗": "no",
    "✘": "no",
    "√": "sqrt",
    "∞": "inf",
    "π": "pi",
    "β": "beta",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
    "\ufeff": "",
}
"""Sign -> the same in ASCII."""

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but for tab and line feed, and those that turn the direction of the text that follows."""


def open_terminal() -> None:
    """Make stdout and stderr of this process take any text, whatever their encoding and whatever they lead to.

    - No write fails for a sign that the encoding lacks.
    - A closed stream (`>&-`) is replaced by one that leads nowhere; otherwise the next file that is opened would get
      its number, and with it what libraries print.
    - A write that fails (a full disk, a terminal that is gone) does not end the run: the rest is not shown, and
      `output_failure` says why. If the reader of a pipe is gone (`| head`), the next write to stdout raises
      BrokenPipeError once.

    Streams that somebody has put in their place (a notebook's, a test's) only learn to replace signs. A second call
    does nothing.
    """
    for number in (0, 1, 2):  # in this order: the lowest free number is taken
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _opened(sys.stdout, 1)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _opened(sys.stderr, 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != REPLACE:
            stream.reconfigure(errors=REPLACE)
    if logging.lastResort is not None:  # which shows warnings where no log is set up
        logging.lastResort.setFormatter(VisibleFormatter("%(message)s"))


def output_failure() -> OSError | None:
    """Why stdout could not be written since `open_terminal`; None if it could."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Output) else None


def visible(text: str) -> str:
    """`text` with its control characters written out (an escape as `\\x1b`), but for tabs and line feeds.

    A row or a file may hold any: shown as they are, they recolour, move or rename the terminal.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def takes(stream: IO[str], text: str) -> bool:
    """Whether a stream's encoding has all signs of `text`."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class VisibleFormatter(logging.Formatter):
    """Formats log records so that what they quote of rows and files is `visible`, and no secret is in them."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(redacted(super().format(record)))


class _Output(io.FileIO):
    """Bytes to a file number of the process; at the first error it falls silent."""

    failure: OSError | None = None
    interruption: BaseException | None = None  # raised by a signal's handler after the bytes were written

    def __init__(self, number: int, mode: str, closefd: bool) -> None:
        super().__init__(number, mode, closefd)
        self.number = number

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]  # any buffer
        """Write, or drop what cannot be written.

        Raises:
          BrokenPipeError: the first time that the reader of stdout is gone.
        """
        written: list[int | None] = []
        try:
            while self.failure is None:
                written.extend(map(super().write, (data,)))  # one call: no signal's handler between write and result
                if written[-1] is not None:
                    return written[-1]
                select.select([], [self], [])  # somebody has made the terminal non-blocking
        except OSError as error:
            self.failure = error
            if error.errno == errno.EPIPE and self.fileno() == 1 and requested() is None:
                raise  # but a run that is to stop saves what it has: the same Ctrl-C has ended `| tee`
        except BaseException as error:  # by a signal's handler (Ctrl-C)
            if not written or written[-1] is None:
                raise
            self.interruption = error  # raised here, the buffer would keep what is written and write it again
            return written[-1]
        return len(data)


class _Text(io.TextIOWrapper):
    """Text to an `_Output`, whose interruptions it raises; on stderr, where libraries write too, without secrets."""

    def write(self, text: str) -> int:
        raw = getattr(self.buffer, "raw", None)
        shown = redacted(text) if isinstance(raw, _Output) and raw.number == 2 else text
        super().write(shown)
        self._raise_interruption()
        return len(text)

    def flush(self) -> None:
        super().flush()
        self._raise_interruption()

    def _raise_interruption(self) -> None:
        raw = getattr(self.buffer, "raw", None)
        if not isinstance(raw, _Output) or threading.current_thread() is not threading.main_thread():
            return
        error, raw.interruption = raw.interruption, None
        if error is not None:
            raise error


def _opened(stream: TextIO | None, number: int) -> TextIO:
    """A stream like `stream` that never fails; None: a closed one."""
    if stream is None:
        return _text(_Output(number, "w", closefd=False), "utf-8", line_buffering=True)
    if not isinstance(stream, io.TextIOWrapper) or isinstance(getattr(stream.buffer, "raw", None), _Output):
        return stream
    raw = _Output(number, "w", closefd=False)
    buffered = stream.line_buffering or stream.write_through
    opened = _text(raw, stream.encoding, line_buffering=buffered)
    try:
        stream.flush()
    except OSError as error:
        raw.failure = error
    return opened


def _text(raw: _Output, encoding: str, *, line_buffering: bool) -> io.TextIOWrapper:
    # typeshed wants methods of a raw stream that io.FileIO has under other types
    return _Text(io.BufferedWriter(raw), encoding, REPLACE, line_buffering=line_buffering)  # type: ignore[type-var]


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_alike, error.object[error.start : error.end])), error.end


def _alike(sign: str) -> str:
    """A sign in ASCII."""
    if sign in ALIKE:
        return ALIKE[sign]
    if "\u2500" <= sign <= "\u257f":  # lines of tables and bars
        return "-" if sign in "─━═╌╍┄┅┈┉╴╶╸╺╼╾" else "|" if sign in "│┃║╎╏┆┇┊┋╵╷╹╻╽╿" else "+"
    if "\u2580" <= sign <= "\u259f":  # blocks
        return "#"
    if "\u2800" <= sign <= "\u28ff":  # braille, of which spinners are made
        return "|/-\\"[ord(sign) % 4]
    return "?"


codecs.register_error(REPLACE, _replaced)
