"""How far the reading and preparing of many rows is, before a run: a line in a terminal, or plain lines in a pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.console import Console
from rich.progress import Progress, TextColumn

from rlt_jax.report.log import is_live, print_plain
from rlt_jax.report.progress import spinner

QUIET = 2.0  # seconds in which nothing is shown: most data sets take less
EVERY = 5.0  # seconds between plain lines


@contextmanager
def counting(
    what: str,
    *,
    total: int | None = None,
    console: Console | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of rows done, which shows `WHAT ... 100,000 of 200,000`.

    Nothing is shown for the first seconds. In a terminal the line is then redrawn, and gone at the end; anything else
    gets a plain line every few seconds.

    Args:
      what: "reading rows", for example.
      total: all rows. None: not known.
      console: None: rich's global console, which the log uses too.
      now: a clock, in seconds from any fixed point.
    """
    console = console or get_console()
    live = None
    if is_live(console):
        live = Progress(
            spinner(console),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        task = live.add_task(what, total=None)
    due = now() + QUIET
    shown = False

    def show(done: int) -> None:
        nonlocal due, shown
        if not shown and now() < due:
            return
        text = f"{what} ... {done:,}" + ("" if total is None else f" of {total:,}")
        if live is not None:
            live.update(task, description=text)
            if not shown:
                live.start()
        elif now() >= due:
            print_plain(console, text)
            due = now() + EVERY
        shown = True

    try:
        yield show
    finally:
        if live is not None and shown:
            live.stop()
