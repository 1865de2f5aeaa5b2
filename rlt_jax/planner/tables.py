"""A plan's report as tables, sentences and JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from rlt_jax.configs import PRESETS
from rlt_jax.device.pinned import LIMIT_VARIABLE, pool_limit_gib
from rlt_jax.planner.ledger import Ledger, Phase, vllm_cache_tokens, vllm_sequences
from rlt_jax.planner.preflight import Check
from rlt_jax.planner.report import Report
from rlt_jax.planner.run_plan import plan, planned_bytes, shortfalls, vllm_line
from rlt_jax.report.log import is_live, print_plain
from rlt_jax.types import GB

SHORT = {  # phase -> the head of its column
    "score teacher": "teacher",
    "score student": "student",
    "score reference": "reference",
    "move reference": "move ref",
}


COMPARED = {
    **{name: PRESETS[name] for name in ("mono_basic", "mono85", "mono85_fallback", "mono96")},
    "mono85, 16384 + 16384": replace(
        PRESETS["mono85"],
        max_prompt_length=16384,
        max_completion_length=16384,
        per_device_train_batch_size=1,
        score_batch_size=1,
    ),
}
"""Runs of the comparison table."""


class Grid(NamedTuple):
    """A table: a title, heads, rows of texts; columns after the first are aligned to the right, but for `left` ones."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    by_row: bool = False  # a row, not a column, is what one reads as a whole


def grids(report: Report) -> Iterator[Grid]:
    """The tables, in the order in which they are shown."""
    yield _owners("GPU, GB", report.ledger, "gpu", [phase.gpu_bytes for phase in report.ledger.phases])
    yield _owners("Host, GB", report.ledger, "host", [phase.host_bytes for phase in report.ledger.phases])
    yield _comparison()


def _owners(title: str, ledger: Ledger, side: str, totals: Sequence[float]) -> Grid:
    entries = {phase.name: {entry.owner: entry for entry in getattr(phase, side)} for phase in ledger.phases}
    sources = {owner: entry.source for of_phase in entries.values() for owner, entry in of_phase.items()}
    rows = [
        (owner, *(_gb(of[owner].size) if owner in of else "" for of in entries.values()), source)
        for owner, source in sources.items()
    ]
    rows.append(("all", *map(_gb, totals), ""))
    heads = ("", *(SHORT.get(phase.name, phase.name) for phase in ledger.phases), "source")
    return Grid(title, heads, rows, left=(0, len(heads) - 1))


def _comparison() -> Grid:
    rows = []
    for name, config in COMPARED.items():
        ledger = plan(config)
        run, bound = ledger.run, planned_bytes(config)
        assert bound is not None  # all of them have a budget
        peak = ledger.gpu_peak
        rows.append(
            (
                name,
                f"{run.micro_batch} x {run.teacher_tokens:,}",
                f"{run.saved_attention}, {run.saved_mlp}",
                _gb(peak.gpu_bytes),
                peak.name,
                "none" if config.planned_gb is None else f"{config.planned_gb:g}",
                f"{config.budget_gb:g}",
                "no" if shortfalls(ledger, gpu_bytes=bound, host_bytes=None) else "yes",
                _gb(ledger.host_peak.host_bytes),
                f"{vllm_cache_tokens(ledger.shape, run):,}",
                " to ".join(map(str, vllm_sequences(ledger.shape, run))),
            )
        )
    heads = (
        "run",
        "micro-batch",
        "kept layers",
        "gpu",
        "in phase",
        "planned",
        "budget",
        "fits",
        "host",
        "vLLM tokens",
        "together",
    )
    return Grid("Presets, by formula, GB", heads, rows, left=(0, 4), by_row=True)


def sentences(report: Report) -> tuple[list[str], list[str]]:
    """What stands above the tables, and the verdict that stands below them."""
    config, ledger = report.config, report.ledger
    run, shape = ledger.run, ledger.shape
    if report.gpu is None:
        origin = "by formula, no GPU here"
    elif any(entry.source == "compiled" for phase in ledger.phases for entry in phase.gpu):
        origin = f"temporaries as compiled for {report.gpu.name}"
    else:
        origin = "by formula, nothing was compiled"
    top = [
        f"Plan of --preset {config.preset} ({origin}); GB is 1e9 bytes",
        f"  teacher {config.teacher}: {shape.parameters / 1e9:.3f} B parameters ({report.teacher.source})",
        f"  student {config.student}: {run.student.parameters / 1e9:.3f} B parameters ({report.student.source})",
        f"  update {run.micro_batch} x {run.teacher_tokens:,} tokens; of {shape.layers} layers it keeps the attention "
        f"of {run.saved_attention} and the MLP of {run.saved_mlp}",
        f"  score {run.score_batch} x {run.teacher_tokens:,} tokens (teacher, reference), "
        f"{run.score_batch} x {run.student_tokens:,} (student)",
    ]
    peak, host = ledger.gpu_peak, ledger.host_peak
    bottom = [
        "Before the start",
        *_check_lines(report.checks),
        "",
        f"GPU: peak {_gb(peak.gpu_bytes)} GB in {peak.name}; planned {_size(config.planned_gb)}, budget "
        f"{_size(config.budget_gb)}",
        f"Host: peak {_gb(host.host_bytes)} GB in {host.name}; "
        + (f"{report.host_bytes / GB:.1f} GB may be used" if report.host_bytes else "give --host-gb to check it"),
        f"Pinned: {_gb(ledger.pinned_bytes)} GB of the host's"
        + (f", under {LIMIT_VARIABLE}={pool_limit_gib(ledger.pinned_bytes)} (GiB)" if ledger.pinned_bytes else ""),
        f"Disk: a checkpoint is {_gb(ledger.checkpoint_bytes)} GB, {config.checkpoint.keep} are kept",
    ]
    if line := vllm_line(ledger):
        bottom.append(line)
    if report.gpu_bytes is not None:
        bound = f"{report.gpu_bytes / GB:g} GB"
        longest = f"{report.longest:,} tokens of prompt and completion" if report.longest else "none fits"
        sequences = "1 sequence" if report.largest == 1 else f"{report.largest} sequences"
        largest = f"{sequences} at this run's lengths" if report.largest else "none fits"
        bottom.append(f"Longest context in {bound}, nothing kept: {longest}")
        bottom.append(f"Largest micro-batch in {bound}, nothing kept: {largest}")
    if report.shortfalls:
        bottom.append("Does not fit")
        bottom += [f"  {line}" for line in report.shortfalls]
        if report.lowerings:
            bottom.append("It would fit with one of" if len(report.lowerings) > 1 else "It would fit with")
            bottom += [
                f"  {' '.join(lowering.flags)}  (GPU {_gb(lowering.gpu_bytes)}, host {_gb(lowering.host_bytes)} GB)"
                for lowering in report.lowerings
            ]
        else:
            bottom.append("Nothing that could be lowered makes it fit: take a smaller model or a larger GPU")
    elif not report.fits:
        failed = [check for check in report.checks if check.status == "problem" and check.concerns_plan]
        bottom.append(f"Does not hold on this machine: {', '.join(check.name for check in failed)} (see above)")
    elif report.gpu_bytes is None:
        bottom.append("No budget and no GPU to compare with: give --budget-gb")
    else:
        bottom.append("Fits")
    return top, bottom


