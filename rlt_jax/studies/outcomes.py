"""The results of a pipeline over several seeds: tables of quantities with confidence intervals.

Every quantity is stored by seed and by prompt, so that comparisons under one seed are over the same prompts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rlt_jax.evals.intervals import t_interval
from rlt_jax.report.json_lines import read_json_lines
from rlt_jax.report.step_lines import read_lines
from rlt_jax.report.writer import METRICS_FILE
from rlt_jax.studies.pipeline_folder import MATCHED_FILE, finished_tasks, recorded_seconds

Values = Mapping[int, float]  # prompt -> value; 0 -> value if it is not known by prompt
Variants = Mapping[str, Mapping[str, Values]]  # of one seed: variant -> measure's key -> values


class Measure(NamedTuple):
    """A quantity: its column in the files, and how it is shown."""

    key: str
    title: str
    unit: str
    digits: int = 3


@dataclass(frozen=True)
class Table:
    """Quantities of some variants, and of differences between them."""

    title: str
    about: str  # explains rows and columns
    measures: tuple[Measure, ...]
    rows: Mapping[str, Mapping[str, Sequence[Values]]]  # variant -> measure's key -> one per seed that has it


class Estimate(NamedTuple):
    """A mean with its confidence interval, in the quantity's unit."""

    mean: float
    half_width: float | None  # of the 95 % confidence interval; None: unknown
    over: Literal["seeds", "prompts"] | None  # what the interval is over
    seeds: int
    prompts: int  # summed over the seeds


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
BASELINE_NAMES = {
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
STUDENTS_TITLE = "Students on held-out problems"


def estimate(per_seed: Sequence[Values]) -> Estimate:
    """Mean over seeds of the mean over prompts, with its interval.

    Args:
      per_seed: one or more, none of which is empty.
    """
    means = [float(np.mean(list(values.values()))) for values in per_seed]
    prompts = sum(map(len, per_seed))
    if len(per_seed) > 1:
        mean, half_width = t_interval(means)
        return Estimate(mean, half_width, "seeds", len(per_seed), prompts)
    mean, half_width = t_interval(list(per_seed[0].values()))
    return Estimate(mean, half_width, None if half_width is None else "prompts", 1, prompts)


def difference(later: Values, earlier: Values) -> dict[int, float]:
    """later - earlier, for the prompts in both."""
    return {prompt: later[prompt] - earlier[prompt] for prompt in later if prompt in earlier}


def is_difference(variant: str) -> bool:
    """Whether a table's row is the difference of two other rows."""
    return " − " in variant


def outcome_tables(works: Sequence[Path]) -> list[Table]:
    """The tables of finished or unfinished pipelines that differ only in their seed; empty tables are left out."""
    tables = (
        _table(
            "Warm-up of the teacher",
            "Loss on the held-out questions' traces, before and after.",
            (LOSS,),
            [_warmup(work) for work in works],
            [("after", "before")],
        ),
        _table(
            "Explanations of held-out questions",
            "Baselines, and what the teachers write: one explanation per question. The solution's log-prob is the "
            "reward student's, at the reward's temperature. Without an explanation, and for texts that the teacher did "
            "not write, reward and KL mean little. An honest trace has a copy rate too.",
            (LOGP, REWARD, KL, COPY, REPEAT),
            [{**_baselines(work), **_teachers(work)} for work in works],
            [
                (BASELINE_NAMES["true"], BASELINE_NAMES["none"]),
                *((TEACHERS[arm], TEACHERS["warmup"]) for arm in ("rlt", "no-kl")),
                (TEACHERS["rlt"], TEACHERS["no-kl"]),
            ],
        ),
        _table(
            "Explanations of the training questions",
            "What students are distilled on: the only explanation that was sampled for each question, or, next to all, "
            "the best-rewarded of several. Means over the questions.",
            (REWARD, LOGP, KL, COPY, REPEAT, LENGTH),
            [_explained(work) for work in works],
            [(f"{TEACHERS['rlt']}{suffix}", f"{TEACHERS['warmup']}{suffix}") for suffix in ("", ", best")],
        ),
        _table(
            STUDENTS_TITLE,
            "Distilled with the same questions, rows and steps. Log-probs are the student's own, at temperature 1.",
            STUDENT,
            [_students(work) for work in works],
            [
                (STUDENTS["rlt"], STUDENTS["warmup"]),
                (STUDENTS["rlt"], STUDENTS["base"]),
                (STUDENTS["warmup"], STUDENTS["base"]),
                (STUDENTS["rlt"], STUDENTS["traces"]),
            ],
        ),
        _table(
            "Time",
            "Seconds of each stage, including the start of its commands and interrupted ones.",
            (Measure("seconds", "Time", "s", 0),),
            [_seconds(work) for work in works],
            [],
        ),
    )
    return [table for table in tables if table.rows]


def _warmup(work: Path) -> dict[str, dict[str, Values]]:
    return {when: {"loss": {0: loss}} for when, loss in zip(("before", "after"), _losses(work, "warmup"))}


def _baselines(work: Path) -> dict[str, dict[str, Values]]:
    lines = _lines(work / "results" / "baselines.jsonl")
    return {
        name: _means_by_row(of_kind, (LOGP, REWARD, KL, COPY, REPEAT))
        for kind, name in BASELINE_NAMES.items()
        if (of_kind := [line for line in lines if line["kind"] == kind])
    }


def _teachers(work: Path) -> dict[str, dict[str, Values]]:
    """The first evaluation of an RLT run is that of the warmed-up teacher, the last that of the RLT teacher."""
    teachers: dict[str, dict[str, Values]] = {}
    for arm in ("rlt", "no-kl"):
        records = read_lines(work / arm / "eval.jsonl")
        evaluations = {
            line["step"]: line for line in read_lines(work / arm / METRICS_FILE) if f"eval/{COPY.key}" in line
        }
        if not records or arm not in finished_tasks(work):
            continue
        for name, step in ((TEACHERS["warmup"], 0), (TEACHERS[arm], max(record["step"] for record in records))):
            lines = [record for record in records if record["step"] == step]
            columns = {"solution_logp": "solution_logp/mean", "thought_kl": "thought_kl/mean"}
            if arm == "rlt":  # the other arm has a different reward
                columns["reward"] = "reward"
            values: dict[str, Values] = {  # without those that were not finite
                key: known
                for key, column in columns.items()
                if (known := {line["row"]: line[column] for line in lines if line.get(column) is not None})
            }
            rates = {
                measure.key: {0: rate}
                for measure in (COPY, REPEAT)
                if (rate := evaluations[step].get(f"eval/{measure.key}")) is not None
            }
            teachers.setdefault(name, {**values, **rates})
    return teachers


def _explained(work: Path) -> dict[str, dict[str, Values]]:
    """All explanations of each teacher and, if there are several per question, the best ones."""
    explained = {}
    for source, name in TEACHERS.items():
        lines = _lines(work / "results" / f"explained-{source}.jsonl")
        best = [line for line in lines if line["kept"]]
        for suffix, chosen in ((", all", lines), (", best", best)) if len(best) < len(lines) else (("", lines),):
            if chosen:
                explained[name + suffix] = _means_by_row(chosen, (REWARD, LOGP, KL, COPY, REPEAT, LENGTH))
    return explained


def _students(work: Path) -> dict[str, dict[str, Values]]:
    students: dict[str, dict[str, Values]] = {}
    matched = next(iter(_lines(work / "results" / MATCHED_FILE)), {})
    for student, name in STUDENTS.items():
        measured: dict[str, Values] = {}
        if lines := _lines(work / "results" / f"student-{student}.jsonl"):
            measured = _means_by_row(lines, [measure for measure in STUDENT if measure.key not in NOT_BY_QUESTION])
        if losses := _losses(work, f"student-{student}"):
            measured["loss"] = {0: losses[1]}
            students.setdefault(STUDENTS["base"], {}).setdefault("loss", {0: losses[0]})
        if measured and student in matched.get("tokens", {}):
            measured["taught"] = {0: matched["tokens"][student] / matched["questions"]}
        if measured:
            students[name] = {**students.get(name, {}), **measured}
    return {name: students[name] for name in STUDENTS.values() if name in students}


def _seconds(work: Path) -> dict[str, dict[str, Values]]:
    total: dict[str, float] = {}
    for line in recorded_seconds(work):
        total[line["stage"]] = total.get(line["stage"], 0.0) + line["seconds"]
    if total:
        total["all"] = sum(total.values())
    return {stage: {"seconds": {0: seconds}} for stage, seconds in total.items()}


def _losses(work: Path, run: str) -> list[float]:
    """First and last held-out loss of a fine-tuning run; [] if it is not finished, or one of them is not known."""
    if run not in finished_tasks(work):
        return []
    losses = [line["eval/loss"] for line in read_lines(work / run / METRICS_FILE) if "eval/loss" in line]
    return [losses[0], losses[-1]] if losses and None not in (losses[0], losses[-1]) else []


def _means_by_row(lines: Sequence[Mapping[str, Any]], measures: Iterable[Measure]) -> dict[str, Values]:
    """Measure's key -> row -> mean over its lines, without measures that no line has."""
    means: dict[str, Values] = {}
    for measure in measures:
        values_of: dict[int, list[float]] = {}
        for line in lines:
            if line.get(measure.key) is not None:
                values_of.setdefault(line["row"], []).append(float(line[measure.key]))
        if values_of:
            means[measure.key] = {row: float(np.mean(values)) for row, values in values_of.items()}
    return means


def _table(
    title: str,
    about: str,
    measures: tuple[Measure, ...],
    seeds: Sequence[Variants],
    pairs: Iterable[tuple[str, str]],
) -> Table:
    """A table of the variants of all seeds, in order, then of the differences of `pairs` (later, earlier)."""
    rows: dict[str, dict[str, list[Values]]] = {}

    def add(variant: str, values_of: Callable[[Variants, str], Values]) -> None:
        for measure in measures:
            values = [found for seed in seeds if (found := values_of(seed, measure.key))]
            if values:
                rows.setdefault(variant, {})[measure.key] = values

    for variant in dict.fromkeys(variant for seed in seeds for variant in seed):
        add(variant, partial(_values, variant))
    for later, earlier in pairs:
        add(f"{later} − {earlier}", partial(_paired, later, earlier))
    return Table(title, about, measures, rows)


def _values(variant: str, seed: Variants, key: str) -> Values:
    """The values of a variant under one seed; empty if there are none."""
    return seed.get(variant, {}).get(key, {})


def _paired(later: str, earlier: str, seed: Variants, key: str) -> Values:
    """The difference of two variants under one seed, prompt by prompt."""
    return difference(_values(later, seed, key), _values(earlier, seed, key))


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; [] if there is no file."""
    return read_json_lines(path) if path.exists() else []
