"""How far each run of a study is: finished, failed, unfinished or not begun; and what of a finished one is missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlt_jax.configs import TrainConfig
from rlt_jax.report.step_lines import latest_lines, read_lines
from rlt_jax.report.whole_file import whole_file
from rlt_jax.report.writer import METRICS_FILE
from rlt_jax.studies.comparison import QUANTITIES, read_evaluations

State = Literal["finished", "failed", "unfinished", "not begun"]


@dataclass(frozen=True)
class RunState:
    """How far a run is."""

    state: State
    steps: int  # gradient steps done
    note: str = ""  # why it failed, or what a reader of its numbers should know; empty: nothing


def run_state(run: TrainConfig) -> RunState:
    """How far a run is, from its folder and from what `record_failure` left beside it.

    One that has evaluated its last step counts as finished, also where its checkpoints are not in the folder.
    """
    folder = Path(run.output_dir)
    steps = next((int(record["step"]) for record in latest_lines(folder / METRICS_FILE)), 0)
    record = failure_file(folder)
    failure = record.read_text(encoding="utf-8").strip() if record.exists() else ""
    if read_evaluations(folder, last=run.max_steps):
        flaws = [*_flaws(folder, last=run.max_steps), *([f"failed after its evaluation: {failure}"] if failure else [])]
        return RunState("finished", steps, "; ".join(flaws))
    if failure:
        return RunState("failed", steps, failure)
    return RunState("unfinished" if folder.exists() else "not begun", steps)


def is_finished(run: TrainConfig) -> bool:
    """Whether a run has evaluated its last step and written the checkpoint and the export that its settings ask for."""
    folder = Path(run.output_dir)
    last, exported = folder / "checkpoints" / str(run.max_steps), folder / "final"
    required = [path for path, on in ((last, run.checkpoint.at_end), (exported, run.checkpoint.export)) if on]
    if not read_evaluations(folder, last=run.max_steps) or not all(path.exists() for path in required):
        return False
    # an export older than the checkpoint dates from before the run was extended
    return len(required) < 2 or exported.stat().st_mtime >= last.stat().st_mtime


def record_failure(run_dir: Path, failure: str | None) -> None:
    """Remember beside a run's folder why it failed; None: forget it, as the run begins again or has succeeded."""
    path = failure_file(run_dir)
    if failure is None:
        path.unlink(missing_ok=True)
        return
    with whole_file(path, "why the run failed") as written:
        written.write_text(failure + "\n", encoding="utf-8")


def failure_file(run_dir: Path) -> Path:
    """ARM/seed-S.failed, beside the run folder ARM/seed-S."""
    return run_dir.with_name(f"{run_dir.name}.failed")


def runs_markdown(states: Mapping[str, Mapping[int, RunState]], steps: Mapping[str, int]) -> str:
    """The runs that have no whole results, one a line; "" if all are finished without a flaw.

    Args:
      states: arm -> seed -> state.
      steps: arm -> gradient steps of a whole run.
    """
    lines = []
    for arm, by_seed in states.items():
        for seed, state in by_seed.items():
            if state.state == "not begun" or (state.state == "finished" and not state.note):
                continue
            done = f" at step {state.steps} of {steps[arm]}" if state.state != "finished" else ""
            lines.append(f"- {arm}, seed {seed}: {state.state}{done}{f': {state.note}' if state.note else ''}")
        if missing := [seed for seed, state in by_seed.items() if state.state == "not begun"]:
            lines.append(f"- {arm}, seed{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}: not begun")
    if not lines:
        return ""
    return "\n".join(["## Runs without whole results", "", "Only finished ones count above.", "", *lines]) + "\n"


def _flaws(folder: Path, *, last: int) -> list[str]:
    """What the numbers of a finished run lack."""
    flaws = []
    records = read_lines(folder / METRICS_FILE)
    skipped = max((record.get("skipped_steps") or 0 for record in records), default=0)
    if skipped:
        flaws.append(f"steps skipped, as numbers were NaN or infinite: {skipped:g}")
    (*_, evaluation) = [record for record in records if record["step"] == last and "eval/reward" in record]
    unknown = [q.title for q in QUANTITIES if evaluation.get(f"eval/{q.metric}", 0) is None]
    if unknown:
        flaws.append(f"not finite at the last evaluation, so left out: {', '.join(unknown)}")
    return flaws
