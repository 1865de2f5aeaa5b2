"""Consoles to write to: a pipe, and a terminal of 120 columns."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[{}, {"FORCE_COLOR": "1"}], ids=["pipe", "pipe with colours forced"])
def pipe(request) -> Console:
    return Console(file=io.StringIO(), width=80, _environ=request.param)


@pytest.fixture
def terminal() -> Console:
    return Console(file=Terminal(), width=120, _environ={"TERM": "xterm-256color"})


@pytest.fixture
def dumb_terminal() -> Console:
    return Console(file=Terminal(), width=120, _environ={"TERM": "dumb"})


@pytest.fixture
def written() -> Callable[[Console], str]:
    """Reads what a console was given."""

    def read(console: Console) -> str:
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    return read
