"""What a trained model's folder says about its training: the file rlt_jax.json beside the weights.

A teacher or student knows one format alone: its system prompt, tags and chat. The record holds them, so that whoever
reads the folder asks the model as it was trained. `model_card.py` writes the same for people.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic

from rlt_jax.data.tags import Tags, tags_of
from rlt_jax.data.tokenizer import eos_ids, model_files
from rlt_jax.data.turns import ANSWER, SYSTEM, USER, chat_text, end_of_turn
from rlt_jax.errors import UserError
from rlt_jax.types import TagFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RECORD_FILE = "rlt_jax.json"
FORMAT = 1  # of the file; another number is refused

Role = Literal["teacher", "student"]
StudentGap = Literal["as-row", "blank-line"]

_STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Training:
    """One training of a model."""

    command: Literal["sft", "train"]
    base: str  # the model that was trained, as it was named
    base_on_hub: bool  # False: it was a local folder
    student: str | None  # whose log-probs made the reward; None: there was none
    data: str  # the rows
    split: str
    steps: int
    version: str  # of rlt_jax
    reward: str | None = None  # a function of one's own; None: the paper's reward. Left out of the file then

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT


@dataclass(frozen=True)
class ModelRecord:
    """What a model was trained as, and with what.

    Prompts keep their placeholders (`{explanation_start}`, see `Tags.fill`); in `chat` the texts `{system}`,
    `{question}` and `{answer}` stand for what the template writes around.
    """

    role: Role
    tags: TagFormat
    prompt: str | None  # the role's system prompt; None: rows with different ones of their own
    prompt_of_rows: bool  # whether it was the rows' own `system`
    student_gap: StudentGap | None  # between a student's thought and solution, as in `rlt_jax.sft`; None: a teacher
    chat: str
    end_tokens: tuple[str, ...]  # that end what the model writes
    training: tuple[Training, ...]  # oldest first

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT


def chat_outline(tokenizer: "PreTrainedTokenizerFast") -> str:
    """What a model's chat template writes around system prompt, question and answer."""
    text = chat_text(tokenizer, SYSTEM, USER, own_opening=False) + ANSWER + end_of_turn(tokenizer)
    return text.replace(SYSTEM, "{system}").replace(USER, "{question}").replace(ANSWER, "{answer}")


def filled_chat(outline: str, *, system: str, question: str, answer: str) -> str:
    """An outline with its three texts."""
    texts = {"{system}": system, "{question}": question, "{answer}": answer}
    return re.sub(r"\{(system|question|answer)\}", lambda found: texts[found[0]], outline)


def end_tokens(tokenizer: "PreTrainedTokenizerFast", model: str) -> tuple[str, ...]:
    """The tokens that end what a model writes; raises as `eos_ids`."""
    return tuple(map(str, tokenizer.convert_ids_to_tokens(list(eos_ids(tokenizer, model)))))


def tag_format_of(tags: Tags) -> TagFormat:
    """The format whose tags these are."""
    formats: tuple[TagFormat, ...] = ("bespoke", "r1")
    return next(name for name in formats if tags_of(name) == tags)


def record_text(record: ModelRecord) -> str:
    """The text of the file."""
    values = {"format": FORMAT, **dataclasses.asdict(record)}
    for training in values["training"]:
        if training["reward"] is None:
            del training["reward"]
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_record(model: str | Path) -> ModelRecord | None:
    """The record of a model folder or hub name; None: it has none, as models that others trained.

    Raises:
      UserError: the file is damaged, or of an unknown format.
    """
    file = model_files(model) / RECORD_FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"it cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise _damaged(file, f"it holds a {type(values).__name__}, not an object")
    written = values.pop("format", None)
    if type(written) is not int or written != FORMAT:
        if type(written) is int and written > FORMAT:
            raise UserError(
                f"{file}: expected format {FORMAT}, found {written}, which is newer: update rlt_jax, or delete the "
                "file and give the model's tags and prompts yourself"
            )
        raise _damaged(file, f"format is {written!r}, not {FORMAT}")
    try:
        record = pydantic.TypeAdapter(ModelRecord).validate_json(json.dumps(values), strict=True)
    except (pydantic.ValidationError, ValueError) as error:
        raise _damaged(file, _first_problem(error)) from None
    if problem := _inconsistency(record):
        raise _damaged(file, problem)
    return record


def _inconsistency(record: ModelRecord) -> str | None:
    if record.role == "teacher" and (record.prompt is None or record.prompt_of_rows or record.student_gap is not None):
        return "a teacher has a prompt, not of its rows, and no student_gap"
    if record.role == "student" and record.student_gap is None:
        return "student_gap is null for a student"
    if record.prompt is None and not record.prompt_of_rows:
        return "prompt is null, which stands for several prompts of rows, but prompt_of_rows is false"
    return None


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "unexpected_keyword_argument":
        return f"{where} is unknown"
    return f"{where}={problem['input']!r} is not {problem['msg'].removeprefix('Input should be ')}"


def _damaged(file: Path, problem: str) -> UserError:
    return UserError(
        f"{file}: expected what rlt_jax writes beside a model that it trained, but {problem}: restore the file, or "
        "delete it and give the model's tags and prompts yourself"
    )
