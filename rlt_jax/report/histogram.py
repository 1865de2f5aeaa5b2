"""Histograms of a data set's rewards, as text and as a picture."""

import math
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from rlt_jax.report.curves import EVAL, INK, TRAIN, new_figure, style_axes

TEXT_BINS = 12
PICTURE_BINS = 40
WIDTH = 40  # characters of the longest bar


def histogram_text(values: np.ndarray, *, bins: int = TEXT_BINS) -> str:
    """One line per bin of equal width: its limits, its count, and a bar, which is visible for any count above 0.

    Args:
      values: f64[N], finite, N >= 1.
    """
    counts, edges = np.histogram(values, bins=bins)
    limits = [f"{edge:.3f}" for edge in edges]
    width, digits = max(map(len, limits)), len(str(counts.max()))
    bars = ["#" * math.ceil(WIDTH * count / counts.max()) for count in counts]
    return "\n".join(
        f"{low:>{width}} to {high:>{width}}  {count:>{digits}}  {bar}".rstrip()
        for low, high, count, bar in zip(limits, limits[1:], counts, bars)
    )


def draw_histogram(rewards: np.ndarray, path: Path, *, kept: np.ndarray | None = None) -> None:
    """Draw the histogram of the rewards into `path`, a PNG file whatever its name.

    Args:
      rewards: f64[N], finite, N >= 1.
      kept: i64[K], rows to highlight.
    """
    figure = new_figure(5.6, 3.6)
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(rewards, bins=PICTURE_BINS).tolist()
    axes.hist(rewards, edges, color=TRAIN, label=f"all {len(rewards)} rows")
    if kept is not None:
        axes.hist(rewards[kept], edges, color=EVAL, label=f"{len(kept)} kept")
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    axes.set_xlabel("reward (nats, weighted)", color=INK, fontsize=9)
    style_axes(axes, "Rewards", "rows")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.savefig(path, format="png")
