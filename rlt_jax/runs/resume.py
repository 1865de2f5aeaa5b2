"""What a resumed run compares: its settings, prompts, rows and models with those of the run so far.

RUN/config.yaml holds the settings of the run so far, RUN/inputs.json its prompts and fingerprints of its rows, models
and packages: a path may stay while what is behind it changes. Both are written when a run begins. RUN/changes.jsonl has
a line for each start with other ones: the step after which they hold, and each change.

What changes how training continues is named in the log (fields marked `Steers`). What decides what is measured is
refused, unless --accept-changes.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlt_jax.configs import SftConfig, TrainConfig, save_config
from rlt_jax.configs.checks import same_path
from rlt_jax.configs.files import build, read_yaml, without_mistyped, without_unknown
from rlt_jax.configs.presets import train_config
from rlt_jax.configs.resume import Change, changes
from rlt_jax.configs.reward import parse_function_name
from rlt_jax.data import ChatFormat
from rlt_jax.data.model_record import tag_format_of
from rlt_jax.disk import LineFile, replace_file
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.json_text import json_text
from rlt_jax.report.partial_file import fingerprint
from rlt_jax.report.step_lines import keep_until, read_lines
from rlt_jax.rewards.rlt import RewardFn
from rlt_jax.rewards.scorer import function_name
from rlt_jax.runs.fingerprints import model_fingerprints, version_fingerprints
from rlt_jax.runs.own_reward import keep_copy
from rlt_jax.types import Row

CONFIG_FILE = "config.yaml"
INPUTS_FILE = "inputs.json"
CHANGES_FILE = "changes.jsonl"

_TEXT_PLACES = ("data.path", "data.eval_path", "data.teacher_prompt_file", "data.student_prompt_file", "data.tags")
_MODEL_PLACES = ("teacher", "student", "reference", "model")
PLACES = (*_TEXT_PLACES, *_MODEL_PLACES)
"""Settings that say where texts and models are. Where these are themselves compared, another place is no change."""

_WEIGHTS = "'s weights"  # ends the names of models' fingerprints
_OWN_KEYS = {"train": ("teacher", "num_generations"), "sft": ("model", "target")}  # of a command's config.yaml

Inputs = dict[str, str]  # what it is, such as "the training rows" -> text or fingerprint

log = logging.getLogger("rlt_jax")


def run_inputs(
    chat: ChatFormat,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    *,
    models: Mapping[str, str] | None = None,
    reward_fn: RewardFn | None = None,
) -> Inputs:
    """What a run reads, for later comparison: texts as they are, rows, models and versions as fingerprints.

    Args:
      models: what each is for, such as "teacher" -> folder or hub name.
    """
    inputs = {
        "the tags": tag_format_of(chat.tags),
        "the teacher's prompt": chat.teacher_prompt,
        "the student's prompt": chat.student_prompt,
        "the rows' own prompts for the student": "not used" if chat.student_prompt_overrides_rows else "used",
        "the training rows": _rows_fingerprint(rows),
        "the held-out rows": _rows_fingerprint(held_out),
        **model_fingerprints(models or {}),
        **version_fingerprints(),
    }
    if reward_fn is not None:
        inputs["the reward function"] = function_name(reward_fn)
    return inputs


def models_of(config: TrainConfig | SftConfig) -> dict[str, str]:
    """What each model of a run is for -> its folder or hub name. A reference that is the teacher, or unused, is not."""
    if isinstance(config, SftConfig):
        return {"model": config.model}
    models = {"teacher": config.teacher, "student": config.student}
    return models if config.own_reference is None else {**models, "reference": config.own_reference}


def changed_settings(config: TrainConfig | SftConfig, folder: Path, *, quiet: bool = False) -> list[Change]:
    """The settings in which a run folder's config.yaml differs; [] without one, which the log says.

    Another seed is left out, as the checkpoint refuses it, and so is another spelling of a path. A setting that
    config.yaml lacks counts as its default; one that this version lacks, or that has another type in it, is named in
    the log, and counts as its default, too.

    Args:
      quiet: log nothing.
    Raises:
      UserError: config.yaml cannot be read.
    """
    file = folder / CONFIG_FILE
    if not file.exists():
        if not quiet:
            log.warning("%s: there is none, so settings are not compared with those of the run so far", file)
        return []
    try:
        values, unknown = without_unknown(type(config), read_yaml(file))
        preset = {"preset": values["preset"]} if "preset" in values else {}
        values, mistyped = without_mistyped(type(config), values)
        values |= preset  # an unknown one leaves nothing to compare with
        if isinstance(config, TrainConfig):
            saved: TrainConfig | SftConfig = train_config(values, source=str(file))
        else:
            saved = build(SftConfig, values, source=str(file))
    except UserError as error:
        raise UserError(
            f"{error}\nit holds the settings of the run so far, which are compared: restore it, or delete it to resume "
            "without a comparison"
        ) from None
    if unknown and not quiet:
        log.warning("%s: this version has no %s: not compared", file, ", ".join(unknown))
    if mistyped and not quiet:
        log.warning("%s: not compared, as if it were not there: %s", file, "; ".join(mistyped))
    found = changes(replace(config, seed=saved.seed), saved)
    return [change for change in found if not _same_path(change.before, change.now)]


def check_command(config: TrainConfig | SftConfig, folder: Path) -> None:
    """Refuse a run folder of another command.

    Raises:
      UserError: its config.yaml is that of the other command.
    """
    file, ours = folder / CONFIG_FILE, "train" if isinstance(config, TrainConfig) else "sft"
    try:
        keys = read_yaml(file).keys() if file.exists() else set()
    except UserError:  # refused, with advice, if there is something to resume
        return
    for theirs in [command for command, own in _OWN_KEYS.items() if command != ours and keys >= set(own)]:
        raise UserError(
            f"--output-dir {folder} holds a run of `rlt_jax.{theirs}` (its {CONFIG_FILE} says so), but this is "
            f"`rlt_jax.{ours}`: choose another folder"
        )


def read_inputs(folder: Path, *, quiet: bool = False) -> Inputs | None:
    """The inputs of the run so far; None if they are not recorded, which the log says.

    Args:
      quiet: log nothing.
    Raises:
      UserError: the file is damaged.
    """
    file = folder / INPUTS_FILE
    if not file.exists():
        if not quiet:
            log.warning("%s: there is none, so prompts and rows are not compared with those of the run so far", file)
        return None
    try:
        inputs = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(inputs, dict) and all(isinstance(value, str) for value in inputs.values())):
            raise ValueError("no object with texts")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: expected the prompts and rows of the run so far, but it cannot be read ({error}): restore it, or "
            "delete it to resume without a comparison"
        ) from None
    return inputs


def compared_places(saved: Inputs | None) -> tuple[str, ...]:
    """The settings whose texts or models are themselves recorded in the inputs of the run so far."""
    if saved is None:
        return ()
    return PLACES if any(name.endswith(_WEIGHTS) for name in saved) else _TEXT_PLACES


def changed_inputs(inputs: Inputs, saved: Inputs) -> list[Change]:
    """The inputs that differ; texts are shortened to where they do.

    Older versions recorded neither models nor packages: what they lack is named in the log.
    """
    found, unknown = [], []
    recorded = {kind: any(kind(name) for name in saved) for kind in (_is_model, _is_version)}
    for name in dict.fromkeys([*saved, *inputs]):
        if name not in saved and any(kind(name) and not known for kind, known in recorded.items()):
            unknown.append(name)
            continue
        before, now = saved.get(name, "none"), inputs.get(name, "none")
        if before != now:
            # A run without a reference measures the same: its reward did not read it either.
            steers = name.startswith("the reference's ") and now == "none"
            found.append(Change(name, *_difference(before, now), steers=steers))
    if unknown:
        log.warning("%s does not record %s: not compared", INPUTS_FILE, ", ".join(unknown))
    return found


def _is_model(name: str) -> bool:
    return name.endswith((_WEIGHTS, "'s tokenizer"))


def _is_version(name: str) -> bool:
    return name.startswith("the version of ")


def refuse(found: Sequence[Change], folder: Path, *, accept: bool) -> None:
    """Refuse changes of what is measured, unless they are accepted.

    Raises:
      UserError: every such change, with what was and what is.
    """
    if not accept and (measured := [change for change in found if not change.steers]):
        raise UserError(
            f"{folder} holds a run whose evaluations measure something else: {_listed(measured)}: resume with what the "
            "run was started with, choose another --output-dir, or add --accept-changes, after which no summary "
            "compares evaluations before and after"
        )


def name_changes(found: Sequence[Change], *, finished: bool) -> None:
    """Name all changes in the log.

    Args:
      finished: the run has taken its last step.
    """
    if finished and found:
        log.warning("settings or data that differ have no effect on the finished run: %s", _listed(found))
        return
    if steering := [change for change in found if change.steers]:
        log.warning("resuming with other settings: %s", _listed(steering))
    if measured := [change for change in found if not change.steers]:
        log.warning(
            "resuming with settings or data that change what is measured (--accept-changes): %s; evaluations up to "
            "this step are not compared with later ones",
            _listed(measured),
        )


def record_start(
    config: TrainConfig | SftConfig, inputs: Inputs | None, found: Sequence[Change], folder: Path, *, step: int
) -> None:
    """Write what the run goes on with: the changes that hold after `step`, inputs, own reward function, config.yaml.

    In this order, so that a start that is stopped in between finds and records the changes once more.

    Raises:
      UserError: one cannot be written.
    """
    with writing_to(folder):
        keep_until(folder / CHANGES_FILE, step)
        if found:
            with LineFile(folder / CHANGES_FILE) as file:
                line = {"step": step, "changes": [_record(change) for change in found]}
                file.append((json.dumps(line) + "\n").encode(), synced=True)
        if inputs is not None:
            replace_file(folder / INPUTS_FILE, json_text(inputs, indent=1) + "\n")
        if isinstance(config, TrainConfig):
            keep_copy(config.reward, folder)
    save_config(replace(config, accept_changes=False), folder / CONFIG_FILE)  # accepted once is not accepted for ever


def last_accepted_change(folder: Path) -> int | None:
    """The step after which evaluations measure something else than up to it; None if all measure the same."""
    steps = [line["step"] for line in read_lines(folder / CHANGES_FILE) if _measures_something_else(line)]
    return max(steps, default=None)


def _measures_something_else(line: Mapping[str, Any]) -> bool:
    """Whether a line of CHANGES_FILE has a change of what is measured; one that cannot be read counts as such."""
    found = line.get("changes", ())
    if not isinstance(found, list | tuple):
        return True
    return any(not isinstance(change, dict) or change.get("measured", True) for change in found)


def _record(change: Change) -> dict[str, Any]:
    return {"name": change.name, "before": change.before, "now": change.now, "measured": not change.steers}


def _listed(found: Sequence[Change]) -> str:
    return ", ".join(map(str, found))


def _rows_fingerprint(rows: Sequence[Row]) -> str:
    """The number of rows and a hash of their texts, in order."""
    if not rows:
        return "none"
    texts = ((row.number, row.question, row.solution, row.reasoning_trace, row.system) for row in rows)
    return f"{len(rows)} rows {fingerprint(texts)}"


def _same_path(before: object, now: object) -> bool:
    """Whether two settings are one file or folder, written differently."""
    if not isinstance(before, str) or not isinstance(now, str):
        return False
    (before, function), (now, other) = map(_path_and_function, (before, now))
    return function == other and Path(before).exists() and same_path(before, now)


def _path_and_function(text: str) -> tuple[str, str]:
    """`rewards/mine.py:short` -> its file and its function; any other text, and ""."""
    named = parse_function_name(text)
    return (named.home, named.name) if named is not None and named.in_file else (text, "")


def _difference(before: str, now: str, *, around: int = 20, most: int = 60) -> tuple[str, str]:
    """Both texts from shortly before the first difference, if they are long."""
    if max(len(before), len(now)) <= most:
        return before, now
    same = next((i for i, (a, b) in enumerate(zip(before, now)) if a != b), min(len(before), len(now)))
    start = max(0, same - around)

    def part(text: str) -> str:
        cut = text[start : start + most]
        return repr(("..." if start else "") + cut + ("..." if start + most < len(text) else ""))

    return part(before), part(now)
