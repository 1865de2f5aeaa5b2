"""Comparison of a study's arms: how their held-out metrics changed, with confidence intervals."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar

import numpy as np

from rlt_jax.evals.crossed import Spread, crossed, holm
from rlt_jax.evals.intervals import t_half_width, t_interval
from rlt_jax.report.curves import Panel
from rlt_jax.report.paired import PairedChange
from rlt_jax.report.step_lines import read_lines
from rlt_jax.report.writer import METRICS_FILE
from rlt_jax.runs.evaluation import read_changes, read_values
from rlt_jax.runs.resume import last_accepted_change

T = TypeVar("T")

QUANTITIES = (  # the first compares arms even if their rewards differ
    Panel("Solution log-prob", "nats per token", "component/solution_logp/mean"),
    Panel("Reward", "nats, weighted", "reward"),
    Panel("Explanation KL", "nats per token", "component/thought_kl/mean"),
    Panel("Completion length", "tokens", "completion_length/mean"),
    Panel("Copy rate", "share", "copy_rate", level="trace_copy_rate", level_label="true traces"),
    Panel("Repeat rate", "share", "repeat_rate"),
    Panel("Match rate", "share", "match_rate"),
)
TRACES = Panel("Copy rate of the traces", "share", "trace_copy_rate")
LEVEL = 0.05  # of the p-values below which a difference is certain


@dataclass(frozen=True)
class Evaluations:
    """The held-out metrics of one finished run."""

    last: int  # step of the last evaluation; the first is at 0
    values: Mapping[str, Mapping[int, float]]  # metric (without `eval/`) -> step -> value
    paired: Mapping[str, PairedChange]  # metric -> its change, paired by prompt, if recorded by prompt
    seed: int
    by_question: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Metric -> held-out row -> its last value, for the metrics that are recorded by question."""
    step_seconds: float | None = None
    """Median time of a step, s, without evaluations; None: not recorded."""


@dataclass(frozen=True)
class Change:
    """First and last value of a metric, means over the seeds of an arm, in the metric's unit."""

    first: float
    last: float
    change: float  # last - first
    half_width: float | None  # of the confidence interval of `change`; None: unknown
    over: Literal["seeds", "prompts"] | None  # what the interval is over


@dataclass(frozen=True)
class Difference:
    """An arm's last value minus the first arm's, paired by seed and by question, in the metric's unit."""

    mean: float
    half_width: float | None  # of its interval for other seeds and other questions; None with a single seed
    seeds: int  # that both arms have
    questions: int = 0  # that all these runs have; 0: the metric is not recorded by question
    over_questions: float | None = None  # half width for other questions, of these very runs
    p_value: float | None = None  # of `half_width`
    corrected: float | None = None  # p_value, corrected for the number of arms (Holm)
    spread: Spread | None = None

    @property
    def certain(self) -> bool:
        """Whether it would hold for other seeds too, in all but 5 % of studies."""
        return self.corrected is not None and self.corrected < LEVEL


@dataclass(frozen=True)
class Arm:
    """The results of an arm."""

    finished: int  # seeds
    planned: int  # seeds
    changes: Mapping[str, Change]  # metric -> change
    from_first: Mapping[str, Difference]  # metric -> difference from the first arm; {} for the first arm
    step_seconds: tuple[float, float | None] | None = None  # mean over seeds, half width of its interval; s


def read_evaluations(run_dir: Path, *, last: int) -> dict[str, dict[int, float]]:
    """Read a run's evaluations: metric (without `eval/`) -> step -> value; {} if there is none at step `last`.

    Those up to a change of what is measured, which a resumed run has accepted, are left out.
    """
    changed = last_accepted_change(run_dir)
    records = [record for record in read_lines(run_dir / METRICS_FILE) if "eval/reward" in record]
    records = [record for record in records if changed is None or record["step"] > changed]
    if last not in (record["step"] for record in records):
        return {}
    values: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith("eval/") and value is not None and record["step"] <= last:
                values.setdefault(name.removeprefix("eval/"), {})[record["step"]] = value
    return values


def read_run(run_dir: Path, *, last: int, seed: int) -> Evaluations | None:
    """Read a run's evaluations for a comparison; None if there is none at step `last`."""
    values = read_evaluations(run_dir, last=last)
    if not values:
        return None
    metric_of = {quantity.metric.removeprefix("component/"): quantity.metric for quantity in QUANTITIES}
    changes = read_changes(run_dir, tuple(metric_of), first=0, last=last)
    by_question = read_values(run_dir, tuple(metric_of), step=last)
    return Evaluations(
        last,
        values,
        {metric_of[name]: change for name, change in changes.items()},
        seed,
        {metric_of[name]: of_rows for name, of_rows in by_question.items()},
        step_seconds(run_dir),
    )


