"""A comparison of arms as Markdown, as tables in a terminal, as a CSV file and as a picture."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from rlt_jax.evals.intervals import t_interval
from rlt_jax.report.curves import COLUMNS, INK, Panel, draw_levels, new_figure, style_axes
from rlt_jax.studies.cells import MISSING, limits, markdown_table, mean_cell
from rlt_jax.studies.comparison import QUANTITIES, TRACES, Arm, Change, Difference, Evaluations

CAPTION = (
    "Change of each held-out metric from the first evaluation to the last, mean over seeds ± half the width of its "
    "95 % confidence interval (Student t); after the arrow, the last value. For an arm with one seed, the interval is "
    "over the held-out prompts, paired, for the metrics that are recorded by prompt. Seeds: finished / planned; only "
    "finished runs count. Seconds: median time of a step, mean over seeds with its interval.",
    "Look at the solution log-prob first. Rewards of arms with different coefficients, reductions or terms are not "
    "comparable. Neither are solution log-probs and KLs of arms with different student temperatures, nor KLs by "
    "different estimators.",
)  # paragraphs


def comparison_markdown(arms: Mapping[str, Arm]) -> str:
    """The tables with captions as Markdown; the second, of differences, only if two arms share a seed."""
    parts = [markdown_table(*_cells(arms)), *CAPTION]
    if rows := _difference_rows(arms):
        parts += [markdown_table(_header(), rows), _difference_caption(arms)]
    return "\n\n".join(parts) + "\n"


def comparison_tables(arms: Mapping[str, Arm]) -> list[Table]:
    """The same tables for a terminal."""
    tables = [_terminal_table(*_cells(arms), "\n".join(CAPTION))]
    if rows := _difference_rows(arms):
        tables.append(_terminal_table(_header(), rows, _difference_caption(arms)))
    return tables


def write_comparison_csv(arms: Mapping[str, Arm], path: Path) -> None:
    """Write all numbers, one line per arm and metric; unknown numbers are empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        facts = ("arm", "metric", "unit", "seeds", "planned")
        changes = ("first", "last", "change", "ci_low", "ci_high", "ci_over")
        differences = ("from_first", "from_first_low", "from_first_high", "from_first_seeds", "from_first_questions")
        tested = ("over_questions_low", "over_questions_high", "p", "p_holm", "certain")
        writer.writerow((*facts, *changes, *differences, *tested))
        for name, arm in arms.items():
            for quantity in (*QUANTITIES, TRACES):
                numbers: tuple = ("",) * 6
                if (change := arm.changes.get(quantity.metric)) is not None:
                    interval = limits(change.change, change.half_width)
                    numbers = (change.first, change.last, change.change, *interval, change.over or "")
                from_first: tuple = ("",) * 10
                if (difference := arm.from_first.get(quantity.metric)) is not None:
                    interval = limits(difference.mean, difference.half_width)
                    counts = (difference.seeds, difference.questions)
                    from_first = (difference.mean, *interval, *counts, *_tested(difference))
                arm_facts = (name, f"eval/{quantity.metric}", quantity.unit, arm.finished, arm.planned)
                writer.writerow((*arm_facts, *numbers, *from_first))


def _tested(difference: Difference) -> tuple[float | str, ...]:
    """Limits of the interval over questions, p, p corrected by Holm, and whether the difference is certain."""
    p_values = ("" if p is None else p for p in (difference.p_value, difference.corrected))
    certain = "" if difference.corrected is None else str(difference.certain).lower()
    return (*limits(difference.mean, difference.over_questions), *p_values, certain)


