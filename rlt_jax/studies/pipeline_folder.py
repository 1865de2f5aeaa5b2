"""What a pipeline's work folder records of each command: settings and seconds; and whether folders belong together."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt_jax.configs.evaluate import EvaluateConfig
from rlt_jax.configs.files import load_settings
from rlt_jax.configs.generate import GenerateConfig
from rlt_jax.configs.pipeline import ASSETS, PipelineData
from rlt_jax.configs.presets import load_config
from rlt_jax.configs.resume import changed_fields, deciding_settings, leaves
from rlt_jax.configs.score import ScoreConfig
from rlt_jax.configs.sft import SftConfig
from rlt_jax.configs.train import TrainConfig
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.json_lines import read_json_lines
from rlt_jax.studies.pipeline_tasks import Task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SECONDS_FILE = "seconds.jsonl"
MATCHED_FILE = "matched.jsonl"  # in results/


def settings_file(work: Path, name: str) -> Path:
    """The settings that a task runs with: `--config` of its command."""
    return work / "tasks" / f"{name}.yaml"


def record_seconds(work: Path, task: Task, seconds: float, *, finished: bool) -> None:
    """Append a line to the file of times."""
    line = {"stage": task.stage, "task": task.name, "seconds": round(seconds, 2), "finished": finished}
    with writing_to(work), (work / SECONDS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def finished_tasks(work: Path) -> set[str]:
    """Names of the tasks that have done their work."""
    file = work / SECONDS_FILE
    return {line["task"] for line in read_json_lines(file) if line["finished"]} if file.exists() else set()


def check_work_folder(work: Path, flag: str) -> None:
    """Refuse a folder in which no pipeline has run.

    Args:
      flag: the flag that names the folder.
    Raises:
      UserError: it is none.
    """
    if not (work / SECONDS_FILE).exists():
        raise UserError(f"{flag} {work}: expected the work folder of a pipeline, but it has no {SECONDS_FILE}")


def check_same_task(task: Task, saved: Path) -> None:
    """Refuse to resume a task under other settings, those apart that change neither its result nor what it left.

    Commands that write one file check its chunks themselves.

    Args:
      saved: the settings that the task was begun with.
    Raises:
      UserError: they differ in these fields, or the file cannot be read.
    """
    folder = task.result.parent
    if task.result.exists() or (task.command in ("sft", "train") and any((folder / "checkpoints").glob("*"))):
        check_same_settings(task.config, saved, task.name)


def check_same_settings(config: "DataclassInstance", saved: Path, name: str) -> None:
    """Refuse settings that differ from those in `saved`, where there are any, in fields that decide the result.

    Args:
      name: what they are the settings of, for the message.
    Raises:
      UserError: they differ in these fields, or the file cannot be read.
    """
    if not saved.exists():
        return
    if changed := changed_fields(config, _load(saved, type(config))):
        raise UserError(
            f"{saved}: {name} was begun with other settings ({', '.join(changed)}): give another --work, or delete "
            "this one"
        )


def check_summary_folders(works: Sequence[Path], *, running: Path | None = None, seed: int) -> None:
    """Refuse to summarise folders unless they are of one study, each of another seed.

    Args:
      running: the folder that the same call makes, under `seed`; it may be empty yet.
    Raises:
      UserError: a folder without a pipeline, two of one seed, or two that differ by more than their seed.
    """
    made = None if running is None else running.resolve()
    recorded: list[tuple[Path, Mapping[str, Any]]] = []
    seeds: list[tuple[Path, int | None]] = []
    for work in works:
        if work.resolve() == made:
            seeds.append((work, seed))
            continue
        check_work_folder(work, "--summary")
        recorded.append((work, recorded_settings(work / "tasks")))
        seeds.append((work, _recorded_seed(recorded[-1][1])))
    _check_seeds(seeds)
    _check_same_study(recorded)


def recorded_settings(tasks: Path) -> dict[str, Any]:
    """The settings that a work folder's commands ran with: "TASK.FIELD" -> value, without paths inside the folder and
    without what may change.

    Args:
      tasks: the folder of their files; one that cannot be read is left out.
    """
    found: dict[str, Any] = {}
    work = None
    for file in sorted(tasks.glob("*.yaml")):
        with contextlib.suppress(UserError):
            config = _load(file, _config_class(file.stem))
            if isinstance(config, SftConfig | TrainConfig):
                work = Path(config.output_dir).parent
            found |= leaves({file.stem: deciding_settings(config)})

    def is_inside(value: object) -> bool:
        return work is not None and isinstance(value, str) and Path(value).is_relative_to(work)

    def without_place(value: object) -> object:  # the package may be installed elsewhere for another seed
        return ASSETS + value.rpartition(ASSETS)[2] if isinstance(value, str) and ASSETS in value else value

    return {name: without_place(value) for name, value in found.items() if not is_inside(value)}


def _recorded_seed(settings: Mapping[str, Any]) -> int | None:
    """The seed that the commands of a work folder ran with; None where none has a seed."""
    return next((value for name, value in settings.items() if name.endswith(".seed") and isinstance(value, int)), None)


def _check_seeds(seeds: Sequence[tuple[Path, int | None]]) -> None:
    folder_of: dict[int, Path] = {}
    for work, seed in seeds:
        if seed is None:
            continue
        if seed in folder_of:
            raise UserError(
                f"--summary {folder_of[seed]} {work}: both are of seed {seed}, expected one folder for each seed: they "
                "would be taken for two seeds that agree"
            )
        folder_of[seed] = work


def _check_same_study(recorded: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    for work, settings in recorded[1:]:
        first, expected = recorded[0]
        common = [name for name in expected.keys() & settings.keys() if not name.endswith(".seed")]
        if different := sorted(name for name in common if expected[name] != settings[name]):
            shown = ", ".join(different[:6]) + (", ..." if len(different) > 6 else "")
            raise UserError(
                f"--summary {first} {work}: expected folders of one study, which differ by their seed alone, but "
                f"these settings differ: {shown}"
            )


def _load(file: Path, config_class: "type[DataclassInstance]") -> "DataclassInstance":
    return load_config(file) if config_class is TrainConfig else load_settings(file, config_class)


def _config_class(name: str) -> "type[DataclassInstance]":
    """Of a task's settings, by the task's name."""
    match name.split("-"):
        case ["data"]:
            return PipelineData
        case ["rlt"] | ["no", "kl"]:
            return TrainConfig
        case ["explain", *_]:
            return GenerateConfig
        case ["evaluate", *_]:
            return EvaluateConfig
        case ["baselines"] | ["logp", *_]:
            return ScoreConfig
        case _:
            return SftConfig
