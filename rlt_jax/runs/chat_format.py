"""The chat format of each command: tokenizers with their templates, tags and prompts.

What a setting leaves open comes from the folders of the models (`data/model_record.py`), and only then from the
defaults; what contradicts a folder is refused (`contradictions.py`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlt_jax.configs import DataConfig, EvaluateConfig, GenerateConfig, RowsConfig, ScoreConfig, SftConfig, TrainConfig
from rlt_jax.data import (
    STUDENT_PROMPT,
    TEACHER_PROMPT,
    ChatFormat,
    ChatSources,
    check_same_tokenizer,
    load_tokenizer,
    read_prompt_file,
    tags_of,
    template_notes,
)
from rlt_jax.data.chat_format import ROWS_FIRST
from rlt_jax.data.model_record import Role, StudentGap, chat_outline
from rlt_jax.runs.contradictions import (
    Choice,
    TrainedModel,
    chat_contradiction,
    gap_contradictions,
    prompt_contradictions,
    role_contradictions,
    settle,
    settled_gap,
    settled_prompt,
    settled_tags,
    tag_contradictions,
    trained_models,
)
from rlt_jax.types import StudentTokens, TagFormat

log = logging.getLogger("rlt_jax")

Config = TrainConfig | SftConfig | GenerateConfig | ScoreConfig | EvaluateConfig


def chat_format_of(config: Config) -> ChatFormat:
    """The chat format that a command's configuration and the folders of its models describe.

    Raises:
      UserError: as `load_chat_format`; a folder's record is damaged, or contradicts the settings, another folder, the
        model's role in the command or its chat template. Fine-tuning may change all of these: there they are logged.
    """
    asked = _asked(config)
    models = trained_models(asked.models)
    stop = asked.stop
    tags = settled_tags(models, asked.tags, flag=asked.tags_flag, stop=stop)
    teacher_prompt = _prompt(models, "teacher", asked.teacher_prompt_file, TEACHER_PROMPT)
    student_prompt = _prompt(models, "student", asked.student_prompt_file, STUDENT_PROMPT)
    gap = settled_gap(models, asked.student_gap, flag="--student-gap")
    chat = _load(
        asked.teacher,
        asked.student,
        tags=tags.value,
        teacher_prompt=teacher_prompt.value,
        student_prompt=student_prompt.value,
        overrides_rows=asked.student_prompt_file is not None,
        student_tokens=asked.student_tokens,
    )
    outlines = {asked.teacher: chat_outline(chat.tokenizer), asked.student: chat_outline(chat.student)}

    found = [
        *tag_contradictions(models, tags, flag=asked.tags_flag),
        *prompt_contradictions(
            models, "teacher", teacher_prompt, chat.tags, flag=f"{asked.section}teacher-prompt-file"
        ),
        *prompt_contradictions(models, "student", student_prompt, chat.tags, flag=asked.student_prompt_flag),
        *(one for model in models if model.path in outlines for one in chat_contradiction(model, outlines[model.path])),
    ]
    roles, escape = list(role_contradictions(models)), f"{asked.section}on-contradiction warn"
    match config:
        case SftConfig():
            found += gap_contradictions(models, gap, flag="--student-gap")
            settle([*roles, *found], stop=False, escape="fine-tuning teaches it anew")
        case EvaluateConfig():
            settle(roles, stop=False, escape="its answers are graded all the same")
            settle(found, stop=stop, escape=escape)
        case _:
            settle([*roles, *found], stop=stop, escape=escape)
    sources = ChatSources(
        tags=tags.source,
        teacher_prompt=teacher_prompt.source,
        student_prompt=student_prompt.source if asked.student_prompt_file else ROWS_FIRST + student_prompt.source,
        student_gap=gap.source,
    )
    return replace(chat, student_sft_gap="\n\n" if gap.value == "blank-line" else None, sources=sources)


@dataclass(frozen=True)
class _Asked:
    """What a configuration says about the chat."""

    teacher: str  # whose tokenizer is the first
    student: str
    models: tuple[tuple[str, str, Role | None], ...]  # (flag, path, role), the most important first
    section: str  # of the flags: "--data."
    tags: TagFormat | None
    teacher_prompt_file: str | None
    student_prompt_file: str | None
    stop: bool  # at a contradiction
    student_gap: StudentGap | None = None
    student_tokens: StudentTokens = "ids"
    student_prompt_flag: str = ""

    @property
    def tags_flag(self) -> str:
        return f"{self.section}tags"


def _asked(config: Config) -> _Asked:
    match config:
        case EvaluateConfig():
            return _Asked(
                teacher=config.model,
                student=config.model,
                models=(("--model", config.model, "student" if config.prompt == "student" else None),),
                section="--",
                tags=config.tags,
                teacher_prompt_file=None,
                student_prompt_file=config.system_prompt_file,
                student_prompt_flag="--system-prompt-file",
                stop=config.on_contradiction == "stop",
            )
        case ScoreConfig():
            teacher, student = config.teacher, config.student
            return _with_prompts(config, "--", teacher, student, _pair(teacher, student), config.reward.student_tokens)
        case SftConfig():
            models = (("--model", config.model, config.target),)
            asked = _with_prompts(config.data, "--data.", config.model, config.model, models, "ids")
            return replace(asked, student_gap=config.student_gap)
        case _:
            teacher, student = config.teacher, config.student or config.teacher
            used = _pair(teacher, config.student)
            if isinstance(config, TrainConfig) and config.reference_model != teacher:
                used = (*used, ("--reference", config.reference_model, "teacher"))
            return _with_prompts(config.data, "--data.", teacher, student, used, config.reward.student_tokens)


def _prompt(models: Sequence[TrainedModel], role: Role, file: str | None, default: str) -> Choice[str]:
    return Choice(read_prompt_file(file), file) if file else settled_prompt(models, role, default)


def _pair(teacher: str, student: str | None) -> tuple[tuple[str, str, Role | None], ...]:
    one: tuple[str, str, Role | None] = ("--teacher", teacher, "teacher")
    return (one,) if student is None else (one, ("--student", student, "student"))


def _with_prompts(
    settings: ScoreConfig | DataConfig | RowsConfig,
    section: str,
    teacher: str,
    student: str,
    models: tuple[tuple[str, str, Role | None], ...],
    student_tokens: StudentTokens,
) -> _Asked:
    return _Asked(
        teacher=teacher,
        student=student,
        models=models,
        section=section,
        tags=settings.tags,
        teacher_prompt_file=settings.teacher_prompt_file,
        student_prompt_file=settings.student_prompt_file,
        student_prompt_flag=f"{section}student-prompt-file",
        student_tokens=student_tokens,
        stop=settings.on_contradiction == "stop",
    )


def load_chat_format(
    teacher: str,
    student: str,
    *,
    tags: TagFormat,
    teacher_prompt_file: str | None,
    student_prompt_file: str | None,
    student_tokens: StudentTokens = "ids",
) -> ChatFormat:
    """Tokenizers, tags and prompts as given; the log says where a chat template is not followed to the letter.

    Raises:
      UserError: unusable tokenizers, templates or prompt files, or two models that would have to exchange token ids
        but do not read them alike.
    """
    return _load(
        teacher,
        student,
        tags=tags,
        teacher_prompt=read_prompt_file(teacher_prompt_file) if teacher_prompt_file else TEACHER_PROMPT,
        student_prompt=read_prompt_file(student_prompt_file) if student_prompt_file else STUDENT_PROMPT,
        overrides_rows=student_prompt_file is not None,
        student_tokens=student_tokens,
    )


def _load(
    teacher: str,
    student: str,
    *,
    tags: TagFormat,
    teacher_prompt: str,
    student_prompt: str,
    overrides_rows: bool,
    student_tokens: StudentTokens,
) -> ChatFormat:
    tokenizer = load_tokenizer(teacher)
    student_tokenizer = tokenizer if student == teacher else load_tokenizer(student)
    if student_tokens == "ids" and student_tokenizer is not tokenizer:
        check_same_tokenizer(tokenizer, student_tokenizer)
    chat = ChatFormat(
        tokenizer,
        tags_of(tags),
        teacher_prompt=teacher_prompt,
        student_prompt=student_prompt,
        student_prompt_overrides_rows=overrides_rows,
        student_tokenizer=student_tokenizer,
        student_tokens=student_tokens,
    )
    for path, its_tokenizer in {teacher: tokenizer, student: student_tokenizer}.items():
        for note in template_notes(its_tokenizer):
            log.warning("%s: %s", path, note)
    return chat
