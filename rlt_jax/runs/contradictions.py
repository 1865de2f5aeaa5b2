"""What settings and the records of model folders (`data/model_record.py`) say against each other, in words."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Generic, NamedTuple, TypeVar

from rlt_jax.data import ChatFormat, Tags
from rlt_jax.data.model_record import RECORD_FILE, ModelRecord, Role, StudentGap, read_record
from rlt_jax.errors import UserError
from rlt_jax.types import TagFormat

log = logging.getLogger("rlt_jax")

T = TypeVar("T")

SHOWN = 60  # characters of a text in a message
FIRST_ROWS = 100  # that are looked at


@dataclass(frozen=True)
class TrainedModel:
    """A model that a command uses, and whose folder says how it was trained."""

    flag: str  # "--teacher"
    path: str  # as it was named
    role: Role | None  # what the command uses it as; None: in no role
    record: ModelRecord

    @property
    def source(self) -> str:
        """Where its record is."""
        return f"{self.path.rstrip('/')}/{RECORD_FILE}"

    def __str__(self) -> str:
        return f"{self.flag} {self.path}"


class Choice(NamedTuple, Generic[T]):
    """A value that was settled, and where it comes from."""

    value: T
    source: str


class Contradiction(NamedTuple):
    """What is said against what, and what to do."""

    what: str
    advice: str


def trained_models(used: Iterable[tuple[str, str, Role | None]]) -> tuple[TrainedModel, ...]:
    """Those of the used models (flag, path, role) that have a record; raises as `read_record`."""
    return tuple(
        TrainedModel(flag, path, role, record) for flag, path, role in used if (record := read_record(path)) is not None
    )


def settle(found: Iterable[Contradiction], *, stop: bool, escape: str) -> None:
    """Refuse contradictions, or log them.

    Args:
      escape: the setting that logs them, or why they are only logged.
    Raises:
      UserError: all of them, one per line.
    """
    contradictions = list(dict.fromkeys(found))
    if not stop:
        for what, _ in contradictions:
            log.warning("%s (%s)", what, escape)
    elif contradictions:
        lines = [f"{what}: {advice}" for what, advice in contradictions]
        raise UserError("\n".join([*lines, f"or go on all the same with {escape}"]))


def role_contradictions(models: Sequence[TrainedModel]) -> Iterator[Contradiction]:
    """Models that were trained as something else than they are used as."""
    wrong = [model for model in models if model.role and model.record.role != model.role]
    roles = {model.role: model for model in wrong if model.flag != "--reference"}
    if len(roles) == 2:
        teacher, student = roles["teacher"], roles["student"]
        yield Contradiction(
            f"{teacher} was trained as a student and {student} as a teacher ({teacher.source}, {student.source})",
            f"are they swapped? give --teacher {student.path} --student {teacher.path}",
        )
        wrong = [model for model in wrong if model.flag == "--reference"]
    for model in wrong:
        yield Contradiction(
            f"{model} was trained as a {model.record.role} ({model.source})",
            f"give a model that was trained as a {model.role}, or one that was not trained by rlt_jax",
        )


def settled_tags(
    models: Sequence[TrainedModel], given: TagFormat | None, *, flag: str, stop: bool
) -> Choice[TagFormat]:
    """The tags given, else those that the first folder names, else bespoke.

    Raises:
      UserError: contradictions are only logged, none are given, and the folders name different ones.
    """
    named = {model: model.record.tags for model in models}
    if given is not None:
        return Choice(given, flag)
    if not stop and len(set(named.values())) > 1:
        each = ", ".join(f"{model} with {tags}" for model, tags in named.items())
        raise UserError(f"the models were trained with different tags ({each}): say which to use with {flag}")
    default: Choice[TagFormat] = Choice("bespoke", "default")
    return next((Choice(tags, model.source) for model, tags in named.items()), default)


def tag_contradictions(
    models: Sequence[TrainedModel], tags: Choice[TagFormat], *, flag: str
) -> Iterator[Contradiction]:
    """Models that were trained with other tags."""
    for model in models:
        if model.record.tags == tags.value:
            continue
        was = f"{model} was trained with tags {model.record.tags} ({model.source})"
        if tags.source == flag:
            yield Contradiction(
                f"{flag} {tags.value}, but {was}",
                f"leave out {flag} (or give None), or give a model that was trained with {tags.value}",
            )
        else:
            yield Contradiction(
                f"the tags are {tags.value} ({tags.source}), but {was}",
                "give models that were trained with the same tags",
            )


def settled_prompt(models: Sequence[TrainedModel], role: Role, default: str) -> Choice[str]:
    """The prompt that the first folder of a model trained in this role names, else the default."""
    return next(
        (Choice(model.record.prompt, model.source) for model in _trained_as(role, models) if model.record.prompt),
        Choice(default, "default"),
    )


def prompt_contradictions(
    models: Sequence[TrainedModel], role: Role, prompt: Choice[str], tags: Tags, *, flag: str
) -> Iterator[Contradiction]:
    """Models that were trained in this role with another system prompt."""
    for model in _trained_as(role, models):
        if model.record.prompt is None:
            continue
        ours, theirs = tags.fill(prompt.value), tags.fill(model.record.prompt)
        if ours != theirs:
            here, there = difference(ours, theirs)
            given = prompt.source not in ("default", *(other.source for other in models))
            yield Contradiction(
                f"the {role}'s prompt is {here} ({f'{flag} {prompt.source}' if given else prompt.source}), but {model} "
                f"was trained with {there} ({model.source})",
                f"leave out {flag} (or give None) to use the model's own prompt, or give a {role} that was trained "
                "with yours",
            )


def warn_of_row_prompts(chat: ChatFormat, systems: Iterable[str | None]) -> None:
    """Warn if system prompts of rows are not what the student was trained with; FIRST_ROWS of them are looked at."""
    source = chat.sources.student_prompt
    if chat.student_prompt_overrides_rows or not source.endswith(RECORD_FILE):
        return
    own = [system for system in islice(systems, FIRST_ROWS) if system is not None]
    other = [system for system in own if system != chat.tags.fill(chat.student_prompt)]
    if other:
        here, there = difference(other[0], chat.student_prompt)
        log.warning(
            "%d of the first %d system prompts of rows are not what the student was trained with (%s; %s: %s): drop "
            "the rows' system column, or give a student that knows them",
            *(len(other), len(own), here, source.removeprefix("rows, else "), there),
        )


def settled_gap(models: Sequence[TrainedModel], given: StudentGap | None, *, flag: str) -> Choice[StudentGap]:
    """What separates a student's thought and solution: as given, else as the folder names it, else as the row."""
    if given is not None:
        return Choice(given, flag)
    gaps = ((model.record.student_gap, model.source) for model in _trained_as("student", models))
    default: Choice[StudentGap] = Choice("as-row", "default")
    return next((Choice(gap, source) for gap, source in gaps if gap), default)