def step_seconds(run_dir: Path) -> float | None:
    """Median time of a run's steps so far, s; without the first, which compiles, where there are others."""
    records = [record["seconds/step"] for record in read_lines(run_dir / METRICS_FILE) if "seconds/step" in record]
    known = [seconds for seconds in records if seconds is not None]
    return median(known[1:] or known) if known else None


def compare(
    runs: Mapping[str, Sequence[Evaluations]],
    planned: Mapping[str, int],
    *,
    apart: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Arm]:
    """The change in each arm, and the difference of the other arms from the first.

    Args:
      runs: arm -> its finished runs, one per seed.
      planned: arm -> number of its seeds, finished or not.
      apart: arm -> metrics that measure something else there than in the first arm, and are not compared with it.
    """
    arms: dict[str, Arm] = {}
    first_arm = next((runs[arm] for arm in planned), [])
    for arm, count in planned.items():
        changes = {quantity.metric: _change(runs[arm], quantity.metric) for quantity in (*QUANTITIES, TRACES)}
        others = (apart or {}).get(arm, ())
        # the first arm is not compared with itself
        compared = [quantity.metric for quantity in QUANTITIES if arms and quantity.metric not in others]
        differences = {metric: _difference(runs[arm], first_arm, metric) for metric in compared}
        seconds = [run.step_seconds for run in runs[arm] if run.step_seconds is not None]
        arms[arm] = Arm(
            len(runs[arm]),
            count,
            _without_none(changes),
            _without_none(differences),
            t_interval(seconds) if seconds else None,
        )
    return _corrected(arms)


def _corrected(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """With p-values corrected for the number of arms, for each metric by itself."""
    corrected: dict[str, dict[str, Difference]] = {name: dict(arm.from_first) for name, arm in arms.items()}
    for quantity in QUANTITIES:
        tested = {
            name: difference.p_value
            for name, arm in arms.items()
            if (difference := arm.from_first.get(quantity.metric)) is not None and difference.p_value is not None
        }
        for name, p_value in zip(tested, holm(list(tested.values()))):
            difference = corrected[name][quantity.metric]
            corrected[name][quantity.metric] = replace(difference, corrected=p_value)
    return {name: replace(arm, from_first=corrected[name]) for name, arm in arms.items()}


def _change(runs: Sequence[Evaluations], metric: str) -> Change | None:
    """Over the runs with the metric at step 0 and at their last step; None if there is no such run."""
    measured = [run for run in runs if {0, run.last} <= run.values.get(metric, {}).keys()]
    if not measured:
        return None
    firsts = [run.values[metric][0] for run in measured]
    lasts = [run.values[metric][run.last] for run in measured]
    change, half_width = t_interval([last - first for first, last in zip(firsts, lasts)])
    over: Literal["seeds", "prompts"] | None = None if half_width is None else "seeds"
    if len(measured) == 1 and metric in measured[0].paired:
        paired = measured[0].paired[metric]
        half_width, over = t_half_width(paired.standard_error, count=paired.count), "prompts"
    return Change(float(np.mean(firsts)), float(np.mean(lasts)), change, half_width, over)


def _difference(runs: Sequence[Evaluations], first_arm: Sequence[Evaluations], metric: str) -> Difference | None:
    """Over the seeds that have the metric's last value in both arms; None if there is no such seed.

    By question where every one of these runs has recorded the metric so, for the questions that all of them have; None
    if there is no such question.
    """
    values, first_values = _last_values(runs, metric), _last_values(first_arm, metric)
    shared = [seed for seed in values if seed in first_values]
    if not shared:
        return None
    ours, theirs = _by_question(runs, shared, metric), _by_question(first_arm, shared, metric)
    questions = sorted(set.intersection(*(set(by_row) for by_row in (*ours, *theirs))))
    if not questions and all((*ours, *theirs)):
        return None
    if questions:
        table = [[our[row] - their[row] for row in questions] for our, their in zip(ours, theirs)]
    else:
        table = [[values[seed] - first_values[seed]] for seed in shared]
    found = crossed(np.array(table))
    return Difference(
        found.mean,
        found.over_both,
        len(shared),
        len(questions),
        found.over_questions,
        found.p_value,
        spread=found.spread,
    )


def _by_question(runs: Sequence[Evaluations], seeds: Sequence[int], metric: str) -> list[Mapping[int, float]]:
    """Held-out row -> last value of a metric, for each of the seeds; {} where it is not recorded by question."""
    by_seed = {run.seed: run.by_question.get(metric, {}) for run in runs}
    return [by_seed[seed] for seed in seeds]


def _last_values(runs: Sequence[Evaluations], metric: str) -> dict[int, float]:
    """Seed -> last value of a metric, for the runs that have one."""
    return {run.seed: values[run.last] for run in runs if run.last in (values := run.values.get(metric, {}))}


def _without_none(values: Mapping[str, T | None]) -> dict[str, T]:
    return {name: value for name, value in values.items() if value is not None}
