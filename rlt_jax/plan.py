"""Say what a training run needs and whether it fits, before anything is downloaded: `python -m rlt_jax.plan`.

The card is read if there is one, and the run's programs are compiled for it; without one the figures are the ledger's
formulas (`memory/ledger.py`).
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import psutil
from rich import box, get_console
from rich.console import Console
from rich.table import Table

from rlt_jax.configs import PRESETS, TrainConfig, config_yaml, parse_plan_args
from rlt_jax.errors import run_command
from rlt_jax.memory.card import Card, read_card
from rlt_jax.memory.ledger import GB, Ledger, Phase, PhaseName, vllm_cache_tokens, vllm_sequences
from rlt_jax.memory.pinned import LIMIT_VARIABLE, pool_limit_gib
from rlt_jax.models import ModelConfig
from rlt_jax.planning import (
    Found,
    Lowering,
    find_model,
    largest_batch,
    longest_context,
    plan,
    planned_bytes,
    shortfalls,
    vllm_line,
    what_to_lower,
)
from rlt_jax.preflight import Check, preflight
from rlt_jax.report.log import is_live, print_plain
from rlt_jax.run import share_card, use_compilation_cache

log = logging.getLogger("rlt_jax")

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


@dataclass(frozen=True)
class Report:
    """Everything that the command says, in bytes."""

    config: TrainConfig
    teacher: Found
    student: Found
    ledger: Ledger
    card: Card | None
    card_bytes: float | None  # what the run may take; None: not known
    host_bytes: float | None
    shortfalls: list[str]
    longest: int | None
    largest: int | None
    lowerings: list[Lowering]
    checks: list[Check]

    @property
    def fits(self) -> bool:
        """Whether the ledger fits, and no check says that it does not hold here."""
        failed = any(check.status == "problem" and check.concerns_plan for check in self.checks)
        return not self.shortfalls and not failed


class Grid(NamedTuple):
    """A table: a title, heads, rows of texts; columns after the first are aligned to the right, but for `left` ones."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    by_row: bool = False  # a row, not a column, is what one reads as a whole


def make_report(config: TrainConfig, *, compile_programs: bool) -> Report:
    """Plan a run on this machine.

    Raises:
      UserError: a model's architecture cannot be found out.
    """
    teacher, student = find_model(config.teacher), find_model(config.student)
    card = read_card()
    bounds = [planned_bytes(config), None if card is None else float(card.total_bytes)]
    card_bytes = min((bound for bound in bounds if bound is not None), default=None)
    host_bytes = None if config.host_gb is None else config.host_gb * GB
    if host_bytes is None and card is not None:  # without a card the run's machine is another one
        host_bytes = psutil.virtual_memory().total
    total = None if card is None else card.total_bytes
    formulas = ledger = plan(config, teacher=teacher.config, student=student.config, card_bytes=total)
    if card is not None and compile_programs:
        compiled = _compile(config, ledger, teacher.config, student.config)
        ledger = plan(config, teacher=teacher.config, student=student.config, card_bytes=total, compiled=compiled)
    missing = shortfalls(ledger, card_bytes=card_bytes, host_bytes=host_bytes)
    # What else could run is known by formula alone: where the compiler takes more than that, so much less is there.
    more = max(ours.card_bytes - formula.card_bytes for ours, formula in zip(ledger.phases, formulas.phases))
    room = None if card_bytes is None else card_bytes - max(more, 0.0)
    return Report(
        config=config,
        teacher=teacher,
        student=student,
        ledger=ledger,
        card=card,
        card_bytes=card_bytes,
        host_bytes=host_bytes,
        shortfalls=missing,
        longest=None
        if room is None
        else longest_context(ledger, room, positions=teacher.config.max_position_embeddings),
        largest=None if room is None else largest_batch(ledger, room),
        lowerings=what_to_lower(config, teacher.config, student.config, card_bytes=room, host_bytes=host_bytes)
        if missing
        else [],
        checks=preflight(config, ledger, card=card, host_bytes=host_bytes),
    )


def _compile(
    config: TrainConfig, ledger: Ledger, teacher: ModelConfig, student: ModelConfig
) -> dict[PhaseName, float] | None:
    """The temporaries of the run's programs on the card; None where JAX does not see one."""
    share_card()
    import jax

    from rlt_jax.program_sizes import compiled_temporaries

    if jax.default_backend() != "gpu":
        return None
    use_compilation_cache()
    print("compiling the run's programs for the card ...", file=sys.stderr, flush=True)
    return compiled_temporaries(config, ledger.run, teacher, student)