def gap_contradictions(
    models: Sequence[TrainedModel], gap: Choice[StudentGap], *, flag: str
) -> Iterator[Contradiction]:
    """Students that were trained with another gap."""
    for model in _trained_as("student", models):
        if model.record.student_gap != gap.value:
            yield Contradiction(
                f"{flag} {gap.value}, but {model} was trained with {model.record.student_gap} ({model.source})",
                f"leave out {flag}",
            )


def chat_contradiction(model: TrainedModel, outline: str) -> Iterator[Contradiction]:
    """A model whose chat template no longer writes what it was trained with.

    Args:
      outline: what it writes now (`chat_outline`).
    """
    if outline != model.record.chat:
        here, there = difference(outline, model.record.chat)
        yield Contradiction(
            f"the chat template of {model} writes {here}, but the model was trained with {there} ({model.source})",
            f"restore the chat template in {model.path} (chat_template.jinja)",
        )


def difference(one: str, other: str) -> tuple[str, str]:
    """Two texts, quoted and cut to where they begin to differ."""
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other))))
    start = max(0, same - SHOWN // 3) if max(len(one), len(other)) > SHOWN else 0

    def shown(text: str) -> str:
        end = start + SHOWN
        return ("..." if start else "") + repr(text[start:end]) + ("..." if end < len(text) else "")

    return shown(one), shown(other)


def _trained_as(role: Role, models: Sequence[TrainedModel]) -> list[TrainedModel]:
    """Models that were trained in the role that they are used in."""
    return [model for model in models if model.role == model.record.role == role]
