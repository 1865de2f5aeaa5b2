"""The tables of a pipeline as Markdown, as a CSV file and as a picture."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlt_jax.report.curves import EVAL, FAINT, INK, new_figure, style_axes
from rlt_jax.studies.cells import MISSING, limits, markdown_table, mean_cell
from rlt_jax.studies.outcomes import Table, Values, estimate, is_difference

CAPTION = (
    "Mean ± half the width of its 95 % confidence interval: with two or more seeds over the seeds (Student t), with "
    "one seed over its prompts, if the quantity is known by prompt. Differences are taken prompt by prompt under "
    "the same seed, so their intervals are those of paired comparisons. An interval over prompts says what other "
    "prompts would change, not another seed; one over seeds, which share their prompts, the other way round."
)


def table_markdown(table: Table) -> str:
    """A table with its heading, as Markdown."""
    header = ["", "seeds", *(f"{measure.title}, {measure.unit}" for measure in table.measures)]
    rows = []
    for variant, quantities in table.rows.items():
        seeds = max(map(len, quantities.values()))
        cells = [
            _cell(quantities.get(measure.key), measure.digits, signed=is_difference(variant))
            for measure in table.measures
        ]
        rows.append([variant, str(seeds), *cells])
    return f"## {table.title}\n\n{table.about}\n\n{markdown_table(header, rows)}\n"


def write_outcome_csv(tables: Iterable[Table], path: Path) -> None:
    """Write all numbers, one line per table, variant and quantity; unknown numbers are empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = ("table", "variant", "quantity", "unit", "seeds", "prompts", "mean", "ci_low", "ci_high", "over")
        writer.writerow(names)
        for table in tables:
            for variant, quantities in table.rows.items():
                for measure in table.measures:
                    if not quantities.get(measure.key):
                        continue
                    mean, half, over, seeds, prompts = estimate(quantities[measure.key])
                    facts = (table.title, variant, measure.key, measure.unit, seeds, prompts)
                    writer.writerow((*facts, mean, *limits(mean, half), over or ""))


def draw_outcomes(table: Table, path: Path, *, measures: Sequence[str]) -> None:
    """Draw the variants of a table (without differences) as dots with their intervals, one panel per quantity."""
    shown = [measure for measure in table.measures if measure.key in measures]
    variants = [variant for variant in table.rows if not is_difference(variant)]
    figure = new_figure(3.6 * len(shown) + 1.2, 0.42 * len(variants) + 1.5)
    for index, measure in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), index + 1)
        for place, variant in enumerate(reversed(variants)):
            if values := table.rows[variant].get(measure.key):
                found = estimate(values)
                axes.errorbar(
                    found.mean,
                    place,
                    xerr=found.half_width or 0.0,
                    fmt="o",
                    color=EVAL,
                    ecolor=FAINT,
                    capsize=3,
                    markersize=6,
                )
        axes.set_ylim(-0.6, len(variants) - 0.4)
        style_axes(axes, measure.title, measure.unit)
        # after style_axes, which sets its own ticks
        axes.set_yticks(range(len(variants)), list(reversed(variants)) if index == 0 else [""] * len(variants))
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.tick_params(axis="y", colors=INK)
    figure.savefig(path, format="png")


def _cell(per_seed: Sequence[Values] | None, digits: int, *, signed: bool) -> str:
    if not per_seed:
        return MISSING
    found = estimate(per_seed)
    return mean_cell(found.mean, found.half_width, digits, signed=signed)
