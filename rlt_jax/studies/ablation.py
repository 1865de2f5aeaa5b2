"""Train the runs of an ablation study, one process each, and compare them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich import get_console

from rlt_jax.configs import TrainConfig, load_config, save_config
from rlt_jax.configs.resume import changed_fields
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.json_text import json_text
from rlt_jax.report.log import print_plain, shows_tables, table_width
from rlt_jax.report.whole_file import whole_file
from rlt_jax.runs.launch import run_logged
from rlt_jax.runs.machine import on_this_machine
from rlt_jax.studies.certainty import certainty_facts, certainty_markdown
from rlt_jax.studies.comparable import same_rows, unlike_metrics
from rlt_jax.studies.comparison import QUANTITIES, compare, read_run
from rlt_jax.studies.comparison_report import (
    comparison_markdown,
    comparison_tables,
    draw_comparison,
    write_comparison_csv,
)
from rlt_jax.studies.run_states import RunState, is_finished, record_failure, run_state, runs_markdown

Runs = Mapping[str, Mapping[int, TrainConfig]]  # arm -> seed -> run


def train_all(runs: Mapping[str, TrainConfig]) -> list[str]:
    """Train the runs that are not finished, one process each.

    Returns:
      A line for each run that failed.
    Raises:
      UserError: before any training, if a folder holds a run with other settings.
    """
    for run in runs.values():
        check_same_run(run)
    failures = []
    for number, (name, run) in enumerate(runs.items(), 1):
        if is_finished(run):
            print(f"[{number}/{len(runs)}] {name}: already finished", flush=True)
            continue
        print(f"[{number}/{len(runs)}] {name}: {run.output_dir}", flush=True)
        failure = train_in_process(run, name)
        if failure:
            print(f"[{number}/{len(runs)}] {name}: failed, continuing with the others", flush=True)
            failures.append(f"{name}: {failure}")
    return failures


def check_same_run(run: TrainConfig) -> None:
    """Reject a run folder that holds a run with other settings; only the number of steps may differ."""
    saved = Path(run.output_dir) / "config.yaml"
    if saved.exists():
        # more steps extend a run, which stays the same up to there
        changed = [name for name in changed_fields(on_this_machine(run), load_config(saved)) if name != "max_steps"]
        if changed:
            raise UserError(
                f"{run.output_dir} holds a run with other settings ({', '.join(changed)}): "
                "give the study another --output-dir, or delete that folder"
            )


def train_in_process(run: TrainConfig, name: str) -> str | None:
    """Run `python -m rlt_jax.train`, and show and log its output; returns why it failed, None if it did not."""
    folder = Path(run.output_dir)
    settings, log = folder.with_name(f"{folder.name}.yaml"), folder.with_name(f"{folder.name}.log")
    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        record_failure(folder, None)
    save_config(run, settings)
    failure = run_logged("rlt_jax.train", ["--config", str(settings)], name, log)
    if failure is not None:
        record_failure(folder, failure)
    return failure


def summarise(runs: Runs, folder: Path, *, difference: float | None = None) -> None:
    """Write comparison.md, .csv, .json and .png of the finished runs, and print the report.

    Args:
      difference: as in `certainty_markdown`.
    """
    states = {arm: {seed: run_state(run) for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    left_out = runs_markdown(states, {arm: next(iter(by_seed.values())).max_steps for arm, by_seed in runs.items()})
    finished = {
        arm: [
            evaluations
            for run in by_seed.values()
            if (evaluations := read_run(Path(run.output_dir), last=run.max_steps, seed=run.seed))
        ]
        for arm, by_seed in runs.items()
    }
    if not any(finished.values()):
        print(f"{folder}: no run is finished, nothing to compare")
        if any(state.state != "not begun" for of_arm in states.values() for state in of_arm.values()):
            print(left_out, end="")
        return
    unlike = not_comparable(runs)
    arms = compare(finished, {arm: len(by_seed) for arm, by_seed in runs.items()}, apart=unlike)
    below = "\n".join(part for part in (certainty_markdown(arms, unlike, difference=difference), left_out) if part)
    text = comparison_markdown(arms) + (f"\n{below}" if below else "")
    facts = {**certainty_facts(arms, unlike), "runs": {arm: _state_facts(of_arm) for arm, of_arm in states.items()}}
    files = {suffix: folder / f"comparison.{suffix}" for suffix in ("md", "csv", "json", "png")}
    with whole_file(files["md"], "the comparison") as path:
        path.write_text(text + "\n![Metrics over steps](comparison.png)\n", encoding="utf-8")
    with whole_file(files["csv"], "the comparison") as path:
        write_comparison_csv(arms, path)
    with whole_file(files["json"], "the comparison") as path:
        path.write_text(json_text(facts, indent=2) + "\n", encoding="utf-8")
    with whole_file(files["png"], "the comparison") as path:
        draw_comparison(finished, path)
    console = get_console()
    tables = comparison_tables(arms)
    if shows_tables(console, width=table_width(*tables)):
        console.print(*tables, sep="\n")
        print_plain(console, below)
    else:
        print_plain(console, text)
    print(f"comparison: {', '.join(map(str, files.values()))}")


def not_comparable(runs: Runs) -> dict[str, dict[str, str]]:
    """Arm -> metrics that are not comparable with the first arm's -> why."""
    first = next(iter(next(iter(runs.values())).values()))
    unlike = {}
    for arm, by_seed in runs.items():
        run = next(iter(by_seed.values()))
        unlike[arm] = (
            unlike_metrics(run, first)
            if same_rows(run, first)
            else dict.fromkeys((quantity.metric for quantity in QUANTITIES), "other held-out rows")
        )
    return unlike


def _state_facts(states: Mapping[int, RunState]) -> dict[str, dict[str, object]]:
    return {str(seed): asdict(state) for seed, state in states.items()}
