"""The results of a pipeline over several seeds: tables with confidence intervals, a CSV file, pictures.

Every quantity is kept by seed and by prompt, so that what is compared under one seed is compared on the same prompts.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rlt_jax.errors import UserError
from rlt_jax.report.comparison import mean_interval
from rlt_jax.report.curves import EVAL, FAINT, INK, new_figure, style_axes
from rlt_jax.report.writer import METRICS_FILE, read_lines

Values = Mapping[int, float]  # prompt -> value; of a quantity that is not known by prompt, a single 0 -> value

MISSING = "–"
SECONDS_FILE = "seconds.jsonl"
MATCHED_FILE = "matched.jsonl"


class Measure(NamedTuple):
    """A quantity as it is read and shown."""

    key: str
    title: str
    unit: str
    digits: int = 3


@dataclass(frozen=True)
class Table:
    """Quantities of some variants, and of differences between them."""

    title: str
    about: str  # what the rows and columns are
    measures: tuple[Measure, ...]
    rows: Mapping[str, Mapping[str, Sequence[Values]]]  # variant -> key of a measure -> one per seed that has it


class Estimate(NamedTuple):
    """A mean and how sure it is, in the unit of the quantity."""

    mean: float
    half_width: float | None  # of the 95 % confidence interval; None: unknown
    over: Literal["seeds", "prompts"] | None  # what the interval is over
    seeds: int
    prompts: int  # of all seeds together


REWARD = Measure("reward", "Reward", "nats, weighted")
LOGP = Measure("solution_logp", "Solution log-prob", "nats per token")
KL = Measure("thought_kl", "Explanation KL", "nats per token")
COPY = Measure("copy_rate", "Copy rate", "share")
REPEAT = Measure("repeat_rate", "Repeat rate", "share")
LENGTH = Measure("tokens", "Length", "tokens", 1)
LOSS = Measure("loss", "Held-out loss", "nats per token")
STUDENT = (
    Measure("accuracy", "Accuracy", "share right"),
    Measure("own_logp", "Solution after own thought", "nats per token"),
    Measure("none_logp", "Solution after no thought", "nats per token"),
    Measure("true_logp", "Solution after true thought", "nats per token"),
    Measure("loss", "Loss on true thought and solution", "nats per token"),
    Measure("closed", "Thought closed", "share"),
    Measure("tokens", "Length", "tokens", 1),
    Measure("taught", "Explanation it was taught with", "tokens a row", 1),
)
NOT_BY_QUESTION = ("loss", "taught")
NAMES = {
    "none": "no explanation",
    "shuffled": "somebody else's trace",
    "true": "the true trace",
    "copied": "the solution itself",
}
TEACHERS = {"warmup": "warmed-up teacher", "rlt": "RLT teacher", "no-kl": "RLT teacher without KL term"}
STUDENTS = {
    "base": "student as it is",
    "warmup": "on the warmed-up teacher's",
    "rlt": "on the RLT teacher's",
    "no-kl": "on the teacher's without KL term",
    "traces": "on the true traces",
}
CAPTION = (
    "Mean ± half the width of its 95 % confidence interval: with two or more seeds over the seeds (Student t), with "
    "one seed over its prompts, where the quantity is known by prompt. Differences are taken prompt by prompt under "
    "the same seed, so their intervals are those of paired comparisons. An interval over prompts says what another "
    "draw of prompts would change, not another seed; one over seeds, which share their prompts, the other way round."
)


def finished_tasks(work: Path) -> set[str]:
    """Names of the commands of a pipeline that have done their work."""
    return {line["task"] for line in _lines(work / SECONDS_FILE) if line["finished"]}


def estimate(per_seed: Sequence[Values]) -> Estimate:
    """Mean over seeds of the mean over prompts, with its interval.

    Args:
      per_seed: one or more, none of them empty.
    """
    means = [float(np.mean(list(values.values()))) for values in per_seed]
    prompts = sum(map(len, per_seed))
    if len(per_seed) > 1:
        mean, half_width = mean_interval(means)
        return Estimate(mean, half_width, "seeds", len(per_seed), prompts)
    mean, half_width = mean_interval(list(per_seed[0].values()))
    return Estimate(mean, half_width, None if half_width is None else "prompts", 1, prompts)


def difference(later: Values, earlier: Values) -> dict[int, float]:
    """later - earlier, on the prompts that both have."""
    return {prompt: later[prompt] - earlier[prompt] for prompt in later if prompt in earlier}


def outcome_tables(works: Sequence[Path]) -> list[Table]:
    """The tables of some finished or unfinished pipelines that differ by their seed alone; empty ones are left out."""
    seeds = [_read_seed(work) for work in works]
    anchors = _table(
        "Explanations of held-out questions",
        "Anchors, and what the teachers write: one explanation a question. The solution's log-prob is the asked "
        "student's, at the reward's temperature. Without an explanation, and for texts that the teacher did not write, "
        "reward and KL mean little. An honest trace has a copy rate too.",
        (LOGP, REWARD, KL, COPY, REPEAT),
        [{**seed.anchors, **seed.teachers} for seed in seeds],
        [
            (NAMES["true"], NAMES["none"]),
            *((TEACHERS[arm], TEACHERS["warmup"]) for arm in ("rlt", "no-kl")),
            (TEACHERS["rlt"], TEACHERS["no-kl"]),
        ],
    )
    explained = _table(
        "Explanations of the training questions",
        "What students are distilled on: of each question the only explanation that was drawn, or, beside all, the "
        "best-rewarded of several. Means over the questions.",
        (REWARD, LOGP, KL, COPY, REPEAT, LENGTH),
        [seed.explained for seed in seeds],
        [(f"{TEACHERS['rlt']}{end}", f"{TEACHERS['warmup']}{end}") for end in ("", ", best")],
    )
    students = _table(
        "Students on held-out problems",
        "Distilled with the same questions, rows and steps. Log-probs are the student's own, at temperature 1.",
        STUDENT,
        [seed.students for seed in seeds],
        [
            (STUDENTS["rlt"], STUDENTS["warmup"]),
            (STUDENTS["rlt"], STUDENTS["base"]),
            (STUDENTS["warmup"], STUDENTS["base"]),
            (STUDENTS["rlt"], STUDENTS["traces"]),
        ],
    )
    warmup = _table(
        "Warm-up of the teacher",
        "Loss on the held-out questions' traces, before and after.",
        (LOSS,),
        [seed.warmup for seed in seeds],
        [("after", "before")],
    )
    seconds = _table(
        "Time",
        "Seconds of each stage, with the start of its commands, interrupted ones too.",
        (Measure("seconds", "Time", "s", 0),),
        [seed.seconds for seed in seeds],
        [],
    )
    return [table for table in (warmup, anchors, explained, students, seconds) if table.rows]


def table_markdown(table: Table) -> str:
    """A table with its heading."""
    header = ["", "seeds", *(f"{measure.title}, {measure.unit}" for measure in table.measures)]
    lines = [header, [":--", *["--:"] * (len(header) - 1)]]
    for variant, quantities in table.rows.items():
        seeds = max(map(len, quantities.values()))
        cells = [_cell(quantities.get(it.key), it.digits, signed=_is_difference(variant)) for it in table.measures]
        lines.append([variant, str(seeds), *cells])
    return (
        f"## {table.title}\n\n{table.about}\n\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
    )


def write_outcome_csv(tables: Iterable[Table], path: Path) -> None:
    """The numbers in full, one line per table, variant and quantity; empty where a number is not known."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("table", "variant", "quantity", "unit", "seeds", "prompts", "mean", "ci_low", "ci_high", "over")
        )
        for table in tables:
            for variant, quantities in table.rows.items():
                for measure in table.measures:
                    if not quantities.get(measure.key):
                        continue
                    it = estimate(quantities[measure.key])
                    half = it.half_width
                    limits = ("", "") if half is None else (it.mean - half, it.mean + half)
                    writer.writerow(
                        (
                            *(table.title, variant, measure.key, measure.unit, it.seeds, it.prompts),
                            *(it.mean, *limits, it.over or ""),
                        )
                    )


