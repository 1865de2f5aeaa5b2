"""Arms of a study side by side: how their held-out metrics changed, with confidence intervals, as table and picture."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from scipy import stats

from rlt_jax.report.curves import COLUMNS, INK, Panel, draw_levels, new_figure, style_axes
from rlt_jax.report.paired import PairedChange
from rlt_jax.report.writer import METRICS_FILE, read_lines

T = TypeVar("T")

CONFIDENCE = 0.95
MISSING = "–"

QUANTITIES = (  # the first is the one that compares arms whatever their reward
    Panel("Solution log-prob", "nats per token", "component/solution_logp/mean"),
    Panel("Reward", "nats, weighted", "reward"),
    Panel("Explanation KL", "nats per token", "component/thought_kl/mean"),
    Panel("Completion length", "tokens", "completion_length/mean"),
    Panel("Copy rate", "share", "copy_rate", level="trace_copy_rate", level_label="true traces"),
    Panel("Repeat rate", "share", "repeat_rate"),
    Panel("Match rate", "share", "match_rate"),
)
TRACES = Panel("Copy rate of the traces", "share", "trace_copy_rate")

CAPTION = (
    "Change of each held-out metric from the first evaluation to the last, mean over seeds ± half the width of its "
    "95 % confidence interval (Student t); after the arrow, the last value. An arm with one seed has its interval over "
    "the held-out prompts, paired, for the metrics that are recorded by prompt. Seeds: finished / planned; only "
    "finished runs count.",
    "Look at the solution log-prob first. Rewards of arms with different coefficients, reductions or terms are not "
    "comparable. Nor are solution log-probs and KLs of arms with different student temperatures, nor KLs by different "
    "estimators.",
)  # paragraphs


@dataclass(frozen=True)
class Evaluations:
    """The held-out metrics of one finished run."""

    last: int  # step of the last one; the first is at 0
    values: Mapping[str, Mapping[int, float]]  # metric (without `eval/`) -> step -> value
    paired: Mapping[str, PairedChange]  # metric -> its change by prompt, where prompts are recorded
    seed: int


@dataclass(frozen=True)
class Change:
    """First and last value of a metric, means over the seeds of an arm; units are the metric's."""

    first: float
    last: float
    change: float  # last - first
    half_width: float | None  # of the confidence interval of `change`; None: unknown
    over: Literal["seeds", "prompts"] | None  # what the interval is over


@dataclass(frozen=True)
class Difference:
    """An arm's last value minus the first arm's, each pair under the same seed; units are the metric's."""

    mean: float
    half_width: float | None  # of its confidence interval over the seeds; None with a single one
    seeds: int  # that both arms have


@dataclass(frozen=True)
class Arm:
    """What is known of an arm."""

    finished: int  # seeds
    planned: int  # seeds
    changes: Mapping[str, Change]  # metric -> change
    from_first: Mapping[str, Difference]  # metric -> difference from the first arm; {} for that arm itself


def read_evaluations(run_dir: Path, *, last: int) -> dict[str, dict[int, float]]:
    """Held-out metric (without `eval/`) -> step -> value; {} if the run has no evaluation at step `last`."""
    records = [record for record in read_lines(run_dir / METRICS_FILE) if "eval/reward" in record]
    if last not in (record["step"] for record in records):
        return {}
    values: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith("eval/") and value is not None and record["step"] <= last:
                values.setdefault(name.removeprefix("eval/"), {})[record["step"]] = value
    return values


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its confidence interval; None for a single value.

    mean ± t_(0.975, n - 1) · std(values, n - 1) / sqrt(n)
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, _t(len(values) - 1) * error


def compare(runs: Mapping[str, Sequence[Evaluations]], planned: Mapping[str, int]) -> dict[str, Arm]:
    """What changed in each arm, and what the others have more than the first.

    Args:
      runs: arm -> its finished runs, one per seed.
      planned: arm -> seeds that it should have.
    """
    arms: dict[str, Arm] = {}
    base = next((runs[arm] for arm in planned), [])  # of the first arm
    for arm, count in planned.items():
        changes = {quantity.metric: _change(runs[arm], quantity.metric) for quantity in (*QUANTITIES, TRACES)}
        others = QUANTITIES if arms else ()
        differences = {quantity.metric: _difference(runs[arm], base, quantity.metric) for quantity in others}
        arms[arm] = Arm(len(runs[arm]), count, _known(changes), _known(differences))
    return arms


