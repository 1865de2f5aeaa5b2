"""Plots of a run's metrics: curves.png in the run folder."""

import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rlt_jax.disk import replace_file
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.step_lines import iter_lines
from rlt_jax.report.writer import METRICS_FILE

CURVES_FILE = "curves.png"
TRAIN, EVAL, INK, FAINT = "#2f6db3", "#d9541e", "#222222", "#8a8a8a"
COLUMNS = 3
LABEL_HEIGHT = 0.1  # of a line's label, as a share of its panel's height
SMOOTH_FROM = 16  # from this many points on, a running mean is drawn over the raw line


log = logging.getLogger("rlt_jax.report")


@dataclass(frozen=True)
class Panel:
    """One plot: a metric over the steps."""

    title: str
    unit: str
    metric: str  # its name in metrics.jsonl; for held-out prompts it follows "eval/"
    low: str | None = None  # metrics at the limits of the band behind the line
    high: str | None = None
    level: str | None = None  # a metric to compare with, drawn as a dashed line
    level_label: str = ""


PANELS = (
    Panel("Reward", "nats, weighted", "reward"),
    Panel("Solution log-prob", "nats per token", "component/solution_logp/mean"),
    Panel("Explanation KL, teacher to student", "nats per token", "component/thought_kl/mean"),
    Panel("KL to the reference", "nats per token", "kl"),
    Panel(
        "Completion length",
        "tokens: mean, and min to max",
        "completion_length/mean",
        low="completion_length/min",
        high="completion_length/max",
    ),
    Panel(
        "Copy rate",
        "share of the explanation",
        "copy_rate",
        level="trace_copy_rate",
        level_label="true traces",
    ),
)


def draw_curves(run_dir: Path, *, panels: Sequence[Panel] = PANELS) -> Path:
    """Draw the curves of a run from its metrics.jsonl into curves.png, without panels that have no values.

    Training batches are a line (from 16 points on, a running mean over the faint raw values), held-out prompts points.

    Returns:
      The path of the picture.
    Raises:
      UserError: the run has no values for any panel, or its folder cannot be written.
    """
    run_dir = Path(run_dir)
    records = _drawn_values(run_dir / METRICS_FILE, panels)
    shown = [
        panel
        for panel in panels
        if any(_series(records, name)[0].size for name in (panel.metric, f"eval/{panel.metric}"))
    ]
    if not shown:
        raise UserError(
            f"expected metrics to draw in {run_dir / METRICS_FILE}, found none: "
            "give the folder of a run that has logged at least one step"
        )
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(4.1 * columns, 2.75 * rows + 0.55)
    # the same steps on all panels, so that they compare and one with few evaluations is not stretched
    last = max(int(record["step"]) for record in records)
    for index, panel in enumerate(shown):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, panel, records)
        axes.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))
        if index + columns >= len(shown):
            axes.set_xlabel("step", color=INK, fontsize=9)
    _draw_legend(figure, shown, records)
    path, picture = run_dir / CURVES_FILE, io.BytesIO()
    figure.savefig(picture, format="png")
    with writing_to(run_dir):
        replace_file(path, picture.getvalue())
    return path


def draw_curves_or_warn(run_dir: Path) -> Path | None:
    """As `draw_curves`, for the end of a run, which does not fail for a picture: None, with a warning in the log."""
    try:
        return draw_curves(run_dir)
    except UserError as error:
        log.warning("%s was not drawn: %s", CURVES_FILE, error)
        return None


