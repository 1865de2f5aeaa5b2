"""Show a plan's report as tables and sentences, or as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from rlt_jax.configs import PRESETS
from rlt_jax.device.pinned import LIMIT_VARIABLE, pool_limit_gib
from rlt_jax.planner.ledger import Ledger, PhaseMemory, vllm_cache_tokens, vllm_sequences
from rlt_jax.planner.preflight import Check
from rlt_jax.planner.report import Report
from rlt_jax.planner.run_plan import plan, planned_bytes, shortfalls, vllm_line
from rlt_jax.planner.shapes import Pass, RunShape
from rlt_jax.report.log import is_live, print_plain, shows_tables
from rlt_jax.terminal import visible
from rlt_jax.types import GB, Attention

COLUMN_HEADS = {  # phase -> shorter head of its column
    "score teacher": "teacher",
    "score student": "student",
    "score reference": "reference",
    "move reference": "move ref",
}

ATTENTION: dict[Attention, str] = {
    "cudnn": "cuDNN's, over segments; what rows share is computed once",
    "flash-attn3": "flash-attn3's, over segments; what rows share is computed once",
    "rows": "cuDNN's, a row a sequence, padded",
    "masked": "no fused kernel, all scores exist",
}

COMPARED_RUNS = {
    **{name: PRESETS[name] for name in ("mono_basic", "mono85", "mono85_fallback", "mono96")},
    "mono85, 16384 + 16384": replace(
        PRESETS["mono85"],
        max_prompt_length=16384,
        max_completion_length=16384,
        update_tokens=32768,
        score_tokens=32768,
    ),
}
"""Rows of the table of presets."""


class TextTable(NamedTuple):
    """A table of texts: title, column heads and rows; columns are aligned to the right except for those in `left`."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    by_row: bool = False  # one reads it row by row, not column by column


def tables(report: Report) -> Iterator[TextTable]:
    """The tables of a report, in the order in which they are shown."""
    yield _owner_table("GPU, GB", report.ledger, "gpu", [phase.gpu_bytes for phase in report.ledger.phases])
    yield _owner_table("Host, GB", report.ledger, "host", [phase.host_bytes for phase in report.ledger.phases])
    yield _preset_table()


def _owner_table(title: str, ledger: Ledger, side: Literal["gpu", "host"], totals: Sequence[float]) -> TextTable:
    columns = [{entry.owner: entry for entry in getattr(phase, side)} for phase in ledger.phases]
    sources = {owner: entry.source for column in columns for owner, entry in column.items()}
    rows = [
        (owner, *(_gb(column[owner].size) if owner in column else "" for column in columns), source)
        for owner, source in sources.items()
    ]
    rows.append(("all", *map(_gb, totals), ""))
    heads = ("", *(COLUMN_HEADS.get(phase.name, phase.name) for phase in ledger.phases), "source")
    return TextTable(title, heads, rows, left=(0, len(heads) - 1))


def _preset_table() -> TextTable:
    rows = []
    for name, config in COMPARED_RUNS.items():
        ledger = plan(config)
        run, bound = ledger.run, planned_bytes(config)
        assert bound is not None  # all of them have a budget
        peak = ledger.gpu_peak
        rows.append(
            (
                name,
                _pass(run.update),
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
        "update tokens",
        "saved layers",
        "GPU",
        "in phase",
        "planned",
        "budget",
        "fits",
        "host",
        "vLLM tokens",
        "sequences",
    )
    return TextTable("Presets, by formula, GB", heads, rows, left=(0, 4), by_row=True)


def sentences(report: Report) -> tuple[list[str], list[str]]:
    """The lines above the tables, and those below them with the verdict."""
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
        f"  update {_pass(run.update)} tokens; saves the attention of {run.saved_attention} and the MLP of "
        f"{run.saved_mlp} of {shape.layers} layers",
        f"  score {_scored(run)}",
        f"  rows of up to {run.teacher_tokens:,} tokens; attention: {ATTENTION[run.update.attention]}",
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
        f"Disk: a checkpoint is {_gb(ledger.checkpoint_bytes)} GB, {config.checkpoint.keep} are kept"
        + ("" if config.checkpoint.keep_best is None else f" and the best by {config.checkpoint.keep_best}"),
    ]
    if line := vllm_line(ledger):
        bottom.append(line)
    if report.gpu_bytes is not None:
        bound = f"{report.gpu_bytes / GB:g} GB"
        longest = (
            f"{report.longest_context:,} tokens of prompt and completion" if report.longest_context else "none fits"
        )
        largest = f"{report.largest_update:,} tokens at this run's lengths" if report.largest_update else "none fits"
        bottom.append(f"Longest context in {bound} with one row a pass and no saved activations: {longest}")
        bottom.append(f"Largest pass of the update in {bound} with no saved activations: {largest}")
    if report.shortfalls:
        bottom.append("Does not fit")
        bottom += [f"  {line}" for line in report.shortfalls]
        if report.suggestions:
            bottom.append("It would fit with one of" if len(report.suggestions) > 1 else "It would fit with")
            bottom += [
                f"  {' '.join(way.flags)}  (GPU {_gb(way.gpu_bytes)}, host {_gb(way.host_bytes)} GB)"
                for way in report.suggestions
            ]
        else:
            bottom.append("Lowering flags cannot make it fit: take a smaller model or a larger GPU")
    elif not report.fits:
        names = ", ".join(check.name for check in report.failed_checks)
        bottom.append(f"Cannot start: {names} (see above)")
    elif report.gpu_bytes is None:
        bottom.append("No budget and no GPU to compare with: give --budget-gb")
    else:
        bottom.append("Fits")
    return top, bottom