def draw_outcomes(table: Table, path: Path, *, measures: Sequence[str]) -> None:
    """Draw a dot with its interval for each variant of a table (differences left out), a panel per quantity."""
    shown = [measure for measure in table.measures if measure.key in measures]
    variants = [variant for variant in table.rows if not _is_difference(variant)]
    figure = new_figure(3.6 * len(shown) + 1.2, 0.42 * len(variants) + 1.5)
    for index, measure in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), index + 1)
        for place, variant in enumerate(reversed(variants)):
            values = table.rows[variant].get(measure.key)
            if values:
                it = estimate(values)
                axes.errorbar(
                    it.mean,
                    place,
                    xerr=it.half_width or 0.0,
                    fmt="o",
                    color=EVAL,
                    ecolor=FAINT,
                    capsize=3,
                    markersize=6,
                )
        axes.set_yticks(range(len(variants)), list(reversed(variants)) if index == 0 else [""] * len(variants))
        axes.set_ylim(-0.6, len(variants) - 0.4)
        style_axes(axes, measure.title, measure.unit)
        axes.set_yticks(range(len(variants)), list(reversed(variants)) if index == 0 else [""] * len(variants))
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.tick_params(axis="y", colors=INK)
    figure.savefig(path, format="png")


class _Seed(NamedTuple):
    """One pipeline: variant -> key of a measure -> values."""

    warmup: dict[str, dict[str, Values]]
    anchors: dict[str, dict[str, Values]]
    teachers: dict[str, dict[str, Values]]
    explained: dict[str, dict[str, Values]]
    students: dict[str, dict[str, Values]]
    seconds: dict[str, dict[str, Values]]


