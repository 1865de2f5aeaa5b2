"""A pipeline's work folder: the settings and seconds of each command, and checks that they match a study."""

import contextlib
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
from rlt_jax.disk import LineFile
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.json_text import json_line, parsed_json
from rlt_jax.studies.pipeline_tasks import Task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SECONDS_FILE = "seconds.jsonl"
MATCHED_FILE = "matched.jsonl"  # in results/

_SECONDS = {"stage": str, "task": str, "seconds": int | float, "finished": bool}  # of a line of SECONDS_FILE


def settings_file(work: Path, name: str) -> Path:
    """The file with a task's settings, for `--config` of its command."""
    return work / "tasks" / f"{name}.yaml"


def record_seconds(work: Path, task: Task, seconds: float, *, finished: bool) -> None:
    """Append a line to SECONDS_FILE."""
    line = {"stage": task.stage, "task": task.name, "seconds": round(seconds, 2), "finished": finished}
    with writing_to(work), LineFile(work / SECONDS_FILE) as file:
        file.append(json_line(line).encode(), synced=True)


def recorded_seconds(work: Path) -> list[dict[str, Any]]:
    """The lines of SECONDS_FILE, oldest first; [] if there is none.

    A damaged one (torn by a full disk or a kill) is left out: a result tells whether its task is done, not its time.
    """
    file, lines = work / SECONDS_FILE, []
    if not file.is_file():
        return []
    for text in file.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            line = parsed_json(text.decode("utf-8"))
            if isinstance(line, dict) and all(isinstance(line.get(name), kind) for name, kind in _SECONDS.items()):
                lines.append(line)
    return lines


def finished_tasks(work: Path) -> set[str]:
    """Names of the finished tasks."""
    return {line["task"] for line in recorded_seconds(work) if line["finished"]}


def check_work_folder(work: Path, flag: str) -> None:
    """Reject a folder in which no pipeline has run.

    Args:
      flag: the flag that names the folder.
    Raises:
      UserError: the folder is not a work folder.
    """
    if not (work / SECONDS_FILE).exists():
        raise UserError(f"{flag} {work}: expected the work folder of a pipeline, but it has no {SECONDS_FILE}")


def check_same_task(task: Task, saved: Path) -> None:
    """Refuse to resume a task with other settings that would change its result.

    Commands that write a single file check unfinished ones themselves.

    Args:
      saved: file with the settings that the task was started with.
    Raises:
      UserError: the settings differ (the message names the fields), or the file cannot be read.
    """
    folder = task.result.parent
    if task.result.exists() or (task.command in ("sft", "train") and any((folder / "checkpoints").glob("*"))):
        check_same_settings(task.config, saved, task.name)


def check_same_settings(config: "DataclassInstance", saved: Path, name: str) -> None:
    """Reject settings that differ from those in the file `saved`, if it exists, in fields that decide the result.

    Args:
      name: what the settings are for, for the error message.
    Raises:
      UserError: the settings differ (the message names the fields), or the file cannot be read.
    """
    if not saved.exists():
        return
    if changed := changed_fields(config, _load(saved, type(config))):
        raise UserError(
            f"{saved}: {name} was started with other settings ({', '.join(changed)}): give another --work, or delete "
            "this one"
        )


def check_summary_folders(works: Sequence[Path], *, running: Path | None = None, seed: int) -> None:
    """Refuse to summarise folders unless they are of one study and of different seeds.

    Args:
      running: the folder that the same call fills, with `seed`; it may still be empty.
    Raises:
      UserError: a folder has no pipeline, two have the same seed, or two differ in more than their seed.
    """
    running = None if running is None else running.resolve()
    recorded: list[tuple[Path, Mapping[str, Any]]] = []
    seeds: list[tuple[Path, int | None]] = []
    for work in works:
        if work.resolve() == running:
            seeds.append((work, seed))
            continue
        check_work_folder(work, "--summary")
        recorded.append((work, recorded_settings(work / "tasks")))
        seeds.append((work, _recorded_seed(recorded[-1][1])))
    _check_seeds(seeds)
    _check_same_study(recorded)


def recorded_settings(tasks: Path) -> dict[str, Any]:
    """Read the settings of a work folder's commands, "TASK.FIELD" -> value, without paths inside the folder and without
    those that may change.

    Args:
      tasks: the folder of the settings files; files that cannot be read are left out.
    """
    settings: dict[str, Any] = {}
    work = None
    for file in sorted(tasks.glob("*.yaml")):
        with contextlib.suppress(UserError):
            config = _load(file, _config_class(file.stem))
            if isinstance(config, SftConfig | TrainConfig):
                work = Path(config.output_dir).parent
            settings |= leaves({file.stem: deciding_settings(config)})

    def is_inside(value: object) -> bool:
        return work is not None and isinstance(value, str) and Path(value).is_relative_to(work)

    def in_package(value: object) -> object:  # for another seed, the package may be installed elsewhere
        return ASSETS + value.rpartition(ASSETS)[2] if isinstance(value, str) and ASSETS in value else value

    return {name: in_package(value) for name, value in settings.items() if not is_inside(value)}


def _recorded_seed(settings: Mapping[str, Any]) -> int | None:
    """The seed of a work folder's commands; None if none of them has a seed."""
    return next((value for name, value in settings.items() if name.endswith(".seed") and isinstance(value, int)), None)


def _check_seeds(seeds: Sequence[tuple[Path, int | None]]) -> None:
    folder_of: dict[int, Path] = {}
    for work, seed in seeds:
        if seed is None:
            continue
        if seed in folder_of:
            raise UserError(
                f"--summary {folder_of[seed]} {work}: both are of seed {seed}, expected one folder per seed, as they "
                "would count as two seeds that agree"
            )
        folder_of[seed] = work


def _check_same_study(recorded: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    for work, settings in recorded[1:]:
        first, expected = recorded[0]
        common = [name for name in expected.keys() & settings.keys() if not name.endswith(".seed")]
        if different := sorted(name for name in common if expected[name] != settings[name]):
            shown = ", ".join(different[:6]) + (", ..." if len(different) > 6 else "")
            raise UserError(
                f"--summary {first} {work}: expected folders of one study, which differ only in their seed, but "
                f"these settings differ: {shown}"
            )


def _load(file: Path, config_class: "type[DataclassInstance]") -> "DataclassInstance":
    return load_config(file) if config_class is TrainConfig else load_settings(file, config_class)


def _config_class(name: str) -> "type[DataclassInstance]":
    """The class of a task's settings, from the task's name."""
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
