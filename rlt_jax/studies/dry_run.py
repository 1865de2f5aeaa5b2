"""What a study would do, before it does it: arms and the fields in which they differ, hours, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from rlt_jax.configs import TrainConfig
from rlt_jax.configs.resume import leaves, shown
from rlt_jax.errors import UserError
from rlt_jax.planner.report import Report, make_report
from rlt_jax.report.step_lines import read_lines
from rlt_jax.report.writer import METRICS_FILE
from rlt_jax.studies.cells import MISSING, markdown_table
from rlt_jax.studies.comparable import differing_fields
from rlt_jax.studies.run_states import is_finished
from rlt_jax.types import GB

Runs = Mapping[str, Mapping[int, TrainConfig]]  # arm -> seed -> run

_NO_SIZE = (  # fields, and sections with their dot, that hardly change how long a step takes
    *("seed", "output_dir", "resume", "stop_grace", "accept_changes", "max_steps", "learning_rate", "temperature"),
    *("save_steps", "eval_steps", "logging_steps", "loss.", "advantages.", "reward.", "optimizer.", "ref.", "log."),
    *("checkpoint.", "checks.", "alarms."),
)
_SIZE = ("loss.logprob_chunk", "loss.saved_mlp", "loss.saved_attention")  # that do so nevertheless
LEAST_STEPS = 5  # of an unfinished run whose time counts


@dataclass(frozen=True)
class Pace:
    """How long the steps of runs took."""

    step: float  # s, mean over steps, those that compile included
    evaluation: float  # s; 0: none was made
    source: str  # which runs they were, such as `no-kl, seed 1`

    def seconds(self, run: TrainConfig) -> float:
        """Time of a whole run without its start, s."""
        evaluations = 1 + run.max_steps // run.eval_steps if run.eval_steps else 0
        return run.max_steps * self.step + evaluations * self.evaluation


class Measured(NamedTuple):
    """A run of the study that has been trained, whole or in part."""

    arm: str
    run: TrainConfig
    finished: bool
    pace: Pace


def dry_run(runs: Runs, chosen: Runs, folder: Path) -> tuple[str, bool]:
    """What a study would do, as Markdown, and whether all of its arms fit. Writes and starts nothing.

    Args:
      runs: of the whole study, whose finished runs say how long others take.
      chosen: the runs that would be trained now, if they are not finished.
    """
    todo = {arm: [run for run in by_seed.values() if not is_finished(run)] for arm, by_seed in chosen.items()}
    whole, left = sum(map(len, chosen.values())), sum(map(len, todo.values()))
    seeds = sorted({seed for by_seed in chosen.values() for seed in by_seed})
    parts = [
        f"Arms: {len(chosen)}, seeds: {len(seeds)} ({', '.join(map(str, seeds))}), runs in {folder}: {whole}, of which "
        f"{whole - left} are finished and {left} are to train. Nothing is started or written."
    ]
    firsts = {arm: next(iter(by_seed.values())) for arm, by_seed in chosen.items()}
    if fields := differing_fields(firsts):
        rows = [[arm, *(_value(by_arm, arm) for by_arm in fields.values())] for arm in firsts]
        parts.append(markdown_table(["arm", *fields], rows) + "\n\nBlank: as in the first arm.")
    parts.append(_time_text(runs, todo, folder))
    plans = {arm: _plan(run) for arm, run in firsts.items()}
    parts.append(_memory_text(plans))
    return "\n\n".join(parts), all(isinstance(plan, Report) and plan.fits for plan in plans.values())


def measured_runs(runs: Runs) -> list[Measured]:
    """The runs of a study whose steps were timed: finished ones, and others from LEAST_STEPS on."""
    found = []
    for arm, by_seed in runs.items():
        for seed, run in by_seed.items():
            records, finished = read_lines(Path(run.output_dir) / METRICS_FILE), is_finished(run)
            steps = [seconds for record in records if (seconds := record.get("seconds/step")) is not None]
            if len(steps) >= LEAST_STEPS or (steps and finished):
                source = f"{arm}, seed {seed}" + ("" if finished else f", {len(steps)} steps so far")
                pace = Pace(mean(steps), mean(_evaluations(records) or [0.0]), source)
                found.append(Measured(arm, run, finished, pace))
    return found


def pace_of(run: TrainConfig, arm: str, known: Sequence[Measured]) -> Pace | None:
    """The time of a run: the mean over the arm's own runs, else over those whose steps are as large; None: no such.

    Finished runs go before others.
    """
    own = [other for other in known if other.arm == arm]
    alike = own or [other for other in known if _size(other.run) == _size(run)]
    paces = [other.pace for other in alike if other.finished] or [other.pace for other in alike]
    if len(paces) < 2:
        return paces[0] if paces else None
    source = f"{len(paces)} runs of {'the arm' if own else 'its size'}"
    return Pace(mean(pace.step for pace in paces), mean(pace.evaluation for pace in paces), source)


def _evaluations(records: Sequence[Mapping[str, float]]) -> list[float]:
    """Times of the evaluations after a step, s: from the step's line to theirs."""
    return [
        line["time"] - before["time"]
        for before, line in pairwise(records)
        if "eval/reward" in line and before["step"] == line["step"] and "seconds/step" in before
    ]


