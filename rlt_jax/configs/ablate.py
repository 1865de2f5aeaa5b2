"""What an ablation study can be told, the file that describes it, and the training runs that it stands for."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt_jax.configs.check import check_config, text_problems
from rlt_jax.configs.files import build, load_settings, read_yaml, train_config
from rlt_jax.configs.schema import TrainConfig
from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STUDIES = Path(__file__).resolve().parents[1] / "assets" / "studies"
OF_THE_STUDY = ("preset", "seed", "output_dir", "resume")  # no arm may set these fields of a run


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Training runs that differ in some settings, over several seeds, and their comparison."""

    study: str
    """YAML file with base, arms, grid and seeds; or `paper`: the paper's ablations, which come with the package."""
    output_dir: str
    """Folder of the study: its runs in ARM/seed-S/, and the comparison."""
    base: str | None = None
    """YAML file of a training run, such as a config.yaml, in place of the study's base."""
    only: tuple[str, ...] = ()
    """Arms to train now. Empty: all. The comparison is of all that have been trained."""
    seeds: tuple[int, ...] = ()
    """Seeds to train now. Empty: all."""
    summary_only: bool = False
    """Train nothing, compare what is there."""


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
    path = _study_path(config.study)
    study = load_settings(path, StudyFile)
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


def changed_fields(ours: "DataclassInstance", theirs: "DataclassInstance") -> list[str]:
    """Names (`loss.beta`) of the fields in which two configurations of one class differ."""
    other = dict(leaves(asdict(theirs)))
    return [name for name, value in leaves(asdict(ours)) if value != other[name]]


def _study_path(study: str) -> Path:
    """The file that --study names: a path, or the name of a study of the package."""
    shipped = {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}
    if study in shipped:
        return shipped[study]
    if not Path(study).is_file():
        raise UserError(f"--study {study}: expected a YAML file, or one of the package's: {', '.join(shipped)}")
    return Path(study)


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


def leaves(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """(`loss.beta`, value) of all nested values."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value


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
