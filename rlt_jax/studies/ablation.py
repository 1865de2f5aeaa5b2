"""Train the runs of an ablation study, one process each, and compare them."""

from collections.abc import Mapping
from pathlib import Path

from rich import get_console

from rlt_jax.configs import TrainConfig, load_config, save_config
from rlt_jax.configs.resume import changed_fields
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.log import print_plain, shows_tables, table_width
from rlt_jax.report.whole_file import whole_file
from rlt_jax.runs.launch import run_logged
from rlt_jax.runs.machine import on_this_machine
from rlt_jax.studies.comparison import compare, read_evaluations, read_run
from rlt_jax.studies.comparison_report import (
    comparison_markdown,
    comparison_tables,
    draw_comparison,
    write_comparison_csv,
)

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


def is_finished(run: TrainConfig) -> bool:
    """Whether a run has evaluated its last step and written the checkpoint and the export that its settings ask for."""
    folder = Path(run.output_dir)
    last, exported = folder / "checkpoints" / str(run.max_steps), folder / "final"
    required = [path for path, on in ((last, run.checkpoint.at_end), (exported, run.checkpoint.export)) if on]
    if not read_evaluations(folder, last=run.max_steps) or not all(path.exists() for path in required):
        return False
    # an export older than the checkpoint dates from before the run was extended
    return len(required) < 2 or exported.stat().st_mtime >= last.stat().st_mtime


def train_in_process(run: TrainConfig, name: str) -> str | None:
    """Run `python -m rlt_jax.train`, and show and log its output; returns why it failed, None if it did not."""
    folder = Path(run.output_dir)
    settings, log = folder.with_name(f"{folder.name}.yaml"), folder.with_name(f"{folder.name}.log")
    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    save_config(run, settings)
    return run_logged("rlt_jax.train", ["--config", str(settings)], name, log)


def summarise(runs: Runs, folder: Path) -> None:
    """Write comparison.md, .csv and .png of the finished runs, and print the tables."""
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
        return
    arms = compare(finished, {arm: len(by_seed) for arm, by_seed in runs.items()})
    files = {suffix: folder / f"comparison.{suffix}" for suffix in ("md", "csv", "png")}
    with whole_file(files["md"], "the comparison") as path:
        path.write_text(comparison_markdown(arms) + "\n![Metrics over steps](comparison.png)\n", encoding="utf-8")
    with whole_file(files["csv"], "the comparison") as path:
        write_comparison_csv(arms, path)
    with whole_file(files["png"], "the comparison") as path:
        draw_comparison(finished, path)
    console = get_console()
    tables = comparison_tables(arms)
    if shows_tables(console, width=table_width(*tables)):
        console.print(*tables, sep="\n")
    else:
        print_plain(console, comparison_markdown(arms))
    print(f"comparison: {', '.join(map(str, files.values()))}")
