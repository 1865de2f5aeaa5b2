"""Did a run help? Before and after on the same held-out prompts, paired by prompt, and the text that ends a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import get_console
from rich.console import Console
from rich.table import Table

from rlt_jax.report.log import is_live, print_plain


@dataclass(frozen=True)
class PairedChange:
    """Change of a quantity over the same prompts; the units are those of the quantity."""

    mean_before: float
    mean_after: float
    change: float  # mean_after - mean_before
    standard_error: float  # of the change
    z: float  # change / standard_error; 0 when nothing changed, ±inf when every prompt changed by the same
    count: int  # prompts


def paired_change(before: np.ndarray, after: np.ndarray) -> PairedChange:
    """Mean change from before to after, and how sure it is.

        d_i = after_i - before_i,   change = mean d,   standard_error = std(d, n - 1) / sqrt(n),   z = change / se

    Pairing takes out the spread between prompts, which is far larger than what a few steps move.

    Args:
      before, after: f64[N], one value per prompt (its mean over samples), in the same order.
    Raises:
      ValueError: fewer than two prompts, unequal shapes, or a value that is not finite.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size < 2:
        raise ValueError(f"expected two f64[N] with equal N >= 2, got shapes {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("expected finite values before and after, got NaN or inf")
    differences = second - first
    change = float(differences.mean())
    error = float(differences.std(ddof=1) / math.sqrt(first.size))
    certain = math.copysign(math.inf, change) if change else 0.0  # all prompts changed by the same
    z = change / error if error > 0 else certain
    return PairedChange(float(first.mean()), float(second.mean()), change, error, z, first.size)


def format_summary(changes: Mapping[str, PairedChange], files: Mapping[str, Path]) -> str:
    """The end of a run as plain text: each quantity before -> after with its change, then where the files are.

    Args:
      changes: name (with its unit where it has one) -> change on the held-out prompts.
      files: what it is -> where it is.
    """
    lines = []
    if changes:
        rows = [_cells(name, change) for name, change in changes.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append(_title(changes))
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            name, before, after, change, z = row[0].ljust(widths[0]), *cells[1:]
            lines.append(f"  {name}  {before} -> {after}  change {change}  (z {z})")
    if files:
        lines.append("Files")
        width = max(map(len, files))
        lines += [f"  {name:<{width}}  {path}" for name, path in files.items()]
    return "\n".join(lines)


def summary_table(changes: Mapping[str, PairedChange]) -> Table:
    """The changes as a table for a terminal."""
    table = Table(title=_title(changes), title_justify="left")
    table.add_column("quantity")
    for heading in ("before", "after", "change ± standard error", "z"):
        table.add_column(heading, justify="right")
    for name, change in changes.items():
        table.add_row(*_cells(name, change))
    return table


def print_summary(
    changes: Mapping[str, PairedChange], files: Mapping[str, Path], *, console: Console | None = None
) -> None:
    """Show the end of a run: a table in a terminal, `format_summary`'s text elsewhere."""
    console = console or get_console()
    if not is_live(console):
        print_plain(console, format_summary(changes, files))
        return
    if changes:
        console.print(summary_table(changes))
    console.print(format_summary({}, files), markup=False, highlight=False, soft_wrap=True)


def _title(changes: Mapping[str, PairedChange]) -> str:
    counts = sorted({change.count for change in changes.values()})
    return f"Held-out prompts, before and after ({', '.join(map(str, counts))} prompts, paired; ± standard error)"


def _cells(name: str, it: PairedChange) -> tuple[str, str, str, str, str]:
    """Name, before, after, change ± standard error, z."""
    change = f"{it.change:+.4f} ± {it.standard_error:.4f}"
    return name, f"{it.mean_before:.4f}", f"{it.mean_after:.4f}", change, f"{it.z:+.1f}"
