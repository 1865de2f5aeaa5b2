"""The chat format of each command: tokenizers with their templates, tags and prompts."""

import logging
from dataclasses import replace

from rlt_jax.configs import DataConfig, EvaluateConfig, GenerateConfig, RowsConfig, ScoreConfig, SftConfig, TrainConfig
from rlt_jax.data import (
    STUDENT_PROMPT,
    TEACHER_PROMPT,
    ChatFormat,
    check_same_tokenizer,
    load_tokenizer,
    read_prompt_file,
    tags_of,
    template_notes,
)
from rlt_jax.types import StudentTokens, TagFormat

log = logging.getLogger("rlt_jax")


def chat_format_of(config: TrainConfig | SftConfig | GenerateConfig | ScoreConfig | EvaluateConfig) -> ChatFormat:
    """The chat format that a command's configuration describes; raises as `load_chat_format`."""
    prompts: ScoreConfig | DataConfig | RowsConfig
    match config:
        case EvaluateConfig():
            return load_chat_format(
                config.model,
                config.model,
                tags=config.tags,
                teacher_prompt_file=None,
                student_prompt_file=config.system_prompt_file,
            )
        case ScoreConfig():
            prompts, teacher, student = config, config.teacher, config.student
        case SftConfig():
            prompts, teacher, student = config.data, config.model, config.model
        case _:
            prompts, teacher, student = config.data, config.teacher, config.student or config.teacher
    chat = load_chat_format(
        teacher,
        student,
        tags=prompts.tags,
        teacher_prompt_file=prompts.teacher_prompt_file,
        student_prompt_file=prompts.student_prompt_file,
        student_tokens="ids" if isinstance(config, SftConfig) else config.reward.student_tokens,
    )
    if isinstance(config, SftConfig) and config.student_gap == "blank-line":
        return replace(chat, student_sft_gap="\n\n")
    return chat


def load_chat_format(
    teacher: str,
    student: str,
    *,
    tags: TagFormat,
    teacher_prompt_file: str | None,
    student_prompt_file: str | None,
    student_tokens: StudentTokens = "ids",
) -> ChatFormat:
    """Tokenizers, tags and prompts of a run; the log says where a chat template is not followed to the letter.

    Raises:
      UserError: unusable tokenizers, templates or prompt files, or two models that would have to exchange token ids
        but do not read them alike.
    """
    tokenizer = load_tokenizer(teacher)
    student_tokenizer = tokenizer if student == teacher else load_tokenizer(student)
    if student_tokens == "ids" and student_tokenizer is not tokenizer:
        check_same_tokenizer(tokenizer, student_tokenizer)
    chat = ChatFormat(
        tokenizer,
        tags_of(tags),
        teacher_prompt=read_prompt_file(teacher_prompt_file) if teacher_prompt_file else TEACHER_PROMPT,
        student_prompt=read_prompt_file(student_prompt_file) if student_prompt_file else STUDENT_PROMPT,
        student_prompt_overrides_rows=student_prompt_file is not None,
        student_tokenizer=student_tokenizer,
        student_tokens=student_tokens,
    )
    for path, its_tokenizer in {teacher: tokenizer, student: student_tokenizer}.items():
        for note in template_notes(its_tokenizer):
            log.warning("%s: %s", path, note)
    return chat
