"""Whether a run's chats and rows would be accepted: what `rlt_jax.plan` finds out by what `rlt_jax.train` does.

Where teacher or student is not on this machine, rows are read but not tokenised, and a data set of the hub is left
alone: nothing is downloaded.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rlt_jax.configs import TrainConfig
from rlt_jax.data import ChatFormat
from rlt_jax.data.model_record import tag_format_of
from rlt_jax.errors import UserError
from rlt_jax.hub import check_name
from rlt_jax.planner.preflight import Check, is_hub_name, local_folder
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.setup import load_prompts, load_split_rows, question_order

log = logging.getLogger("rlt_jax")


def start_checks(config: TrainConfig) -> list[Check]:
    """The checks of a run's chats and rows; what would be refused is a problem, in the same words."""
    here, missing = _with_local_models(config)
    if missing:
        advice = "expected local folders: whether chats and rows fit them is seen when the run starts"
        chats = Check("chats", "warning", f"not checked: {' and '.join(missing)} not downloaded", advice)
        return [chats, _data_check(here, None)]
    with _warnings() as notes:
        try:
            chat = chat_format_of(here)
        except UserError as error:
            refused = Check("chats", "problem", "the run would be refused", _one_line(str(error)), concerns_plan=True)
            return [refused, _data_check(here, None)]
    sources = chat.sources
    found = (
        f"tags {tag_format_of(chat.tags)} ({sources.tags}), teacher's prompt: {sources.teacher_prompt}, student's "
        f"prompt: {sources.student_prompt}"
    )
    return [_noted("chats", found, notes), _data_check(here, chat)]


def _with_local_models(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The run with the folders of its models on this machine, and the models that are not here."""
    models = {"teacher": config.teacher, "student": config.student}
    if config.own_reference is not None:
        models["reference"] = config.own_reference
    folders = {name: local_folder(path) for name, path in models.items()}
    missing = [models[name] for name, folder in folders.items() if folder is None or _is_part(models[name], folder)]
    here = {name: path if folders[name] is None else str(folders[name]) for name, path in models.items()}
    reference = here.get("reference")
    return replace(config, teacher=here["teacher"], student=here["student"], reference=reference), missing


def _is_part(path: str, folder: Path) -> bool:
    """Whether the hub's cache holds only a part of a model; a folder that the user names is taken to be whole."""
    return not Path(path).expanduser().exists() and not (folder / "tokenizer.json").exists()


def _data_check(config: TrainConfig, chat: ChatFormat | None) -> Check:
    """Read the rows as a run does, and make its prompts; without `chat`, read them only."""
    data = config.data
    sources = {source for source in (data.path, data.eval_path) if source is not None}
    for source in sorted(sources):
        if not Path(source).expanduser().exists() and is_hub_name(source):
            try:
                check_name(source, "dataset")
            except UserError as error:
                return Check("data", "problem", "the run would be refused", _one_line(str(error)), concerns_plan=True)
            advice = "expected a local file or folder: let the run download it when it starts, or give a local one"
            return Check("data", "warning", f"{source}: a data set on the hub", advice)
    with _warnings() as notes:
        try:
            if chat is None:
                split = load_split_rows(data, evaluates=config.eval_steps > 0)
                kind, counts = "rows", [len(split.train), len(split.held_out)]
            else:
                kind, counts = "prompts", [len(part) for part in load_prompts(config, chat)]
            question_order(config, counts[0])
        except UserError as error:
            return Check("data", "problem", "the run would be refused", _one_line(str(error)), concerns_plan=True)
    found = f"{counts[0]} {kind} to train on, {counts[1]} held out: {data.path}"
    return _noted("data", found, notes)


def _noted(name: str, found: str, notes: Sequence[str]) -> Check:
    return Check(name, "warning", found, "; ".join(notes)) if notes else Check(name, "ok", found)


def _one_line(text: str) -> str:
    return " ".join(text.split())


class _Warnings(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(_one_line(record.getMessage()))


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what a run would warn of in its log, which shows it nowhere meanwhile."""
    lines: list[str] = []
    before, propagate = log.handlers, log.propagate
    log.handlers, log.propagate = [_Warnings(lines)], False
    try:
        yield lines
    finally:
        log.handlers, log.propagate = before, propagate