def draw_comparison(
    runs: Mapping[str, Sequence[Evaluations]], path: Path, *, levels: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Draw each metric over the steps, a line per arm with the mean over its seeds, into `path`, a PNG file.

    With two or more seeds, a band shows the confidence interval over the seeds.

    Args:
      runs: arm -> its finished runs; at least one arm must have some.
      levels: metric -> label -> value to compare with, drawn as a dashed line.
    """
    drawn = {arm: seeds for arm, seeds in runs.items() if seeds}
    rows = -(-len(QUANTITIES) // COLUMNS)
    figure = new_figure(4.1 * COLUMNS, 2.75 * rows + 0.3 + 0.2 * -(-len(drawn) // COLUMNS))
    for index, quantity in enumerate(QUANTITIES):
        axes = figure.add_subplot(rows, COLUMNS, index + 1)
        for (arm, seeds), (colour, line) in zip(drawn.items(), _line_styles()):
            _draw_arm(axes, arm, [run.values.get(quantity.metric, {}) for run in seeds], colour, line)
        draw_levels(axes, {**_own_level(quantity, drawn), **(levels or {}).get(quantity.metric, {})})
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        style_axes(axes, quantity.title, quantity.unit)
        if index + COLUMNS >= len(QUANTITIES):
            axes.set_xlabel("step", color=INK, fontsize=9)
    _draw_legend(figure, several=any(len(seeds) > 1 for seeds in drawn.values()))
    figure.savefig(path, format="png")


def _own_level(quantity: Panel, runs: Mapping[str, Sequence[Evaluations]]) -> dict[str, float]:
    """Label -> mean of the metric that a quantity is compared with, if the runs have it."""
    values = [
        value for seeds in runs.values() for run in seeds for value in run.values.get(quantity.level or "", {}).values()
    ]
    return {quantity.level_label: float(np.mean(values))} if values else {}


def _draw_arm(axes: Axes, arm: str, seeds: Iterable[Mapping[int, float]], colour: str, line: str) -> None:
    at_step: dict[int, list[float]] = {}
    for values in seeds:
        for step, value in values.items():
            at_step.setdefault(step, []).append(value)
    steps = sorted(at_step)
    means, halves = zip(*(t_interval(at_step[step]) for step in steps)) if steps else ((), ())
    axes.plot(steps, means, label=arm, linewidth=1.6, marker="o", markersize=3, color=colour, linestyle=line)
    banded = [i for i, half in enumerate(halves) if half is not None]
    low, high = ([means[i] + sign * halves[i] for i in banded] for sign in (-1, 1))
    axes.fill_between([steps[i] for i in banded], low, high, color=colour, alpha=0.12, linewidth=0)


def _draw_legend(figure: Figure, *, several: bool) -> None:
    """One legend of the arms for all panels."""
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


def _line_styles() -> Iterator[tuple[str, str]]:
    """Colours and line styles for the arms, all different for the first 40 arms."""
    while True:
        for line in ("-", "--", ":", "-."):
            for colour in color_sequences["tab10"]:
                yield to_hex(colour), line


def _terminal_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> Table:
    table = Table(caption=caption, caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for cells in rows:
        table.add_row(*cells)
    return table


def _header() -> list[str]:
    return ["arm", "seeds", *(f"{quantity.title}, {quantity.unit}" for quantity in QUANTITIES)]


def _cells(arms: Mapping[str, Arm]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    header = [*_header(), TRACES.title, "Step, seconds"]
    rows = []
    for name, arm in arms.items():
        cells = [_change_cell(arm.changes.get(quantity.metric), quantity.unit) for quantity in QUANTITIES]
        traces = arm.changes.get(TRACES.metric)
        of_traces = f"{traces.last:.3f}" if traces else MISSING
        seconds = mean_cell(*arm.step_seconds, 2, signed=False) if arm.step_seconds else MISSING
        rows.append([name, f"{arm.finished}/{arm.planned}", *cells, of_traces, seconds])
    return header, rows


def _change_cell(change: Change | None, unit: str) -> str:
    if change is None:
        return MISSING
    return f"{_signed(change.change, change.half_width, unit)} → {change.last:.{_digits(unit)}f}"


def _difference_rows(arms: Mapping[str, Arm]) -> list[list[str]]:
    """A row for each arm that shares a seed with the first."""
    rows = []
    for name, arm in arms.items():
        if arm.from_first:
            cells = [_difference_cell(arm.from_first.get(quantity.metric), quantity.unit) for quantity in QUANTITIES]
            seeds = max(difference.seeds for difference in arm.from_first.values())
            rows.append([f"{name} − {next(iter(arms))}", str(seeds), *cells])
    return rows


def _difference_caption(arms: Mapping[str, Arm]) -> str:
    return (
        f"The last evaluation of each arm minus that of {next(iter(arms))}: mean over the seeds and held-out questions "
        "that both have, paired by both, ± half the width of its 95 % confidence interval for other seeds and other "
        "questions (for other seeds alone where a metric is not recorded by question). What is not comparable above is "
        "not comparable here either."
    )


def _difference_cell(difference: Difference | None, unit: str) -> str:
    return MISSING if difference is None else _signed(difference.mean, difference.half_width, unit)


def _signed(mean: float, half_width: float | None, unit: str) -> str:
    return mean_cell(mean, half_width, _digits(unit), signed=True)


def _digits(unit: str) -> int:
    return 1 if unit == "tokens" else 3