def report_json(report: Report) -> dict[str, Any]:
    """The report for scripts; sizes in bytes."""

    def phase_json(phase: Phase) -> dict[str, Any]:
        return {
            "gpu_bytes": phase.gpu_bytes,
            "host_bytes": phase.host_bytes,
            "gpu": [asdict(entry) for entry in phase.gpu],
            "host": [asdict(entry) for entry in phase.host],
        }

    ledger, run = report.ledger, report.ledger.run
    own, shared = vllm_sequences(ledger.shape, run)
    return {
        "fits": report.fits,
        "shortfalls": report.shortfalls,
        "gpu_bytes": report.gpu_bytes,
        "host_bytes": report.host_bytes,
        "gpu_peak_bytes": ledger.gpu_peak.gpu_bytes,
        "gpu_peak_phase": ledger.gpu_peak.name,
        "host_peak_bytes": ledger.host_peak.host_bytes,
        "pinned_bytes": ledger.pinned_bytes,
        "checkpoint_bytes": ledger.checkpoint_bytes,
        "parameters": {"teacher": ledger.shape.parameters, "student": run.student.parameters},
        "run": asdict(run),
        "phases": {phase.name: phase_json(phase) for phase in ledger.phases},
        "vllm": None
        if run.sampler == "native"
        else {
            "cache_tokens": vllm_cache_tokens(ledger.shape, run),
            "sequences": own,
            "sequences_sharing_prompts": shared,
        },
        "longest_context": report.longest,
        "largest_micro_batch": report.largest,
        "lower": [
            {"flags": " ".join(low.flags), "gpu_bytes": low.gpu_bytes, "host_bytes": low.host_bytes}
            for low in report.lowerings
        ],
        "checks": [asdict(check) for check in report.checks],
        "gpu": None if report.gpu is None else asdict(report.gpu),
    }


def show(report: Report, console: Console) -> None:
    """Print a report: tables in a terminal, aligned text elsewhere."""
    top, bottom = sentences(report)
    live = is_live(console)

    def lines(texts: Sequence[str]) -> None:
        if live:
            console.print("\n".join(texts), markup=False, highlight=False, soft_wrap=True)
        else:
            print_plain(console, "\n".join(texts))

    lines(top)
    for grid in grids(report):
        if not live:
            lines(["", *plain_table(grid)])
        elif max(map(len, plain_table(grid))) <= console.width:
            console.print(rich_table(grid))
        else:
            lines(["", *stacked(grid)])
    lines(["", *bottom])


def rich_table(grid: Grid) -> Table:
    """A grid for a terminal that is wide enough."""
    table = Table(title=grid.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for number, head in enumerate(grid.heads):
        table.add_column(f"{head}  ", justify="left" if number in grid.left else "right", no_wrap=True)
    for row in grid.rows:
        table.add_row(*(f"{cell}  " for cell in row))
    return table


def stacked(grid: Grid) -> list[str]:
    """A grid for a narrow terminal: what stands in a column as one line, or in a row where rows are runs."""
    if grid.by_row:
        parts = [(row[0], zip(grid.heads[1:], row[1:])) for row in grid.rows]
    else:
        owners = [row[0] for row in grid.rows]
        parts = [(head, zip(owners, column)) for head, *column in zip(grid.heads, *grid.rows)][1:]
    lines = [grid.title]
    for name, cells in parts:
        lines.append(f"  {name}: {', '.join(f'{what} {cell}' for what, cell in cells if cell)}")
    return lines


def plain_table(grid: Grid) -> list[str]:
    """A grid as aligned lines, its title first."""
    table = [grid.heads, *grid.rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [grid.title]
    for row in table:
        cells = [
            cell.ljust(width) if number in grid.left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def _gb(size: float) -> str:
    return f"{size / GB:.2f}"


def _size(gb: float | None) -> str:
    return "none" if gb is None else f"{gb:g} GB"


def _check_lines(checks: Sequence[Check]) -> list[str]:
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"  {check.status:<7}  {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':<{13 + width}}{check.advice}")
    return lines