def _size(run: TrainConfig) -> dict[str, object]:
    """The settings that decide how long a step takes."""
    return {name: value for name, value in leaves(asdict(run)) if name in _SIZE or not name.startswith(_NO_SIZE)}


def _time_text(runs: Runs, todo: Mapping[str, Sequence[TrainConfig]], folder: Path) -> str:
    known = measured_runs(runs)
    rows, total, unknown = [], 0.0, []
    for arm, left in todo.items():
        pace = pace_of(left[0], arm, known) if left else None
        if left and pace is None:
            unknown.append(arm)
        seconds = 0.0 if pace is None else sum(pace.seconds(run) for run in left)
        total += seconds
        time = "0" if not left else "unknown" if pace is None else f"{seconds / 3600:.2f}"
        step = MISSING if pace is None else f"{pace.step:.2f}"
        rows.append([arm, str(len(left)), step, time, MISSING if pace is None else pace.source])
    lines = [markdown_table(["time", "runs to train", "seconds a step", "hours", "as measured on"], rows)]
    if total or unknown:
        lines.append("")
    if total:
        lines.append(
            f"{total / 3600:.2f} hours{' for the arms with a measured time' if unknown else ''}, one run after the "
            "other, as fast as the runs they were measured on; starts are not counted, and a run that is resumed is "
            "counted in full."
        )
    if unknown:
        arms = "all arms" if len(unknown) == len(todo) else ", ".join(unknown)
        first = f"--only {unknown[0]} --seeds {todo[unknown[0]][0].seed}"
        lines.append(
            f"Hours unknown for {arms}: no run of their size in {folder} has been trained yet, and the plan knows "
            f"memory, not time. Train one first (`{first}`), then ask again."
        )
    return "\n".join(lines)


def _plan(run: TrainConfig) -> Report | str:
    """The plan of a run, or why there is none, such as a model that is not found."""
    try:
        return make_report(run, compile_programs=False)
    except UserError as error:
        return str(error)


def _memory_text(plans: Mapping[str, Report | str]) -> str:
    rows, problems = [], []
    for arm, plan in plans.items():
        if isinstance(plan, str):
            rows.append([arm, *[MISSING] * 5, "no"])
            problems.append(f"- {arm} cannot run: {plan}")
            continue
        gpu, host = plan.ledger.gpu_peak, plan.ledger.host_peak
        bounds = [MISSING if size is None else f"{size / GB:.1f}" for size in (plan.gpu_bytes, plan.host_bytes)]
        cells = [f"{gpu.gpu_bytes / GB:.2f}", gpu.name, bounds[0], f"{host.host_bytes / GB:.2f}", bounds[1]]
        rows.append([arm, *cells, "yes" if plan.fits else "no"])
        checks = (f"{check.name}: {check.found}: {check.advice}" for check in plan.failed_checks)
        problems += [f"- {arm} does not fit: {problem}" for problem in (*plan.shortfalls, *checks)]
    heads = ["memory, GB", "GPU", "in phase", "may be used", "host", "may be used", "fits"]
    here = any(isinstance(plan, Report) and plan.gpu is not None for plan in plans.values())
    origin = (
        f"By the formulas of the plan for {'this' if here else 'a'} GPU, at the largest lengths; "
        "`python -m rlt_jax.plan --config FILE` has the whole plan of a run."
    )
    return "\n".join([markdown_table(heads, rows), "", origin, *problems])


def _value(by_arm: Mapping[str, object], arm: str) -> str:
    """The value of a field in an arm; blank if it is that of the first."""
    first, value = next(iter(by_arm.values())), by_arm[arm]
    if arm != next(iter(by_arm)) and value == first:
        return ""
    return "null" if value is None else shown(value) or "[]"