def grids(report: Report) -> Iterator[Grid]:
    """The tables, in the order in which they are shown."""
    yield _owners("Card, GB", report.ledger, "card", [phase.card_bytes for phase in report.ledger.phases])
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
        peak = ledger.card_peak
        rows.append(
            (
                name,
                f"{run.micro_batch} x {run.teacher_tokens:,}",
                f"{run.kept_attention}, {run.kept_mlp}",
                _gb(peak.card_bytes),
                peak.name,
                "none" if config.planned_gb is None else f"{config.planned_gb:g}",
                f"{config.budget_gb:g}",
                "no" if shortfalls(ledger, card_bytes=bound, host_bytes=None) else "yes",
                _gb(ledger.host_peak.host_bytes),
                f"{vllm_cache_tokens(ledger.shape, run):,}",
                " to ".join(map(str, vllm_sequences(ledger.shape, run))),
            )
        )
    heads = (
        "run",
        "micro-batch",
        "kept layers",
        "card",
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
    if report.card is None:
        origin = "by formula, no GPU here"
    elif any(entry.source == "compiled" for phase in ledger.phases for entry in phase.card):
        origin = f"temporaries as compiled for {report.card.name}"
    else:
        origin = "by formula, nothing was compiled"
    top = [
        f"Plan of --preset {config.preset} ({origin}); GB is 1e9 bytes",
        f"  teacher {config.teacher}: {shape.parameters / 1e9:.3f} B parameters ({report.teacher.source})",
        f"  student {config.student}: {run.student.parameters / 1e9:.3f} B parameters ({report.student.source})",
        f"  update {run.micro_batch} x {run.teacher_tokens:,} tokens; of {shape.layers} layers it keeps the attention "
        f"of {run.kept_attention} and the MLP of {run.kept_mlp}",
        f"  score {run.score_batch} x {run.teacher_tokens:,} tokens (teacher, reference), "
        f"{run.score_batch} x {run.student_tokens:,} (student)",
    ]
    peak, host = ledger.card_peak, ledger.host_peak
    bottom = [
        "Before the start",
        *_check_lines(report.checks),
        "",
        f"Card: peak {_gb(peak.card_bytes)} GB in {peak.name}; planned {_size(config.planned_gb)}, budget "
        f"{_size(config.budget_gb)}",
        f"Host: peak {_gb(host.host_bytes)} GB in {host.name}; "
        + (f"{report.host_bytes / GB:.1f} GB may be used" if report.host_bytes else "give --host-gb to check it"),
        f"Pinned: {_gb(ledger.pinned_bytes)} GB of the host's"
        + (f", under {LIMIT_VARIABLE}={pool_limit_gib(ledger.pinned_bytes)} (GiB)" if ledger.pinned_bytes else ""),
        f"Disk: a checkpoint is {_gb(ledger.checkpoint_bytes)} GB, {config.checkpoint.keep} are kept",
    ]
    if line := vllm_line(ledger):
        bottom.append(line)
    if report.card_bytes is not None:
        bound = f"{report.card_bytes / GB:g} GB"
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
                f"  {' '.join(lowering.flags)}  (card {_gb(lowering.card_bytes)}, host {_gb(lowering.host_bytes)} GB)"
                for lowering in report.lowerings
            ]
        else:
            bottom.append("Nothing that could be lowered makes it fit: take a smaller model or a larger card")
    elif not report.fits:
        failed = [check for check in report.checks if check.status == "problem" and check.concerns_plan]
        bottom.append(f"Does not hold on this machine: {', '.join(check.name for check in failed)} (see above)")
    elif report.card_bytes is None:
        bottom.append("No budget and no card to compare with: give --budget-gb")
    else:
        bottom.append("Fits")
    return top, bottom


def report_json(report: Report) -> dict[str, Any]:
    """The report for scripts; sizes in bytes."""

    def phase_json(phase: Phase) -> dict[str, Any]:
        return {
            "card_bytes": phase.card_bytes,
            "host_bytes": phase.host_bytes,
            "card": [asdict(entry) for entry in phase.card],
            "host": [asdict(entry) for entry in phase.host],
        }

    ledger, run = report.ledger, report.ledger.run
    own, shared = vllm_sequences(ledger.shape, run)
    return {
        "fits": report.fits,
        "shortfalls": report.shortfalls,
        "card_bytes": report.card_bytes,
        "host_bytes": report.host_bytes,
        "card_peak_bytes": ledger.card_peak.card_bytes,
        "card_peak_phase": ledger.card_peak.name,
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
            {"flags": " ".join(low.flags), "card_bytes": low.card_bytes, "host_bytes": low.host_bytes}
            for low in report.lowerings
        ],
        "checks": [asdict(check) for check in report.checks],
        "card": None if report.card is None else asdict(report.card),
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


def main() -> None:
    config, print_config, options = parse_plan_args(sys.argv[1:])
    if print_config:
        print(config_yaml(config), end="")
        return
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    report = make_report(config, compile_programs=options.compile)
    if options.json:
        print(json.dumps(report_json(report), indent=2))
    else:
        show(report, get_console())
    if not report.fits:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