def _drawn_values(file: Path, panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Step and drawn numbers of each line of metrics: those of 100,000 steps are many, and few are drawn."""
    names = {name for panel in panels for name in (panel.metric, panel.low, panel.high, panel.level) if name}
    names |= {f"eval/{panel.metric}" for panel in panels}
    return [
        {name: value for name, value in line.items() if name in names and _is_number(value)} | {"step": line["step"]}
        for line in iter_lines(file)
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and its neighbours, f64[N] -> f64[N]; at the ends, over those that exist."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, mode="same") / np.convolve(np.ones_like(values), kernel, mode="same")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in this project's style; width and height in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches
    figure = Figure(figsize=(width, height), dpi=150, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)  # no pyplot: its global state belongs to the user
    return figure


def style_axes(axes: Axes, title: str, unit: str) -> None:
    """Set title, unit, grid and ticks of a plot. Call it after drawing the data, which determines the scale."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=16)
    axes.text(0, 1.025, unit, transform=axes.transAxes, fontsize=8, color=FAINT)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bdbdbd")
    axes.tick_params(colors="#555555", labelsize=8.5, length=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(y=0.12)
    bottom, top = axes.get_ylim()
    if top - bottom < 1e-6:  # flat up to rounding, which an axis of 1e-17 would show
        axes.set_ylim((bottom + top) / 2 - 0.05, (bottom + top) / 2 + 0.05)


def draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Draw dashed lines to compare with, and their labels. Call it after drawing the data, which determines the scale.

    A label is above its line, or below it if the next line above leaves no room.

    Args:
      levels: label -> value.
    """
    for value in levels.values():
        axes.axhline(value, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
    bottom, top = axes.get_ylim()
    above = math.inf
    for label, value in sorted(levels.items(), key=lambda level: -level[1]):
        below = above - value < LABEL_HEIGHT * (top - bottom)
        axes.annotate(
            label,
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(-2, -3 if below else 3),
            textcoords="offset points",
            ha="right",
            va="top" if below else "baseline",
            color=FAINT,
            fontsize=8,
        )
        above = value


def _draw_panel(axes: Axes, panel: Panel, records: Sequence[Mapping[str, Any]]) -> None:
    steps, values = _series(records, panel.metric)
    if panel.low and panel.high:
        (low_steps, low), (high_steps, high) = _series(records, panel.low), _series(records, panel.high)
        if low.size and np.array_equal(low_steps, high_steps):
            axes.fill_between(low_steps, low, high, color=TRAIN, alpha=0.12, linewidth=0)
    if values.size >= SMOOTH_FROM:
        window = max(3, values.size // 12) | 1  # odd, so that the mean is centred
        axes.plot(steps, values, color=TRAIN, alpha=0.28, linewidth=0.9)
        axes.plot(steps, running_mean(values, window), color=TRAIN, linewidth=1.9)
    elif values.size:
        axes.plot(steps, values, color=TRAIN, linewidth=1.6, marker="o", markersize=3)
    if panel.level:
        level = _series(records, panel.level)[1]
        if level.size:
            draw_levels(axes, {panel.level_label: float(level.mean())})
    eval_steps, eval_values = _series(records, f"eval/{panel.metric}")
    if eval_values.size:
        axes.plot(eval_steps, eval_values, color=EVAL, linestyle=(0, (1, 2)), linewidth=1.0)
        axes.scatter(eval_steps, eval_values, s=30, color=EVAL, edgecolor="white", linewidth=0.8, zorder=5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    style_axes(axes, panel.title, panel.unit)


def _draw_legend(figure: Figure, panels: Sequence[Panel], records: Sequence[Mapping[str, Any]]) -> None:
    """One legend for all panels, with what they show."""
    entries = []
    points = max(_series(records, panel.metric)[0].size for panel in panels)
    if points:
        label = "training batches (running mean)" if points >= SMOOTH_FROM else "training batches"
        entries.append(Line2D([], [], color=TRAIN, linewidth=1.9, label=label))
    if any(_series(records, f"eval/{panel.metric}")[0].size for panel in panels):
        entries.append(Line2D([], [], color=EVAL, linestyle="", marker="o", markersize=5.5, label="held-out prompts"))
    figure.legend(handles=entries, loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=INK)


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps i64[N] and values f64[N] of a metric, from the lines that have a value."""
    points = [(record["step"], record[name]) for record in records if name in record]
    return np.array([step for step, _ in points], dtype=np.int64), np.array([value for _, value in points], dtype=float)