def comparison_markdown(arms: Mapping[str, Arm]) -> str:
    """The tables with their captions as Markdown; the second, of differences, where two arms have a seed in common."""
    parts = [_markdown(*_cells(arms)), *CAPTION]
    if rows := _difference_rows(arms):
        parts += [_markdown(_header(), rows), _difference_caption(arms)]
    return "\n\n".join(parts) + "\n"


def comparison_tables(arms: Mapping[str, Arm]) -> list[Table]:
    """The same for a terminal."""
    tables = [_terminal_table(*_cells(arms), "\n".join(CAPTION))]
    if rows := _difference_rows(arms):
        tables.append(_terminal_table(_header(), rows, _difference_caption(arms)))
    return tables


def write_comparison_csv(arms: Mapping[str, Arm], path: Path) -> None:
    """The numbers in full, one line per arm and metric; empty where a number is not known."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        facts = ("arm", "metric", "unit", "seeds", "planned")
        changes = ("first", "last", "change", "ci_low", "ci_high", "ci_over")
        differences = ("from_first", "from_first_low", "from_first_high", "from_first_seeds")
        writer.writerow((*facts, *changes, *differences))
        for name, arm in arms.items():
            for quantity in (*QUANTITIES, TRACES):
                it = arm.changes.get(quantity.metric)
                numbers: tuple = ("",) * 6
                if it is not None:
                    numbers = (it.first, it.last, it.change, *_limits(it.change, it.half_width), it.over or "")
                differs = arm.from_first.get(quantity.metric)
                more: tuple = ("",) * 4
                if differs is not None:
                    more = (differs.mean, *_limits(differs.mean, differs.half_width), differs.seeds)
                its = (name, f"eval/{quantity.metric}", quantity.unit, arm.finished, arm.planned)
                writer.writerow((*its, *numbers, *more))


def draw_comparison(
    runs: Mapping[str, Sequence[Evaluations]], path: Path, *, levels: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Draw a line per arm for each metric over the steps, the mean over its seeds, into `path`, a PNG.

    The band is the confidence interval over the seeds, where there are two or more.

    Args:
      runs: arm -> its finished runs; at least one arm has any.
      levels: metric -> label -> a value to compare it with, drawn as a dashed line.
    """
    drawn = {arm: of_arm for arm, of_arm in runs.items() if of_arm}
    rows = -(-len(QUANTITIES) // COLUMNS)
    figure = new_figure(4.1 * COLUMNS, 2.75 * rows + 0.3 + 0.2 * -(-len(drawn) // COLUMNS))
    for index, quantity in enumerate(QUANTITIES):
        axes = figure.add_subplot(rows, COLUMNS, index + 1)
        for (arm, of_arm), (colour, line) in zip(drawn.items(), _looks()):
            _draw_arm(axes, arm, [run.values.get(quantity.metric, {}) for run in of_arm], colour, line)
        own = [
            value
            for of_arm in drawn.values()
            for run in of_arm
            for value in run.values.get(quantity.level or "", {}).values()
        ]
        its = {quantity.level_label: float(np.mean(own))} if own else {}
        draw_levels(axes, {**its, **(levels or {}).get(quantity.metric, {})})
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        style_axes(axes, quantity.title, quantity.unit)
        if index + COLUMNS >= len(QUANTITIES):
            axes.set_xlabel("step", color=INK, fontsize=9)
    several = any(len(of_arm) > 1 for of_arm in drawn.values())
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="mean over seeds, band: 95 % confidence interval" if several else "one seed",
        title_fontsize=9,
        alignment="left",
        loc="outside upper left",
        ncols=COLUMNS,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.savefig(path, format="png")


def _t(freedom: int) -> float:
    """Quantile of Student's t for a two-sided interval of the confidence."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _change(runs: Sequence[Evaluations], metric: str) -> Change | None:
    """Over the runs that have the metric at both ends; None without any."""
    measured = [run for run in runs if {0, run.last} <= run.values.get(metric, {}).keys()]
    if not measured:
        return None
    ends = [(run.values[metric][0], run.values[metric][run.last]) for run in measured]
    firsts, lasts = zip(*ends)
    change, half_width = mean_interval([last - first for first, last in ends])
    over: Literal["seeds", "prompts"] | None = None if half_width is None else "seeds"
    if len(measured) == 1 and metric in measured[0].paired:
        paired = measured[0].paired[metric]
        half_width, over = _t(paired.count - 1) * paired.standard_error, "prompts"
    return Change(float(np.mean(firsts)), float(np.mean(lasts)), change, half_width, over)


def _difference(runs: Sequence[Evaluations], base: Sequence[Evaluations], metric: str) -> Difference | None:
    """Over the seeds for which both have the metric's last value; None without any."""
    lasts, bases = (
        {run.seed: values[run.last] for run in of_arm if run.last in (values := run.values.get(metric, {}))}
        for of_arm in (runs, base)
    )
    shared = [seed for seed in lasts if seed in bases]
    if not shared:
        return None
    mean, half_width = mean_interval([lasts[seed] - bases[seed] for seed in shared])
    return Difference(mean, half_width, len(shared))


def _known(found: Mapping[str, T | None]) -> dict[str, T]:
    return {name: it for name, it in found.items() if it is not None}


def _limits(mean: float, half_width: float | None) -> tuple[float | str, float | str]:
    """Of an interval, as a CSV file holds them."""
    return ("", "") if half_width is None else (mean - half_width, mean + half_width)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _terminal_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> Table:
    table = Table(caption=caption, caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for cells in rows:
        table.add_row(*cells)
    return table


def _header() -> list[str]:
    return ["arm", "seeds", *(f"{quantity.title}, {quantity.unit}" for quantity in QUANTITIES)]


def _difference_rows(arms: Mapping[str, Arm]) -> list[list[str]]:
    """A row per arm that has a seed in common with the first."""
    rows = []
    for name, arm in arms.items():
        if arm.from_first:
            cells = [_difference_cell(arm.from_first.get(quantity.metric), quantity.unit) for quantity in QUANTITIES]
            rows.append([f"{name} − {next(iter(arms))}", str(max(it.seeds for it in arm.from_first.values())), *cells])
    return rows


def _difference_caption(arms: Mapping[str, Arm]) -> str:
    return (
        f"What the last evaluation of each arm has more than that of {next(iter(arms))}: mean over the seeds that both "
        "have, paired, ± half the width of its 95 % confidence interval (Student t). What is said above about what is "
        "not comparable holds here."
    )


def _difference_cell(it: Difference | None, unit: str) -> str:
    return MISSING if it is None else _signed(it.mean, it.half_width, _digits(unit))


def _signed(mean: float, half_width: float | None, digits: int) -> str:
    interval = "" if half_width is None else f" ± {half_width:.{digits}f}"
    return f"{mean:+.{digits}f}{interval}"


def _digits(unit: str) -> int:
    return 1 if unit == "tokens" else 3


def _cells(arms: Mapping[str, Arm]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    header = [*_header(), TRACES.title]
    rows = []
    for name, arm in arms.items():
        cells = [_cell(arm.changes.get(quantity.metric), quantity.unit) for quantity in QUANTITIES]
        traces = arm.changes.get(TRACES.metric)
        rows.append([name, f"{arm.finished}/{arm.planned}", *cells, f"{traces.last:.3f}" if traces else MISSING])
    return header, rows


def _cell(it: Change | None, unit: str) -> str:
    if it is None:
        return MISSING
    return f"{_signed(it.change, it.half_width, _digits(unit))} → {it.last:.{_digits(unit)}f}"


def _draw_arm(axes: Axes, arm: str, seeds: Iterable[Mapping[int, float]], colour: str, line: str) -> None:
    at_step: dict[int, list[float]] = {}
    for values in seeds:
        for step, value in values.items():
            at_step.setdefault(step, []).append(value)
    steps = sorted(at_step)
    means, halves = zip(*(mean_interval(at_step[step]) for step in steps)) if steps else ((), ())
    axes.plot(steps, means, label=arm, linewidth=1.6, marker="o", markersize=3, color=colour, linestyle=line)
    banded = [i for i, half in enumerate(halves) if half is not None]
    low, high = ([means[i] + sign * halves[i] for i in banded] for sign in (-1, 1))
    axes.fill_between([steps[i] for i in banded], low, high, color=colour, alpha=0.12, linewidth=0)


def _looks() -> Iterator[tuple[str, str]]:
    """Colour and line of one arm after the other, all different for as long as possible."""
    while True:
        for line in ("-", "--", ":", "-."):
            for colour in color_sequences["tab10"]:
                yield to_hex(colour), line
