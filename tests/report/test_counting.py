"""How far the rows are: nothing for a few, then a line now and then, or one that is redrawn."""

import io
import re

import pytest
from rich.console import Console

from rlt_jax.report.counting import EVERY, QUIET, counting


class Seconds:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pipe_gets_a_plain_line_every_few_seconds(pipe, written):
    clock = Seconds()
    with counting("preparing rows", total=200_000, console=pipe, now=clock) as show:
        show(1024)
        clock.now += QUIET
        show(50_000)
        show(60_000)
        clock.now += EVERY
        show(100_000)
    with counting("reading rows", console=pipe, now=clock) as show:
        clock.now += QUIET
        show(1_000_000)
    assert written(pipe) == (
        "preparing rows ... 50,000 of 200,000\npreparing rows ... 100,000 of 200,000\nreading rows ... 1,000,000\n"
    )


def test_a_terminal_gets_one_line_that_is_gone_at_the_end(terminal, written):
    clock = Seconds()
    with pytest.raises(KeyboardInterrupt), counting("reading rows", console=terminal, now=clock) as show:
        clock.now += QUIET
        show(50_000)
        assert "reading rows ... 50,000" in written(terminal)
        raise KeyboardInterrupt
    assert written(terminal).endswith(("\x1b[2K", "\x1b[?25h")) and "\x1b[2K" in written(terminal)


class AsciiTerminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_the_line_in_an_ascii_terminal():
    written = AsciiTerminal(io.BytesIO(), encoding="ascii", errors="replace")
    console, clock = Console(file=written, force_terminal=True, width=80, _environ={"TERM": "xterm"}), Seconds()
    with counting("preparing rows", total=200_000, console=console, now=clock) as show:
        clock.now += QUIET
        show(50_000)
    written.seek(0)
    shown = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.read()))
    drawn = [line for line in shown if line.strip()]
    assert drawn and all(re.fullmatch(r"[-\\|/] preparing rows \.\.\. 50,000 of 200,000 *", line) for line in drawn), (
        shown
    )


def test_a_few_rows_show_nothing(terminal, dumb_terminal, written):
    for console in (terminal, dumb_terminal):
        clock = Seconds()
        with counting("reading rows", console=console, now=clock) as show:
            for done in range(100):
                show(done)
            clock.now += QUIET / 2
            show(100)
        assert written(console) == ""
