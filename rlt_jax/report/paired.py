"""Did a run help? Metrics before and after, paired by held-out prompt, and the summary at the end of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlt_jax.report.log import print_plain, shows_tables, table_width


@dataclass(frozen=True)
class PairedChange:
    """Change of a quantity over the same prompts; the units are those of the quantity."""

    mean_before: float
    mean_after: float
    change: float  # mean_after - mean_before
    standard_error: float  # of the change
    z: float  # change / standard_error; 0 if nothing changed, ±inf if every prompt changed by the same amount
    count: int  # prompts


def paired_change(before: np.ndarray, after: np.ndarray) -> PairedChange:
    """Mean change from before to after, and its standard error.

        d_i = after_i - before_i,   change = mean d,   standard_error = std(d, n - 1) / sqrt(n),   z = change / se

    Pairing removes the variation between prompts, which is far larger than the effect of a few steps.

    Args:
      before, after: f64[N], one value per prompt (its mean over samples), in the same order.
    Raises:
      ValueError: fewer than two prompts, unequal shapes, or a value that is not finite.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.ndim != 1 or before.shape != after.shape or before.size < 2:
        raise ValueError(f"expected two f64[N] with equal N >= 2, got shapes {before.shape} and {after.shape}")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("expected finite values before and after, got NaN or inf")
    differences = after - before
    change = float(differences.mean())
    error = float(differences.std(ddof=1) / math.sqrt(before.size))
    z_without_spread = math.copysign(math.inf, change) if change else 0.0  # all prompts changed by the same amount
    z = change / error if error > 0 else z_without_spread
    return PairedChange(float(before.mean()), float(after.mean()), change, error, z, before.size)


def format_summary(changes: Mapping[str, PairedChange], files: Mapping[str, Path], *, where: str = "") -> str:
    """The summary of a run as plain text: each quantity before -> after with its change, then the files.

    Args:
      changes: name (with its unit, if any) -> change on the held-out prompts.
      files: name -> path.
      where: where the held-out prompts are from, such as `of eval.jsonl`.
    """
    lines = []
    if changes:
        rows = [_cells(name, change) for name, change in changes.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append(_title(changes, where))
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            name, before, after, change, z = row[0].ljust(widths[0]), *cells[1:]
            lines.append(f"  {name}  {before} -> {after}  change {change}  (z {z})")
    if files:
        lines.append("Files")
        width = max(map(len, files))
        lines += [f"  {name:<{width}}  {path}" for name, path in files.items()]
    return "\n".join(lines)


def summary_table(changes: Mapping[str, PairedChange], *, where: str = "") -> Table:
    """The changes as a table for a terminal; `where` as in `format_summary`."""
    table = Table(title=Text(_title(changes, where)), title_justify="left")
    table.add_column("quantity")
    for heading in ("before", "after", "change ± standard error", "z"):
        table.add_column(heading, justify="right")
    for name, change in changes.items():
        table.add_row(*_cells(name, change))
    return table


def print_summary(
    changes: Mapping[str, PairedChange], files: Mapping[str, Path], *, where: str = "", console: Console | None = None
) -> None:
    """Print the summary of a run, as `format_summary`: as a table in a terminal that is wide enough, else as text."""
    console = console or get_console()
    table = summary_table(changes, where=where)
    if not shows_tables(console, width=table_width(table)):
        print_plain(console, format_summary(changes, files, where=where))
        return
    if changes:
        console.print(table)
    console.print(format_summary({}, files), markup=False, highlight=False, soft_wrap=True)


def _title(changes: Mapping[str, PairedChange], where: str) -> str:
    counts = ", ".join(map(str, sorted({change.count for change in changes.values()})))
    prompts = f"{counts} prompts {where}".rstrip()
    return f"Held-out prompts, before and after ({prompts}, paired; ± standard error)"


def _cells(name: str, paired: PairedChange) -> tuple[str, str, str, str, str]:
    """Name, before, after, change ± standard error, z."""
    change = f"{paired.change:+.4f} ± {paired.standard_error:.4f}"
    return name, f"{paired.mean_before:.4f}", f"{paired.mean_after:.4f}", change, f"{paired.z:+.1f}"