def _read_seed(work: Path) -> _Seed:
    results = work / "results"
    anchors = {
        name: _by_row(lines, (LOGP, REWARD, KL, COPY, REPEAT))
        for kind, name in NAMES.items()
        if (lines := [line for line in _lines(results / "anchors.jsonl") if line["kind"] == kind])
    }
    explained = {}
    for source, name in TEACHERS.items():
        lines = _lines(results / f"explained-{source}.jsonl")
        kept = [line for line in lines if line["kept"]]
        for end, part in ((", all", lines), (", best", kept)) if len(kept) < len(lines) else (("", lines),):
            if part:
                explained[name + end] = _by_row(part, (REWARD, LOGP, KL, COPY, REPEAT, LENGTH))
    students: dict[str, dict[str, Values]] = {}
    matched = next(iter(_lines(results / MATCHED_FILE)), {})
    for student, name in STUDENTS.items():
        measured: dict[str, Values] = {}
        if lines := _lines(results / f"student-{student}.jsonl"):
            measured = _by_row(lines, [measure for measure in STUDENT if measure.key not in NOT_BY_QUESTION])
        if losses := _losses(work, f"student-{student}"):
            measured["loss"] = {0: losses[1]}
            students.setdefault(STUDENTS["base"], {}).setdefault("loss", {0: losses[0]})
        if measured and student in matched.get("tokens", {}):
            measured["taught"] = {0: matched["tokens"][student] / matched["questions"]}
        if measured:
            students[name] = {**students.get(name, {}), **measured}
    return _Seed(
        warmup={when: {"loss": {0: loss}} for when, loss in zip(("before", "after"), _losses(work, "warmup"))},
        anchors=anchors,
        teachers=_teachers(work),
        explained=explained,
        students={name: students[name] for name in STUDENTS.values() if name in students},
        seconds=_seconds(work),
    )


