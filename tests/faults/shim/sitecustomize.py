"""Says from inside a process of `rlt_jax` which phase of a run it is in, so that a test can send it a signal there.

Python imports this file at its start if the folder is on PYTHONPATH. It does nothing unless RLT_FAULTS_PHASES names a
file; then functions of the package are wrapped when their module is imported, and the file holds (see `RECORD`): how
often the phase has changed, the step in progress, and the phase. FILE.trace gets a line for every change. Nothing of
the package knows of this.
"""

import importlib.abc
import importlib.machinery
import mmap
import os
import struct
import sys
import time
from contextlib import contextmanager

RECORD = struct.Struct("<QQ32s")  # changes so far, step in progress (0: none), name of the phase
VARIABLE = "RLT_FAULTS_PHASES"
PAUSE = 0.02  # seconds before and after a phase that is over in no time, so that it can be hit
SHORT = ("sync", "save")
NAMES = {"generate": "draw"}  # of the package's phases -> ours

_phase = None  # the one of this process, which several wrapped modules share


class Phase:
    """The file that says where this process is."""

    def __init__(self, path):
        self._trace = os.open(path + ".trace", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(path, "w+b") as file:
            file.write(bytes(RECORD.size))
            file.flush()
            self._memory = mmap.mmap(file.fileno(), RECORD.size)
        self.owner = os.getpid()  # what it forks is not the run
        self._changes, self.step, self.name = 0, 0, ""
        self.enter("start-up" if FIRST in sys.modules else "interpreter")

    def enter(self, name):
        self.name = name
        self._changes += 1
        self._memory[:] = RECORD.pack(self._changes, self.step, name.encode())
        os.write(self._trace, f"{time.monotonic():.6f} {self.step} {name}\n".encode())

    @contextmanager
    def of(self, name):
        if os.getpid() != self.owner:
            yield
            return
        before = self.name
        self.enter(name)
        try:
            if name in SHORT:
                time.sleep(PAUSE)
            yield
            if name in SHORT:
                time.sleep(PAUSE)
        finally:
            self.enter(before)


def install(path):
    """Report the phases of this process in a file, also those of modules that are imported already."""
    global _phase
    _phase = Phase(path)
    if SESSION in sys.modules:
        wrap_session(sys.modules[SESSION])
    else:
        sys.meta_path.insert(0, _Finder())


def wrap_session(module):
    session, phase = module.Session, _phase

    def steps(self, original=session.steps):
        phase.enter("log")  # between the phases: metrics, samples, the loop itself
        for step in original(self):
            phase.step = step
            phase.enter("log")
            yield step
        phase.enter("log")

    @contextmanager
    def phase_of_step(self, name, original=session.phase):
        with phase.of(NAMES.get(name, name)), original(self, name):
            yield

    def within(name, original):
        def wrapped(*args, **kwargs):
            with phase.of(name):
                return original(*args, **kwargs)

        return wrapped

    def finish(self, *args, original=session.finish, **kwargs):
        phase.enter("export")
        exported = original(self, *args, **kwargs)
        phase.enter("summary")
        return exported

    session.steps, session.phase, session.finish = steps, phase_of_step, finish
    for name in ("save", "wait_for_save"):
        if hasattr(session, name):
            setattr(session, name, within("save", getattr(session, name)))


SESSION = "rlt_jax.runs.session"
FIRST = "rlt_jax.stops"  # what the package imports first; what happens before is Python's own business


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the session's module right after it has been executed."""

    def find_spec(self, name, path, target=None):
        if name == FIRST and _phase.name == "interpreter":
            _phase.enter("start-up")
        if name != SESSION:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            wrap_session(module)

        spec.loader.exec_module = exec_module
        return spec


if VARIABLE in os.environ:
    install(os.environ.pop(VARIABLE))  # not for the processes that it starts
