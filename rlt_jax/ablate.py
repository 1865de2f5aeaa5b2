"""Train the arms of a study under several seeds and compare them: `python -m rlt_jax.ablate --study paper ...`."""

import sys
from collections.abc import Mapping
from pathlib import Path

from rich import get_console

from rlt_jax.configs import (
    AblateConfig,
    TrainConfig,
    changed_fields,
    load_config,
    parse_command,
    run_or_print,
    save_config,
    study_runs,
)
from rlt_jax.errors import UserError, run_command
from rlt_jax.evaluation import read_run
from rlt_jax.launch import run_logged
from rlt_jax.report.comparison import (
    compare,
    comparison_markdown,
    comparison_tables,
    draw_comparison,
    read_evaluations,
    write_comparison_csv,
)
from rlt_jax.report.folder import writing_to
from rlt_jax.report.log import is_live, print_plain
from rlt_jax.report.whole_file import whole_file

FREE = ("output_dir", "resume", "max_steps", "log.", "checkpoint.", "memory.")  # may change before a run goes on

Runs = Mapping[str, Mapping[int, TrainConfig]]  # arm -> seed -> run


def ablate(config: AblateConfig) -> Path:
    """Train what is asked for and not finished yet, one run after the other, then compare all that is finished.

    Returns:
      The study's folder: ARM/seed-S/ (runs), ARM/seed-S.yaml and .log (what each was told and printed), and
      comparison.md, .csv and .png.
    Raises:
      UserError: anything in the study that cannot work, before the first run; summary_only without the study's folder;
        runs that failed, after the last one.
    """
    runs = study_runs(config)
    if config.summary_only and not Path(config.output_dir).is_dir():
        raise UserError(
            f"--output-dir {config.output_dir}: expected the folder of a study, but there is none: give the one that "
            "its runs are in, or leave out --summary-only to train them"
        )
    chosen = {
        f"{arm}, seed {seed}": run
        for arm, of_arm in runs.items()
        for seed, run in of_arm.items()
        if (not config.only or arm in config.only) and (not config.seeds or seed in config.seeds)
    }
    failures = [] if config.summary_only else train_all(chosen)
    summarise(runs, Path(config.output_dir))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(chosen)} runs failed:\n"
            + "\n".join(f"  {failure}" for failure in failures)
            + "\nmend what is wrong and give the same command again: finished runs are left alone, others go on"
        )
    return Path(config.output_dir)


def train_all(runs: Mapping[str, TrainConfig]) -> list[str]:
    """Train the runs that are not finished, one process each; returns a line for each that failed.

    Raises:
      UserError: a folder holds a run of another configuration. Nothing has been trained then.
    """
    for run in runs.values():
        check_same_run(run)
    failures = []
    for number, (name, run) in enumerate(runs.items(), 1):
        if is_finished(run):
            print(f"[{number}/{len(runs)}] {name}: finished already", flush=True)
            continue
        print(f"[{number}/{len(runs)}] {name}: {run.output_dir}", flush=True)
        failure = train_in_process(run, name)
        if failure:
            print(f"[{number}/{len(runs)}] {name}: failed, going on", flush=True)
            failures.append(f"{name}: {failure}")
    return failures


def check_same_run(run: TrainConfig) -> None:
    """Refuse a run folder whose run was told to do something else than this one, its length apart."""
    saved = Path(run.output_dir) / "config.yaml"
    if saved.exists():
        changed = [name for name in changed_fields(run, load_config(saved)) if not name.startswith(FREE)]
        if changed:
            raise UserError(
                f"{run.output_dir} holds a run with other settings ({', '.join(changed)}): "
                "give the study another --output-dir, or delete that folder"
            )


def is_finished(run: TrainConfig) -> bool:
    """Whether a run has taken its last step and left what it was told to leave: a checkpoint of it, the teacher."""
    folder = Path(run.output_dir)
    last, exported = folder / "checkpoints" / str(run.max_steps), folder / "final"
    wanted = [path for path, asked in ((last, run.checkpoint.at_end), (exported, run.checkpoint.export)) if asked]
    if not read_evaluations(folder, last=run.max_steps) or not all(path.exists() for path in wanted):
        return False
    # an export older than the checkpoint is that of a shorter run which was made longer since
    return len(wanted) < 2 or exported.stat().st_mtime >= last.stat().st_mtime


def train_in_process(run: TrainConfig, name: str) -> str | None:
    """`python -m rlt_jax.train`, its output shown behind the run's name and kept; returns why it failed, if it did."""
    folder = Path(run.output_dir)
    told, log = folder.with_name(f"{folder.name}.yaml"), folder.with_name(f"{folder.name}.log")
    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    save_config(run, told)
    return run_logged("rlt_jax.train", ["--config", str(told)], name, log)


def summarise(runs: Runs, folder: Path) -> None:
    """Write comparison.md, .csv and .png of the finished runs, and print the table."""
    finished = {
        arm: [
            found
            for run in of_arm.values()
            if (found := read_run(Path(run.output_dir), last=run.max_steps, seed=run.seed))
        ]
        for arm, of_arm in runs.items()
    }
    if not any(finished.values()):
        print(f"{folder}: no run is finished, nothing to compare")
        return
    arms = compare(finished, {arm: len(of_arm) for arm, of_arm in runs.items()})
    files = {suffix: folder / f"comparison.{suffix}" for suffix in ("md", "csv", "png")}
    with whole_file(files["md"], "the comparison") as path:
        path.write_text(comparison_markdown(arms) + "\n![Metrics over steps](comparison.png)\n", encoding="utf-8")
    with whole_file(files["csv"], "the comparison") as path:
        write_comparison_csv(arms, path)
    with whole_file(files["png"], "the comparison") as path:
        draw_comparison(finished, path)
    console = get_console()
    if is_live(console):
        console.print(*comparison_tables(arms), sep="\n")
    else:
        print_plain(console, comparison_markdown(arms))
    print(f"comparison: {', '.join(map(str, files.values()))}")


def main() -> None:
    parsed = parse_command(AblateConfig, sys.argv[1:], prog="python -m rlt_jax.ablate", description=__doc__)
    run_or_print(*parsed, run=ablate)


if __name__ == "__main__":
    run_command(main)
