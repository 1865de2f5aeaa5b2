"""The training runs of an ablation study: arms times grid times seeds."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlt_jax.configs.ablate import AblateConfig
from rlt_jax.configs.checks import text_problems
from rlt_jax.configs.files import load_settings, merged_values, read_yaml
from rlt_jax.configs.following import given_keys
from rlt_jax.configs.presets import own_values, train_config
from rlt_jax.configs.resume import leaves
from rlt_jax.configs.train import TrainConfig, check_config
from rlt_jax.errors import UserError
from rlt_jax.studies.study_arms import Fields, all_arms, arm_problems, fields_text, list_problems, nested, read_grid
from rlt_jax.studies.study_file import base_path, study_names, study_path

EXAMPLE = "rlt_jax/assets/studies/ablate/paper.yaml"
COMMAND_LINE = "--grid"  # in the place of a study's file, for messages


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study, as its file describes it. Its runs are arms times grid times seeds."""

    base: dict[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig for all runs, nested as in a run's configuration file."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Arm -> fields that it changes."""
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Field with its section (`loss.beta`) -> values. Every arm is combined with all combinations of values."""
    seeds: tuple[int, ...]
    """Seeds of every arm."""


def study_runs(config: AblateConfig) -> dict[str, dict[int, TrainConfig]]:
    """Build and check all training runs of a study, in its order: arm -> seed -> run.

    Raises:
      UserError: no such study; mistakes in it or in any arm's configuration, arms that are the same run or change
        nothing, a run without held-out rows, or `only` or `seeds` that are not in the study, one per line.
    """
    source, study = _study(config)
    named = None if config.base is None else base_path(config.base)
    base = study.base if named is None else read_yaml(named)
    given = given_keys(base) if named is None else own_values(base)
    of_base = f"{source}, base" if named is None else str(named)
    train_config(base, source=of_base, log=lambda note: None)
    problems = [*list_problems("seeds", study.seeds), *arm_problems(study.arms, study.grid)]
    if problems:
        raise UserError("\n".join(f"{source}: {problem}" for problem in problems))
    runs: dict[str, dict[int, TrainConfig]] = {}
    for arm, fields in all_arms(study.arms, study.grid):
        try:
            run = _arm(base, given, fields, source=f"{source}, arm {arm}")
        except UserError as error:
            problems.append(str(error))
            continue
        runs[arm] = {
            seed: replace(run, seed=seed, output_dir=str(Path(config.output_dir, arm, f"seed-{seed}")), resume="auto")
            for seed in study.seeds
        }
        found = (problem for run in runs[arm].values() for problem in _run_problems(run))
        problems += dict.fromkeys(f"{source}: arm {arm}: {problem}" for problem in found)  # once, as seeds share them
    if problems:
        raise UserError("\n".join(problems))
    if problems := list(_option_problems(config, runs, study.seeds)):
        raise UserError("\n".join(problems))
    chosen = {arm: of_arm for arm, of_arm in runs.items() if not config.only or arm in config.only}
    asked = {
        arm: changes
        for arm, changes in study.arms.items()
        if any(name == arm or name.startswith(f"{arm}+") for name in chosen)  # at some point of the grid
    }
    problems = [*_equal_arms(chosen), *_idle_arms(asked, base, given, of_base)]
    if problems:
        raise UserError("\n".join(f"{source}: {problem}" for problem in problems))
    return runs


def _study(config: AblateConfig) -> tuple[str, StudyFile]:
    """Where the study is from, for messages, and the study: that of the file, with the grid of the command line."""
    grid = read_grid(config.grid)
    if config.study is None:
        if not grid:
            raise UserError(
                "expected --study NAME, or a grid such as --grid loss.beta=0,0.04 --seeds 1 2 3, came neither: "
                f"studies of the package are {study_names('ablate')}"
            )
        if not config.seeds:
            raise UserError("--grid without --study: give the seeds of all arms, such as --seeds 1 2 3")
        return COMMAND_LINE, StudyFile(grid=grid, seeds=config.seeds)
    path = study_path(config.study, "ablate")
    study = load_settings(path, StudyFile, example=EXAMPLE)
    if twice := [name for name in grid if name in study.grid]:
        raise UserError(f"--grid {twice[0]}: {path} has a grid over {twice[0]} too: leave it out of one of them")
    return str(path), replace(study, grid={**study.grid, **grid})


def _arm(base: Mapping[str, Any], given: frozenset[str], fields: Fields, *, source: str) -> TrainConfig:
    """The run of an arm: what base and arm give, over the preset that they name.

    An arm on other rows than the base's preset takes nothing of the preset's data, but keeps what the base itself says.

    Args:
      base: the study's base, or the file in its place.
      given: the fields of the base that the user gave.
    """
    values = merged_values(base, nested(fields))
    before, data = base.get("data"), values.get("data")
    if isinstance(before, dict) and isinstance(data, dict) and before.get("path") != data.get("path"):
        # a config.yaml has all values, also those of its preset
        own = {name: value for name, value in data.items() if f"data.{name}" in given | fields.keys()}
        values = {**values, "data": own}
    return train_config(values, source=source, given=given | fields.keys())


def _equal_arms(runs: Mapping[str, Mapping[int, TrainConfig]]) -> Iterator[str]:
    """Arms that are the same run but for their names."""
    seen: dict[str, TrainConfig] = {}
    for arm, by_seed in runs.items():
        run = replace(next(iter(by_seed.values())), output_dir="")
        if same := [other for other, of_other in seen.items() if of_other == run]:
            yield f"arms {same[0]} and {arm} are the same run: leave one of them out"
        seen[arm] = run


def _idle_arms(
    arms: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any], given: frozenset[str], of_base: str
) -> Iterator[str]:
    """Arms that set fields to what they are without them; an arm that sets none is the one to compare with."""
    without = _arm(base, given, {}, source=of_base)
    for arm, changes in arms.items():
        fields = dict(leaves(changes))
        try:
            run = _arm(base, given, fields, source=arm)
        except UserError:  # it needs a value of the grid
            continue
        if fields and run == without:
            yield (
                f"arm {arm} changes nothing, as {of_base} has {fields_text(fields)} already: leave the arm out, or "
                f"write `{arm}: {{}}` for the arm to compare with"
            )


def _option_problems(config: AblateConfig, arms: Collection[str], seeds: Collection[int]) -> Iterator[str]:
    """Values of the command's options that the study does not have, or that are given twice."""
    yield from text_problems({"output_dir": (config.output_dir, "a folder for the study")})
    if config.difference is not None and not 0 < config.difference < math.inf:
        yield f"--difference {config.difference:g}: expected a positive number of nats per token, or None"
    if config.dry_run and config.summary_only:
        yield "--dry-run and --summary-only: give only one of them"
    options: dict[str, tuple[tuple, Collection]] = {"only": (config.only, arms), "seeds": (config.seeds, seeds)}
    for flag, (chosen, known) in options.items():
        for unknown in [name for name in chosen if name not in known]:
            yield f"--{flag} {unknown} is not in the study: choose from {', '.join(map(str, known))}"
        for twice in dict.fromkeys(name for i, name in enumerate(chosen) if name in chosen[:i]):
            yield f"--{flag}: {twice} is given twice"


def _run_problems(run: TrainConfig) -> list[str]:
    try:
        check_config(run)
    except UserError as error:
        return str(error).splitlines()
    if run.eval_steps == 0 or run.data.eval_rows == 0:
        return [
            f"eval_steps={run.eval_steps}, data.eval_rows={run.data.eval_rows}: arms are compared on held-out rows: "
            "set eval_steps in the base, and data.eval_rows to their number or None"
        ]
    return []
