"""Means with intervals as cells of a study's tables: for Markdown, and for CSV files."""

from collections.abc import Iterable, Sequence

MISSING = "–"


def mean_cell(mean: float, half_width: float | None, digits: int, *, signed: bool) -> str:
    """`0.12 ± 0.03`; the mean alone if the half width of its interval is unknown.

    Args:
      digits: after the point.
      signed: write the sign of a positive mean, as for a change.
    """
    sign = "+" if signed else ""
    interval = "" if half_width is None else f" ± {half_width:.{digits}f}"
    return f"{mean:{sign}.{digits}f}{interval}"


def limits(mean: float, half_width: float | None) -> tuple[float | str, float | str]:
    """Limits of an interval for a CSV file; empty if it is unknown."""
    return ("", "") if half_width is None else (mean - half_width, mean + half_width)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is aligned to the left, the others to the right; no newline at its end."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
