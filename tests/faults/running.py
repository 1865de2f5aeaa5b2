"""Runs of the real commands that a test may kill at a chosen moment, each in a session of its own."""

import itertools
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.faults.scenes import Scene

HERE = Path(__file__).parent
RECORD = struct.Struct("<QQ32s")  # as in shim/sitecustomize.py
MARK = "RLT_FAULTS_RUN"  # variable by which the processes of a run are found again
TIMEOUT = 300  # seconds until a run counts as hanging


Started = tuple[int, Callable[[float], int]]  # process id, and what waits for its exit code


class Place(NamedTuple):
    """Where a run is."""

    changes: int  # of the phase, so far
    step: int  # in progress; 0: none
    phase: str  # "": the interpreter is starting


@dataclass
class Run:
    """A command that runs, or has run."""

    pid: int
    folder: Path  # the run folder
    work: Path  # its output and its phases are kept there
    mark: str
    _wait: Callable[[float], int]
    code: int | None = field(default=None)

    def place(self) -> Place:
        """Where it is, or was when it ended."""
        try:
            data = (self.work / "phases").read_bytes()
        except FileNotFoundError:
            return Place(0, 0, "")
        if len(data) != RECORD.size:
            return Place(0, 0, "")
        changes, step, name = RECORD.unpack(data)
        return Place(changes, step, name.rstrip(b"\0").decode())

    @property
    def running(self) -> bool:
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def send(self, number: int) -> bool:
        """Send a signal to it alone; whether it was there."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Its exit code (minus the signal that ended it). A run that hangs is killed, which fails the test."""
        if self.code is None:
            self.code = self._wait(timeout)
        return self.code

    def output(self) -> str:
        return (self.work / "output").read_text(errors="replace")

    def left_over(self, patience: float = 5.0) -> list[str]:
        """What still runs of it, after `patience` seconds at most."""
        until = time.monotonic() + patience
        while (left := [line for _, line in self.processes()]) and time.monotonic() < until:
            time.sleep(0.1)
        return left

    def processes(self) -> list[tuple[int, str]]:
        """(id, command line) of all that belongs to it: its session, and whatever carries its mark."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = os.getsid(process.pid) == self.pid or process.environ().get(MARK) == self.mark
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.pid, " ".join(process.cmdline())))
            except (psutil.Error, ProcessLookupError, PermissionError):
                continue
        return found


def watch(run: Run, interval: float = 0.0002) -> Iterator[Place]:
    """Its places, read again and again until it ends."""
    while run.running:
        yield run.place()
        time.sleep(interval)


class Launcher:
    """Starts commands: in fresh interpreters, or as forks of one that has imported everything already."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._count = 0
        self._server: subprocess.Popen | None = None

    def start(self, scene: Scene, folder: Path, *more: object, fresh: bool = False) -> Run:
        """Start a scene's command on a run folder, or let it resume there.

        Args:
          more: flags.
          fresh: in a real new interpreter, with all its imports.
        """
        self._count += 1
        work = self._work / f"{self._count:04d}"
        work.mkdir(parents=True)
        mark = f"{os.getpid()}-{self._count}"
        module, argv = f"rlt_jax.{scene.command}", list(map(str, [*scene.line(folder), *more]))
        pid, wait = (self._fresh if fresh else self._forked)(module, argv, work, mark)
        return Run(pid, folder, work, mark, wait)

    def run(self, scene: Scene, folder: Path, *more: object, fresh: bool = False) -> Run:
        """Start it and wait for its end."""
        run = self.start(scene, folder, *more, fresh=fresh)
        run.wait()
        return run

    def close(self) -> None:
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()
            self._server = None

    def _fresh(self, module: str, argv: list[str], work: Path, mark: str) -> Started:
        environment = _environment() | {MARK: mark, "RLT_FAULTS_PHASES": str(work / "phases")}
        with (work / "output").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                preexec_fn=_default_signals,
            )

        def wait(timeout: float) -> int:
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

        return process.pid, wait

    def _forked(self, module: str, argv: list[str], work: Path, mark: str) -> Started:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(HERE / "fork_server.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # warnings of imports
                text=True,
                env=_environment(),
            )
            assert self._server.stdout.readline().strip() == "ready"
        server = self._server
        order = {"module": module, "argv": argv, "env": {MARK: mark}}
        order |= {"output": str(work / "output"), "phases": str(work / "phases")}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())

        def wait(timeout: float) -> int:
            until = time.monotonic() + timeout
            hung = False
            while not (ended := _readable(server.stdout)) and not hung:
                hung = time.monotonic() > until
                time.sleep(0.002)
            if hung and not ended:
                os.kill(pid, signal.SIGKILL)
            code = int(server.stdout.readline())
            if hung and not ended:
                raise subprocess.TimeoutExpired(argv, timeout)
            return code

        return pid, wait


def _readable(pipe) -> bool:
    return bool(select.select([pipe], [], [], 0)[0])


def _environment() -> dict[str, str]:
    """This process's, with the repository's package and the shim first on the path."""
    path = [str(HERE / "shim"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}


def _default_signals() -> None:
    """A shell starts what it puts in the background with SIGINT ignored, and so are all its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def durations(run: Run) -> dict[str, float]:
    """Phase -> the median seconds that a run spent in one of its passes."""
    changes = [line.split() for line in (run.work / "phases.trace").read_text().splitlines()]
    spent: dict[str, list[float]] = {}
    for (start, _, name), (end, _, _) in itertools.pairwise(changes):
        spent.setdefault(name, []).append(float(end) - float(start))
    return {name: sorted(times)[len(times) // 2] for name, times in spent.items()}