def _scored(run: RunShape) -> str:
    """How many tokens the forward passes without gradients read, and of which models."""
    of_teacher = {"teacher": run.reads_teacher, "reference": run.kl_term}
    names = ", ".join(name for name, is_run in of_teacher.items() if is_run)
    passes = [f"{_pass(run.score)} tokens ({names})"] if names else []
    if run.reads_student:
        passes.append(f"{_pass(run.score_student)}{'' if names else ' tokens'} (student)")
    return f"{', '.join(passes) or 'no model'}{'' if run.has_reference else '; there is no reference'}"


def _pass(of: Pass) -> str:
    """Tokens of a pass: 36,864, or 2 x 12,288 where it has several sequences."""
    return f"{of.length:,}" if of.is_flat else f"{of.sequences} x {of.length:,}"


def report_json(report: Report) -> dict[str, Any]:
    """The report as JSON for scripts; sizes in bytes."""

    def phase_json(phase: PhaseMemory) -> dict[str, Any]:
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
        "run": asdict(run) | {name: getattr(run, name)._asdict() for name in ("update", "score", "score_student")},
        "update_tokens": run.update.tokens,
        "score_tokens": max(run.score.tokens, run.score_student.tokens),
        "phases": {phase.name: phase_json(phase) for phase in ledger.phases},
        "vllm": None
        if run.sampler == "native"
        else {
            "cache_tokens": vllm_cache_tokens(ledger.shape, run),
            "sequences": own,
            "sequences_sharing_prompts": shared,
        },
        "longest_context": report.longest_context,
        "largest_update_tokens": report.largest_update,
        "lower": [
            {"flags": " ".join(way.flags), "gpu_bytes": way.gpu_bytes, "host_bytes": way.host_bytes}
            for way in report.suggestions
        ],
        "checks": [asdict(check) for check in report.checks],
        "gpu": None if report.gpu is None else asdict(report.gpu),
    }


def show(report: Report, console: Console) -> None:
    """Print a report, with tables in a terminal and aligned text elsewhere."""
    top, bottom = sentences(report)
    live = is_live(console)

    def print_lines(lines: Sequence[str]) -> None:
        text = visible("\n".join(lines))  # which quotes rows
        if live:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print_plain(console, text)

    print_lines(top)
    for table in tables(report):
        aligned = aligned_lines(table)
        width = max(map(len, aligned))
        if not live:
            print_lines(["", *aligned])
        elif shows_tables(console, width=width):
            console.print(rich_table(table))
        elif width <= console.width:
            print_lines(["", *aligned])
        else:
            print_lines(["", *narrow_lines(table)])
    print_lines(["", *bottom])


def rich_table(table: TextTable) -> Table:
    """The table for a terminal that is wide enough."""
    rich = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for index, head in enumerate(table.heads):
        rich.add_column(f"{head}  ", justify="left" if index in table.left else "right", no_wrap=True)
    for row in table.rows:
        rich.add_row(*(f"{cell}  " for cell in row))
    return rich


def narrow_lines(table: TextTable) -> list[str]:
    """The table for a narrow terminal: one line per column, or per row of a table that is read by row."""
    if table.by_row:
        parts = [(row[0], zip(table.heads[1:], row[1:])) for row in table.rows]
    else:
        owners = [row[0] for row in table.rows]
        parts = [(head, zip(owners, column)) for head, *column in zip(table.heads, *table.rows)][1:]
    lines = [table.title]
    for name, cells in parts:
        lines.append(f"  {name}: {', '.join(f'{label} {cell}' for label, cell in cells if cell)}")
    return lines


def aligned_lines(table: TextTable) -> list[str]:
    """The table as aligned lines, its title first."""
    rows = [table.heads, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [table.title]
    for row in rows:
        cells = [
            cell.ljust(width) if index in table.left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
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
