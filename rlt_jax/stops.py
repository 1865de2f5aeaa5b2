"""Stops: SIGTERM, SIGINT (Ctrl-C) and SIGHUP end a command in order, a second one ends it at once.

What a signal does depends on what the command is doing:

    before it begins, after it ended    the process ends, as nothing would be lost
    `handled` (all else)                the handler raises `StopRequested` in the main thread, wherever that is
    `held`                              it is remembered: nothing is interrupted
    `cooperative`                       it is remembered, and the next `check` raises `StopRequested`

Whatever happens then, a thread ends the process when the grace is over or when a second signal comes, with 128 + the
signal's number, and the registered child processes with it. It hears of signals from the C level, so it also does while
the main thread compiles or waits for a device. A signal that was ignored when the process started (`nohup`, a
background job of a script) stays ignored. Without `handled` (a script that calls `train`) nothing here has an effect.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE = 60.0  # seconds, unless `limit` says otherwise
SAME_PRESS = 0.3  # seconds: signals so close are one: a scheduler sends them to a command and to what started it
_LAST_WORDS = 1.0  # seconds
_POLL = 0.1  # seconds, once a stop was requested


class StopRequested(KeyboardInterrupt):
    """The command is to stop. Not an `Exception`: nothing that handles errors should handle it."""

    def __init__(self, number: int | None = None, report: str | None = None) -> None:
        self.report = report  # what is saved and what to do, in words
        self._number = number
        self._state = _state
        super().__init__(number)

    @property
    def signal(self) -> int:
        """The first signal that came. Of several at once Python handles the lowest first, whichever came first: what
        the watcher has read by the time somebody asks is right."""
        return self._number or self._state.arrived or self._state.signal or signal.SIGINT

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signal).name}: {self.report or 'the same command starts again'}"


class _Mode(Enum):
    ENDS = "ends the process"
    RAISES = "raises"
    HELD = "is remembered"
    CHECKED = "is remembered until the next check"


class _State:
    """Of this process: signals belong to the whole of it."""

    def __init__(self) -> None:
        self.installed = False
        self.mode = _Mode.RAISES
        self.signal: int | None = None  # the first one that was handled
        self.arrived: int | None = None  # the first one that came
        self.lost = False  # a StopRequested was raised where Python drops it
        self.grace: float | None = GRACE
        self.saved = ""  # what is safe if the process ends now, in words
        self.exit_code: int | None = None  # of the command, once it has ended
        self.children: set[int] = set()


_state = _State()


# What a command asks.


def requested() -> int | None:
    """The number of the signal that asked for a stop; None if none did."""
    return _state.signal


def due() -> bool:
    """Whether `check` would raise."""
    return (
        _state.signal is not None
        and _state.mode is not _Mode.HELD
        and threading.current_thread() is threading.main_thread()
    )


def can_stop() -> bool:
    """Whether a stop may interrupt what runs now."""
    return _state.mode is not _Mode.HELD


def check() -> None:
    """Raise StopRequested if a stop was requested and nothing holds it. Costs next to nothing; for the main thread."""
    if due():
        raise StopRequested


@contextmanager
def held() -> Iterator[None]:
    """Nothing in the block is interrupted; a stop that comes meanwhile is raised after it, if nothing else holds it."""
    with _mode(_Mode.HELD):
        yield
    check()


@contextmanager
def cooperative() -> Iterator[None]:
    """A stop is raised by `check` alone, which is called here first."""
    with _mode(_Mode.CHECKED):
        check()
        yield
    check()


@contextmanager
def _mode(mode: _Mode) -> Iterator[None]:
    before, _state.mode = _state.mode, mode
    try:
        yield
    finally:
        _state.mode = before


@contextmanager
def reported(report: Callable[[], str]) -> Iterator[None]:
    """Say what a stop in the block leaves, unless something within has said it."""
    try:
        yield
    except StopRequested as stop:
        if stop.report is None:
            stop.report = report()
        raise


def limit(seconds: float | None) -> float | None:
    """Set how long a stop may take; returns what was set before. None: without end, for one who waits for a command
    that has a limit of its own."""
    before, _state.grace = _state.grace, seconds
    return before


def note_saved(text: str) -> None:
    """Keep in words what is safe, for a process that is ended at once."""
    _state.saved = text


def register_child(pid: int) -> None:
    """Kill this process, which leads a group, and its group whenever this one is ended at once."""
    _state.children.add(pid)


def unregister_child(pid: int) -> None:
    """Forget a child process that has ended."""
    _state.children.discard(pid)


# Installation.


@contextmanager
def handled() -> Iterator[None]:
    """Let signals stop what runs in the block. For commands alone: a script's own handlers are its own business."""
    restore = None if _state.installed else _install()
    _state.mode = _Mode.RAISES
    try:
        check()  # one that came before
        yield
    finally:
        if restore is None:
            _state.mode = _Mode.ENDS
        _end_children()
        if restore is not None:
            restore()


