"""The record and the model card that a run writes beside the model that it exports."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import rlt_jax
from rlt_jax.configs import SftConfig, TrainConfig
from rlt_jax.data import ChatFormat, student_system
from rlt_jax.data.model_card import CARD_FILE, model_card
from rlt_jax.data.model_record import (
    RECORD_FILE,
    ModelRecord,
    Training,
    chat_outline,
    end_tokens,
    read_record,
    record_text,
    tag_format_of,
)
from rlt_jax.types import Row

PACKAGE = Path(rlt_jax.__file__).parent


def files_of_training(config: TrainConfig, chat: ChatFormat, *, reward: str | None = None) -> dict[str, str]:
    """Name -> text of the files beside a trained teacher.

    Args:
      reward: the name of a reward function of one's own; None: the paper's.
    """
    training = _training("train", config.teacher, config.data.path, config.data.split, config.max_steps, config.student)
    if config.reward.fn is not None:
        reward = f"{config.reward.fn}, SHA-256 of its file {config.reward.fn_sha256}"
    training = replace(training, reward=reward)
    return _files(_teacher(chat, config.teacher, training))


def files_of_sft(config: SftConfig, chat: ChatFormat, rows: Sequence[Row], *, steps: int) -> dict[str, str]:
    """Name -> text of the files beside a fine-tuned model.

    Args:
      rows: those that it is trained on.
      steps: of the whole run.
    """
    training = _training("sft", config.model, config.data.path, config.data.split, steps, None)
    if config.target == "teacher":
        return _files(_teacher(chat, config.model, training))
    prompt, of_rows = student_prompt_of(rows, chat)
    return _files(
        ModelRecord(
            role="student",
            tags=tag_format_of(chat.tags),
            prompt=prompt,
            prompt_of_rows=of_rows,
            student_gap="as-row" if chat.student_sft_gap is None else "blank-line",
            chat=chat_outline(chat.student),
            end_tokens=end_tokens(chat.student, config.model),
            training=(*_earlier(config.model), training),
        )
    )


def student_prompt_of(rows: Sequence[Row], chat: ChatFormat) -> tuple[str | None, bool]:
    """(the system prompt that all rows have, whether it is their own).

    None: they differ, or theirs holds a placeholder of a tag, which a prompt of a chat format would fill.
    """
    used = {student_system(chat, row_system=row.system) for row in rows}
    of_rows = not chat.student_prompt_overrides_rows and any(row.system is not None for row in rows)
    if not of_rows:
        return chat.student_prompt, False
    (one, *more) = used
    return (None if more or chat.tags.fill(one) != one else one), True


def _teacher(chat: ChatFormat, model: str, training: Training) -> ModelRecord:
    return ModelRecord(
        role="teacher",
        tags=tag_format_of(chat.tags),
        prompt=chat.teacher_prompt,
        prompt_of_rows=False,
        student_gap=None,
        chat=chat_outline(chat.tokenizer),
        end_tokens=end_tokens(chat.tokenizer, model),
        training=(*_earlier(model), training),
    )


def _files(record: ModelRecord) -> dict[str, str]:
    return {RECORD_FILE: record_text(record), CARD_FILE: model_card(record)}


def _earlier(model: str) -> tuple[Training, ...]:
    record = read_record(model)
    return () if record is None else record.training


def _training(
    command: Literal["sft", "train"], base: str, data: str, split: str, steps: int, student: str | None
) -> Training:
    return Training(
        command=command,
        base=_named(base),
        base_on_hub=not Path(base).expanduser().exists(),
        student=None if student is None else _named(student),
        data=_named(data),
        split=split,
        steps=steps,
        version=rlt_jax.__version__,
    )


def _named(path: str) -> str:
    """A path as the user named it; one into the installed package, which a preset gives, from the package on."""
    inside = Path(path).is_relative_to(PACKAGE)
    return Path(path).relative_to(PACKAGE.parent).as_posix() if inside else path
