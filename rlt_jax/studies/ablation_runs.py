"""The training runs of an ablation study: arms times grid times seeds."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import product
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
from rlt_jax.runs.announce import evaluated_rows
from rlt_jax.studies.study_file import study_path

RESERVED_FIELDS = ("preset", "seed", "output_dir", "resume")  # fields of a run that the study sets, not its arms
EXAMPLE = "rlt_jax/assets/studies/ablate/paper.yaml"


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
      UserError: no such study; mistakes in it or in an arm's configuration, a run without held-out rows, or `only` or
        `seeds` that are not in the study, one per line.
    """
    path = study_path(config.study, "ablate")
    study = load_settings(path, StudyFile, example=EXAMPLE)
    if config.base is None:
        base, given = study.base, given_keys(study.base)
    else:
        base = read_yaml(config.base)
        given = own_values(base)
    train_config(base, source=f"{path}, base" if config.base is None else config.base, log=lambda note: None)
    problems = list(_file_problems(study))
    arms = {} if problems else dict(_arms(study))
    runs: dict[str, dict[int, TrainConfig]] = {}
    for arm, all_changes in arms.items():
        run = _arm(base, given, all_changes, source=f"{path}, arm {arm}")
        runs[arm] = {
            seed: replace(run, seed=seed, output_dir=str(Path(config.output_dir, arm, f"seed-{seed}")), resume="auto")
            for seed in study.seeds
        }
        found = (problem for run in runs[arm].values() for problem in _run_problems(run))
        problems += dict.fromkeys(f"arm {arm}: {problem}" for problem in found)  # once, as seeds share them
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    if problems := list(_option_problems(config, runs, study.seeds)):
        raise UserError("\n".join(problems))
    return runs


def different_rows(runs: Mapping[str, Mapping[int, TrainConfig]]) -> str | None:
    """A line on arms that are evaluated on different rows, whose numbers cannot be compared; None if all share them."""
    rows = {}
    for arm, by_seed in runs.items():
        data = next(iter(by_seed.values())).data
        rows[arm] = f"{'' if data.eval_rows is None else f'{data.eval_rows} '}{evaluated_rows(data)}"
    if len(set(rows.values())) < 2:
        return None
    names = "; ".join(f"{arm}: {where}" for arm, where in rows.items())
    return (
        f"arms are evaluated on different rows ({names}), so that their numbers cannot be compared: give "
        "data.eval_path and data.eval_rows in the base"
    )


def _arm(
    base: Mapping[str, Any], given: frozenset[str], changes: Sequence[Mapping[str, Any]], *, source: str
) -> TrainConfig:
    """The run of an arm: what base and arm give, over the preset that they name.

    An arm on other rows than the base's preset takes nothing of the preset's data, but keeps what the base itself says.

    Args:
      base: the study's base, or the file in its place.
      given: the fields of the base that the user gave.
    """
    values = reduce(merged_values, changes, dict(base))
    for change in changes:
        given |= given_keys(change)
    before, data = base.get("data"), values.get("data")
    if isinstance(before, dict) and isinstance(data, dict) and before.get("path") != data.get("path"):
        # a config.yaml has all values, also those of its preset
        own = {name: value for name, value in data.items() if f"data.{name}" in given}
        values = {**values, "data": own}
    return train_config(values, source=source, given=given)


def _option_problems(config: AblateConfig, arms: Collection[str], seeds: Collection[int]) -> Iterator[str]:
    """Values of the command's options that the study does not have, or that are given twice."""
    yield from text_problems({"output_dir": (config.output_dir, "a folder for the study")})
    options: dict[str, tuple[tuple, Collection]] = {"only": (config.only, arms), "seeds": (config.seeds, seeds)}
    for flag, (chosen, known) in options.items():
        for unknown in [name for name in chosen if name not in known]:
            yield f"--{flag} {unknown} is not in the study: choose from {', '.join(map(str, known))}"
        for twice in dict.fromkeys(name for i, name in enumerate(chosen) if name in chosen[:i]):
            yield f"--{flag}: {twice} is given twice"


def _file_problems(study: StudyFile) -> Iterator[str]:
    if not study.arms and not study.grid:
        yield "neither arms nor grid: give the settings to compare"
    lists = {"seeds": study.seeds, **{f"grid.{path}": values for path, values in study.grid.items()}}
    for name, values in lists.items():
        if not values:
            yield f"{name} is empty: give one or more values"
        if any(value in values[:i] for i, value in enumerate(values)):
            yield f"{name} holds a value twice: give it once"
        if any(isinstance(value, dict) for value in values):
            yield f"{name} holds a section: name a single field, such as loss.beta, or make it arms"
    for arm, changes in study.arms.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", arm):
            yield f"arms: {arm!r} cannot be a folder's name: use letters, digits, dot, dash and underscore"
        for twice in [path for path, _ in leaves(changes) if path in study.grid]:
            yield f"arms.{arm} sets {twice}, which the grid sets too: leave it out of one of them"
    for name, fields in {**{f"arms.{arm}": changes for arm, changes in study.arms.items()}, "grid": study.grid}.items():
        for reserved in [path for path in RESERVED_FIELDS if path in fields]:
            yield f"{name} sets {reserved}, which the study sets: leave it out"
    names = [name for name, _ in _arms(study)]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"two arms get the folder {name}: write the values of the grid as arms, with your own names"


def _arms(study: StudyFile) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every arm at every point of the grid: its name, such as `no-kl+loss.beta=0.04`, and its changes in order."""
    for arm, changes in (study.arms or {"base": {}}).items():
        for point in product(*study.grid.values()):
            settings = list(zip(study.grid, point))
            name = "+".join([arm, *(f"{path}={_folder_name(value)}" for path, value in settings)])
            yield name, [changes, *(_nested(path, value) for path, value in settings)]


def _nested(path: str, value: object) -> dict[str, Any]:
    """`loss.beta` and 0.1 -> {"loss": {"beta": 0.1}}."""
    first, _, rest = path.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _folder_name(value: object) -> str:
    """A value as part of a folder's name."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^A-Za-z0-9._,+-]+", "-", text)


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