def ending(code: int) -> None:
    """The command ends with this exit code, and so does the process if another signal comes before it has gone."""
    _state.exit_code = code


def ended(code: int) -> None:
    """The command has ended with this exit code, and all is said.

    After a stop the process is gone on return: Python takes a while to end, and restores the default handlers before it
    has, under which a second signal would change the exit code.
    """
    ending(code)
    if _state.installed and _state.signal is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def install_for_command() -> None:
    """Handle signals from now on, if this process is one of our commands: importing JAX takes it a second or more."""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    as_module = sys.argv[:1] == ["-m"] and bool(module) and module[0].startswith("rlt_jax.")
    if as_module or Path(sys.argv[0] if sys.argv else "").name.startswith("rlt-"):
        _install()
        _state.mode = _Mode.ENDS


def _install() -> Callable[[], None] | None:
    """Install handlers and the thread that watches; returns what takes them away. Does nothing in other threads."""
    global _state
    if threading.current_thread() is not threading.main_thread():
        return None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    chosen = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    children = _state.children
    _state = _State()
    _state.installed, _state.children = True, children
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    hook = sys.unraisablehook
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    sys.unraisablehook = lambda unraisable: _unraisable(unraisable, hook)
    watcher = threading.Thread(target=_watch, args=(reader,), name="rlt_jax stops", daemon=True)
    watcher.start()
    for number in chosen:
        signal.signal(number, _handle)

    def restore() -> None:
        global _state
        for number in chosen:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook = hook
        os.close(writer)
        watcher.join()
        os.close(reader)
        _state = _State()

    def leave_to_parent() -> None:
        if _state.installed:
            signal.set_wakeup_fd(-1)
            for number in chosen:
                signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=leave_to_parent)  # a fork's signals are not ours
    return restore


def _handle(number: int, _: Any) -> None:
    """Python's handler, in the main thread: for the first signal. The others are the watcher's."""
    if _state.signal is not None:
        return
    _state.signal = number
    if _state.mode is _Mode.RAISES:
        raise StopRequested


def _unraisable(unraisable: Any, otherwise: Callable[[Any], object]) -> None:
    """A callback from C code cannot pass an exception on: Python drops it, and prints it unless told otherwise."""
    if isinstance(unraisable.exc_value, StopRequested) or unraisable.exc_type is StopRequested:
        _state.lost = True
    else:
        otherwise(unraisable)


def _watch(reader: int) -> None:
    first, number = 0.0, 0
    while True:
        ready, _, _ = select.select([reader], [], [], _POLL if number else None)
        if ready:
            received = os.read(reader, 64)
            if not received:  # closed: the block is over
                return
            stops = [byte for byte in received if byte in SIGNALS]
            if stops and not number:
                number, first = stops[0], time.monotonic()
                _state.arrived = number
                if _state.mode is _Mode.ENDS:
                    _end(number, "")
            elif stops and time.monotonic() - first > SAME_PRESS:
                _end(number, f"at once, by a second {signal.Signals(stops[0]).name}")
        if not number:
            continue
        if _state.lost and _state.mode is _Mode.RAISES:
            _state.lost = False
            _raise_in_main_thread()
        if _state.grace is not None and time.monotonic() - first > _state.grace:
            _end(number, f"{_state.grace:g} seconds later, as it had not come to an end")


def _raise_in_main_thread() -> None:
    import ctypes

    ident = threading.main_thread().ident
    assert ident is not None  # it runs
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(StopRequested))


def _end(number: int, how: str) -> NoReturn:
    """End this process and its children now. Writes past Python's streams, whose locks the main thread may hold."""
    if _state.exit_code is not None:
        time.sleep(_LAST_WORDS)  # the main thread is saying what there is to say, and ends the process itself
        os._exit(_state.exit_code)
    _end_children()
    text = f"stopped by {signal.Signals(number).name} {how or 'before it began'}"
    text += f": {_state.saved}" if _state.saved else ""
    for stream, data in (
        (1, b"\x1b[?25h"),
        (2, f"{text}\n".encode(errors="replace")),
    ):  # a progress bar hides the cursor
        with contextlib.suppress(OSError, ValueError):
            if (stream == 2 or os.isatty(stream)) and select.select([], [stream], [], 1.0)[1]:
                os.write(stream, data)
    os._exit(128 + number)


def _end_children() -> None:
    for pid in list(_state.children):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    _state.children.clear()
