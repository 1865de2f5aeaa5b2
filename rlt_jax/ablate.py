"""Train the arms of a study under several seeds and compare them: `python -m rlt_jax.ablate --study paper ...`."""

import sys
from pathlib import Path

from rlt_jax import stops
from rlt_jax.configs import AblateConfig, parse_command, run_or_print
from rlt_jax.errors import UserError, command
from rlt_jax.report.owner import sole_user
from rlt_jax.runs.own_reward import pinned
from rlt_jax.studies.ablation import Runs, check_same_run, summarise, train_all
from rlt_jax.studies.ablation_runs import study_runs
from rlt_jax.studies.comparable import different_rows
from rlt_jax.studies.dry_run import dry_run


def ablate(config: AblateConfig) -> Path:
    """Train the requested runs that are not finished, one after the other, then compare all finished runs.

    Returns:
      The study's folder: ARM/seed-S/ (runs), ARM/seed-S.yaml and .log (settings and output of each), and
      comparison.md, .csv, .json and .png. With dry_run nothing is trained or written.
    Raises:
      UserError: an unusable study, before the first run; summary_only without the study's folder; failed runs, after
        the last one.
      SystemExit: code 1, if in a dry run an arm does not fit.
    """
    runs = study_runs(config)
    if config.summary_only and not Path(config.output_dir).is_dir():
        raise UserError(
            f"--output-dir {config.output_dir}: expected the folder of a study, but there is none: give the folder of "
            "its runs, or leave out --summary-only to train them"
        )
    chosen = {
        arm: {seed: run for seed, run in by_seed.items() if not config.seeds or seed in config.seeds}
        for arm, by_seed in runs.items()
        if not config.only or arm in config.only
    }
    if not config.summary_only:  # before the first run, so that all have one file of a reward function
        chosen = {arm: {seed: pinned(run) for seed, run in by_seed.items()} for arm, by_seed in chosen.items()}
    if (warning := different_rows(runs)) is not None:
        print(f"WARNING {warning}", flush=True)
    if config.dry_run:
        show_dry_run(runs, chosen, Path(config.output_dir))
        return Path(config.output_dir)
    named = {f"{arm}, seed {seed}": run for arm, by_seed in chosen.items() for seed, run in by_seed.items()}
    with (
        stops.reported(lambda: "the same command leaves finished runs alone and resumes the others"),
        sole_user(Path(config.output_dir), "--output-dir"),
    ):
        failures = [] if config.summary_only else train_all(named)
        summarise(runs, Path(config.output_dir), difference=config.difference)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(named)} runs failed:\n"
            + "\n".join(f"  {failure}" for failure in failures)
            + "\nfix what is wrong and repeat the command: finished runs are left alone, others resume"
        )
    return Path(config.output_dir)


def show_dry_run(runs: Runs, chosen: Runs, folder: Path) -> None:
    """Print what the study would do; exit with code 1 if an arm does not fit."""
    for by_seed in chosen.values():
        for run in by_seed.values():
            check_same_run(run)
    text, fits = dry_run(runs, chosen, folder)
    print(text)
    if not fits:
        raise SystemExit(1)


@command
def main() -> None:
    parsed = parse_command(AblateConfig, sys.argv[1:], command="ablate", description=__doc__)
    run_or_print(*parsed, run=ablate)


if __name__ == "__main__":
    main()