def _teachers(work: Path) -> dict[str, dict[str, Values]]:
    """The first evaluation of an RLT run is of the warmed-up teacher, the last of the RLT teacher."""
    found: dict[str, dict[str, Values]] = {}
    for arm in ("rlt", "no-kl"):
        records = read_lines(work / arm / "eval.jsonl")
        evaluations = {
            line["step"]: line for line in read_lines(work / arm / METRICS_FILE) if f"eval/{COPY.key}" in line
        }
        if not records or arm not in finished_tasks(work):
            continue
        for name, step in ((TEACHERS["warmup"], 0), (TEACHERS[arm], max(record["step"] for record in records))):
            lines = [record for record in records if record["step"] == step]
            keys = {"solution_logp": "solution_logp/mean", "thought_kl": "thought_kl/mean"}
            if arm == "rlt":  # the other arm's reward is another one
                keys["reward"] = "reward"
            values: dict[str, Values] = {
                key: {line["row"]: line[its] for line in lines} for key, its in keys.items() if its in lines[0]
            }
            rates = {
                measure.key: {0: evaluations[step][f"eval/{measure.key}"]}
                for measure in (COPY, REPEAT)
                if f"eval/{measure.key}" in evaluations[step]
            }
            found.setdefault(name, {**values, **rates})
    return found


def _losses(work: Path, run: str) -> list[float]:
    """First and last held-out loss of a finished fine-tuning; [] if it is not finished."""
    if run not in finished_tasks(work):
        return []
    losses = [line["eval/loss"] for line in read_lines(work / run / METRICS_FILE) if "eval/loss" in line]
    return [losses[0], losses[-1]] if losses else []


def _seconds(work: Path) -> dict[str, dict[str, Values]]:
    total: dict[str, float] = {}
    for line in _lines(work / SECONDS_FILE):
        total[line["stage"]] = total.get(line["stage"], 0.0) + line["seconds"]
    if total:
        total["all"] = sum(total.values())
    return {stage: {"seconds": {0: seconds}} for stage, seconds in total.items()}


def _by_row(lines: Sequence[Mapping[str, Any]], measures: Iterable[Measure]) -> dict[str, Values]:
    """key -> row -> its mean; keys that no line has a number of are left out."""
    found: dict[str, Values] = {}
    for measure in measures:
        of_row: dict[int, list[float]] = {}
        for line in lines:
            if line.get(measure.key) is not None:
                of_row.setdefault(line["row"], []).append(float(line[measure.key]))
        if of_row:
            found[measure.key] = {row: float(np.mean(values)) for row, values in of_row.items()}
    return found


def _table(
    title: str,
    about: str,
    measures: tuple[Measure, ...],
    seeds: Sequence[Mapping[str, Mapping[str, Values]]],
    pairs: Iterable[tuple[str, str]],
) -> Table:
    """Variants of all seeds in their order, then the differences of `pairs` (later, earlier)."""
    rows: dict[str, dict[str, list[Values]]] = {}

    def collect(variant: str, of_seed: Callable[[Mapping[str, Mapping[str, Values]], str], Values | None]) -> None:
        for measure in measures:
            values = [found for seed in seeds if (found := of_seed(seed, measure.key))]
            if values:
                rows.setdefault(variant, {})[measure.key] = values

    for variant in dict.fromkeys(variant for seed in seeds for variant in seed):
        collect(variant, lambda seed, key, variant=variant: seed.get(variant, {}).get(key))  # type: ignore[misc]
    for later, earlier in pairs:

        def paired(seed: Mapping[str, Mapping[str, Values]], key: str, later=later, earlier=earlier) -> Values:
            return difference(seed.get(later, {}).get(key, {}), seed.get(earlier, {}).get(key, {}))

        collect(f"{later} − {earlier}", paired)
    return Table(title, about, measures, rows)


def _is_difference(variant: str) -> bool:
    return " − " in variant


def _cell(per_seed: Sequence[Values] | None, digits: int, *, signed: bool) -> str:
    if not per_seed:
        return MISSING
    it = estimate(per_seed)
    sign = "+" if signed else ""
    interval = "" if it.half_width is None else f" ± {it.half_width:.{digits}f}"
    return f"{it.mean:{sign}.{digits}f}{interval}"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; [] when there is none."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: expected JSON Lines, but {error}: delete it, the pipeline writes it anew") from None
