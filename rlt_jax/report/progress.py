"""The progress display of a run: a bar with phase, reward, speed and time left, or plain lines in a pipe."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from rlt_jax.report.log import is_live, print_plain
from rlt_jax.terminal import takes

Item = TypeVar("Item")

WINDOW = 20  # last steps used to estimate the time left: the first steps, which compile, soon stop counting


class ProgressDisplay:
    """Progress of a run. Created by `open_progress`; use it in a `with` statement.

    In a terminal one line is redrawn. Anything else (a pipe, a CI log) gets one plain line per `log`, without control
    characters.
    """

    def __init__(
        self, total_steps: int, start_step: int, console: Console, bar: Progress | None, now: Callable[[], float]
    ) -> None:
        self._total = total_steps
        self._console = console
        self._bar = bar
        self._now = now
        self._phase = ""
        self._ends = deque([(start_step, now())], maxlen=WINDOW + 1)  # (step, seconds) at which steps ended
        self._task: TaskID | None = None
        if bar is not None:
            self._task = bar.add_task(
                "train", total=total_steps, completed=start_step, phase="starting", numbers="", left=_duration(None)
            )

    def phase(self, name: str, detail: str = "") -> None:
        """Show the current phase of the step, and how far it is if known ("32/96"). Plain output shows no phases."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, phase=f"{name} {detail}".rstrip())

    def step(self, step: int) -> None:
        """Count `step` (from 1) as done."""
        self._ends.append((step, self._now()))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, left=_duration(self.seconds_left()))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step: reward, tokens per second, the GPU's peak, seconds per step, time left."""
        numbers = _numbers(metrics)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, numbers=" ".join(numbers))
            return
        width = len(str(self._total))
        parts = [f"step {step:>{width}}/{self._total}", *numbers, f"ETA {_duration(self.seconds_left())}"]
        print_plain(self._console, "  ".join(parts))

    def seconds_left(self) -> float | None:
        """Steps left times the mean seconds of the last steps; None before the first step is done."""
        (first, start), (last, end) = self._ends[0], self._ends[-1]
        if last <= first:
            return None
        return (self._total - last) * (end - start) / (last - first)

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def open_progress(
    total_steps: int,
    *,
    start_step: int = 0,
    show: bool = True,
    console: Console | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> ProgressDisplay:
    """Create the progress display of a run.

    Args:
      total_steps: last step of the run.
      start_step: steps done already (in a resumed run).
      show: False: plain lines instead of a bar, in a terminal too.
      console: None: rich's global console, which the log uses too.
      now: a clock, in seconds from any fixed point.
    """
    console = console or get_console()
    bar = None
    if show and is_live(console):
        bar = Progress(
            spinner(console),
            _text("{task.fields[phase]:<16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(table_column=_cut()),
            _text("{task.fields[numbers]}"),
            _text("ETA {task.fields[left]}"),
            console=console,
        )
    return ProgressDisplay(total_steps, start_step, console, bar, now)


def track(items: Sequence[Item], description: str, *, console: Console | None = None) -> Iterator[Item]:
    """Yield the items, with a bar in a terminal, which disappears at the end. Anything else shows nothing."""
    console = console or get_console()
    if not is_live(console):
        yield from items
        return
    left = TimeRemainingColumn(table_column=_cut())
    columns = (_text("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), left)
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, description=description)


def spinner(console: Console) -> SpinnerColumn:
    """A sign that turns, made of what the console can show."""
    return SpinnerColumn("dots" if takes(console.file, "⠋") else "line")


def _text(template: str) -> TextColumn:
    return TextColumn(template, markup=False, table_column=_cut())


def _cut() -> Column:
    """The layout of a column that is cut off in a narrow terminal without an ellipsis, which may become three signs."""
    return Column(no_wrap=True, overflow="crop")


def _numbers(metrics: Mapping[str, float]) -> list[str]:
    """The few metrics to show on the line, if available."""
    shown = []
    if "reward" in metrics:
        shown.append(f"reward {metrics['reward']:.3f}")
    if "eval/reward" in metrics:
        shown.append(f"eval reward {metrics['eval/reward']:.3f}")
    for name in ("loss", "eval/loss"):  # of supervised runs; the value of the GRPO loss means little
        if name in metrics and "reward" not in metrics:
            shown.append(f"{name.replace('/', ' ')} {metrics[name]:.4f}")
    if "check/matched" in metrics:
        shown.append(f"closed tags {metrics['check/matched']:.0%}")
    if "tokens_per_second/generate" in metrics:
        shown.append(f"{metrics['tokens_per_second/generate']:,.0f} tokens/s")
    peaks = [value for name, value in metrics.items() if name.startswith("memory/peak_gpu_gb/")]
    if peaks:
        shown.append(f"{max(peaks):.1f} GB")
    if "seconds/step" in metrics:
        shown.append(f"{metrics['seconds/step']:.1f} s/step")
    return shown


def _duration(seconds: float | None) -> str:
    """h:mm:ss, after the days if there are any."""
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))
