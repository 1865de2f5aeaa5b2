"""The training runs that an ablation study stands for: arms times grid times seeds."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from rlt_jax.configs.ablate import AblateConfig
from rlt_jax.configs.checks import text_problems
from rlt_jax.configs.files import build, load_settings, read_yaml
from rlt_jax.configs.presets import train_config
from rlt_jax.configs.resume import leaves
from rlt_jax.configs.train import TrainConfig, check_config
from rlt_jax.errors import UserError
from rlt_jax.studies.study_file import study_path

OF_THE_STUDY = ("preset", "seed", "output_dir", "resume")  # no arm may set these fields of a run
EXAMPLE = "rlt_jax/assets/studies/ablate/paper.yaml"


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study as its file describes it. Arms times grid times seeds are its runs."""

    base: dict[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig that all runs share, nested as in a run's configuration file."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of an arm -> fields that it changes."""
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Field with its section (`loss.beta`) -> values. All combinations, with every arm."""
    seeds: tuple[int, ...]
    """Seeds of every arm."""


def study_runs(config: AblateConfig) -> dict[str, dict[int, TrainConfig]]:
    """Arm -> seed -> its training run, all of the study in its order, each of them checked.

    Raises:
      UserError: no such study; mistakes in it or in an arm's configuration, a run without held-out rows, or `only` and
        `seeds` that are not in the study, one per line.
    """
    path = study_path(config.study, "ablate")
    study = load_settings(path, StudyFile, example=EXAMPLE)
    if config.base is None:
        base = train_config(study.base, source=f"{path}, base")
    else:
        base = train_config(read_yaml(config.base), source=config.base)
    problems = list(_file_problems(study))
    arms = {} if problems else dict(_arms(study))
    runs: dict[str, dict[int, TrainConfig]] = {}
    for arm, steps in arms.items():
        run = base
        for changes in steps:
            run = build(TrainConfig, changes, source=f"{path}, arm {arm}", base=run)
        runs[arm] = {
            seed: replace(run, seed=seed, output_dir=str(Path(config.output_dir, arm, f"seed-{seed}")), resume="auto")
            for seed in study.seeds
        }
        problems += dict.fromkeys(f"arm {arm}: {x}" for run in runs[arm].values() for x in _run_problems(run))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    if asked := list(_asked_problems(config, runs, study.seeds)):
        raise UserError("\n".join(asked))
    return runs


def _asked_problems(config: AblateConfig, arms: Collection[str], seeds: Collection[int]) -> Iterator[str]:
    """What the command line asks for twice, or the study does not have."""
    yield from text_problems({"output_dir": (config.output_dir, "a folder for the study")})
    asked: dict[str, tuple[tuple, Collection]] = {"only": (config.only, arms), "seeds": (config.seeds, seeds)}
    for flag, (chosen, known) in asked.items():
        for unknown in [name for name in chosen if name not in known]:
            yield f"--{flag} {unknown} is not in the study: choose from {', '.join(map(str, known))}"
        for twice in dict.fromkeys(name for i, name in enumerate(chosen) if name in chosen[:i]):
            yield f"--{flag}: {twice} is there twice"


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
        for taken in [own for own in OF_THE_STUDY if own in fields]:
            yield f"{name} sets {taken}, which is the study's: leave it out"
    names = [name for name, _ in _arms(study)]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"two arms get the folder {name}: write the values of the grid as arms, with names of your own"


def _arms(study: StudyFile) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every arm in every point of the grid: its name, `no-kl+loss.beta=0.04`, and its changes one after the other."""
    for arm, changes in (study.arms or {"base": {}}).items():
        for point in product(*study.grid.values()):
            settings = list(zip(study.grid, point))
            name = "+".join([arm, *(f"{path}={_word(value)}" for path, value in settings)])
            yield name, [changes, *(_nested(path, value) for path, value in settings)]


def _nested(path: str, value: object) -> dict[str, Any]:
    """`loss.beta` and 0.1 -> {"loss": {"beta": 0.1}}."""
    first, _, rest = path.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _word(value: object) -> str:
    """A value as a part of a folder's name."""
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
            "give both in the base"
        ]
    return []
