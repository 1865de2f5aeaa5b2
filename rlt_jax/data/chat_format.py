"""The teacher's and the student's chat: how both are built from question, solution and explanation (arXiv 2506.08388).

    teacher: system | question | <solution> S </solution> + blank line + <explanation> + two newlines, then its text
    student: system | question | <thought> explanation </thought> + blank line + <solution> S </solution>

The chat around these texts comes from each model's own template (`turns.py`): headers, and the end of turn, which is
whatever the template writes after an assistant message.

Departures from the original:
- The default prompts are our own; the data's `system` column is used instead of a prompt fixed in the code.
- Before supervised fine-tuning, a trace loses the tags around it and gets exactly two newlines on both sides: the
  original trains on nothing at all where the start tag's newlines merge with others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlt_jax.data.tags import BESPOKE, R1, Tags
from rlt_jax.data.turns import chat_text, chat_texts, end_of_turn, turns_of
from rlt_jax.errors import UserError
from rlt_jax.types import Row, StudentTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PADDING = "\n\n"  # between a thought and its tags
GAP = "\n\n"  # between the parts of an assistant turn

TEACHER_PROMPT = (
    "You teach by explaining. Each exercise reaches you together with its finished solution. Write the reasoning that "
    "leads from the question to this solution, so clearly that a student who sees only the question and your words "
    "could find the solution alone. Begin with {explanation_start}, reason step by step, and close with "
    "{explanation_end}."
)

STUDENT_PROMPT = (
    "Solve the exercise in two parts. First work it out between {thought_start} and {thought_end}: explore, calculate, "
    "check each step and correct yourself where needed. Then write the finished solution, with only what the reader "
    "needs, between {solution_start} and {solution_end}."
)


ROWS_FIRST = "rows, else "  # begins the source of a prompt that a row's own `system` precedes


@dataclass(frozen=True)
class ChatSources:
    """Where each part of a chat format comes from: a flag, a file, or "default"."""

    tags: str = "default"
    teacher_prompt: str = "default"
    student_prompt: str = "default"  # "rows, else ..." where a row's own `system` comes first
    student_gap: str = "default"


@dataclass(frozen=True)
class ChatFormat:
    """What turns rows into text and text into tokens: tokenizers with their chat templates, tags and system prompts.

    In both prompts `{thought_start}`, `{explanation_end}`, ... stand for the tags (see `Tags.fill`).

    Raises:
      UserError: a tokenizer has no chat template, or one that leaves out or repeats a text (see `turns_of`).
    """

    tokenizer: "PreTrainedTokenizerFast"  # of the teacher, or of the only model
    tags: Tags = BESPOKE
    teacher_prompt: str = TEACHER_PROMPT
    student_prompt: str = STUDENT_PROMPT
    student_prompt_overrides_rows: bool = False  # True: student_prompt replaces a row's own `system`
    student_sft_gap: str | None = None  # between thought and solution in student_sft_parts; None: see there
    student_tokenizer: "PreTrainedTokenizerFast | None" = None  # None: the teacher's
    student_tokens: StudentTokens = "ids"
    sources: ChatSources = ChatSources()

    def __post_init__(self) -> None:
        for tokenizer in (self.tokenizer, self.student):
            if not tokenizer.chat_template:
                raise UserError(
                    "expected a tokenizer with a chat template, but this one has none: use an instruction-tuned model, "
                    "or put a chat_template.jinja into the model's folder"
                )
            turns_of(tokenizer)

    @property
    def student(self) -> "PreTrainedTokenizerFast":
        """The student's tokenizer, with the student's own chat template."""
        return self.tokenizer if self.student_tokenizer is None else self.student_tokenizer


def teacher_prompt_text(question: str, solution: str, chat: ChatFormat) -> str:
    """The teacher's prompt: its chat up to the explanation's start tag and two newlines, where the teacher begins."""
    return teacher_prompt_texts([(question, solution)], chat)[0]


def teacher_prompt_texts(solved: Sequence[tuple[str, str]], chat: ChatFormat) -> list[str]:
    """`teacher_prompt_text` of each (question, solution); quicker than one at a time."""
    tags = chat.tags
    system = tags.fill(chat.teacher_prompt)
    headers = chat_texts(chat.tokenizer, [(system, question) for question, _ in solved], own_opening=False)
    return [
        header + tags.solution_start + solution + tags.solution_end + GAP + tags.explanation_start + PADDING
        for header, (_, solution) in zip(headers, solved)
    ]


def teacher_sft_parts(rows: Sequence[Row], chat: ChatFormat) -> list[tuple[str, str]]:
    """The teacher's prompt, and the text it is trained to write: the row's trace, the end tag, the end of turn.

    Raises:
      UserError: a row has no trace.
    """
    ending = chat.tags.explanation_end + end_of_turn(chat.tokenizer)
    prompts = teacher_prompt_texts([(row.question, row.solution) for row in rows], chat)
    return [(prompt, padded_thought(_trace(row)).removeprefix(PADDING) + ending) for prompt, row in zip(prompts, rows)]


def student_system(chat: ChatFormat, *, row_system: str | None = None) -> str:
    """The student's system prompt. A row's `system` comes first unless the chat format overrides it."""
    if row_system is None or chat.student_prompt_overrides_rows:
        return chat.tags.fill(chat.student_prompt)
    return row_system


def student_header_text(question: str, chat: ChatFormat, *, row_system: str | None = None) -> str:
    """The student's chat up to the assistant's header."""
    return student_header_texts([(question, row_system)], chat)[0]


def student_header_texts(asked: Sequence[tuple[str, str | None]], chat: ChatFormat) -> list[str]:
    """`student_header_text` of each (question, the row's own system prompt); quicker than one at a time."""
    own = student_system(chat)
    systems = [own if system is None else student_system(chat, row_system=system) for _, system in asked]
    return chat_texts(
        chat.student, [(system, question) for system, (question, _) in zip(systems, asked)], own_opening=False
    )


def student_prefix_text(question: str, chat: ChatFormat, *, row_system: str | None = None) -> str:
    """The student's chat up to and including the thought's start tag and two newlines."""
    return student_prefix_texts([(question, row_system)], chat)[0]


def student_prefix_texts(asked: Sequence[tuple[str, str | None]], chat: ChatFormat) -> list[str]:
    """`student_prefix_text` of each (question, the row's own system prompt); quicker than one at a time."""
    return [header + chat.tags.thought_start + PADDING for header in student_header_texts(asked, chat)]


def plain_chat_text(question: str, chat: ChatFormat, *, system: str | None) -> str:
    """A question in the model's own chat, up to where it writes; `system` None: the template's default.

    Unlike in the other chats, what the template begins the answer with (`<think>`) stays: the model is used to it.
    """
    return chat_text(chat.tokenizer, system, question, own_opening=True)


def student_closing_text(solution: str, chat: ChatFormat, *, gap: str = GAP) -> str:
    """What follows the thought in the student's chat: end tag, gap, tagged solution, end of turn."""
    tags = chat.tags
    return tags.thought_end + gap + tags.solution_start + solution + tags.solution_end + end_of_turn(chat.student)


def student_sft_parts(rows: Sequence[Row], chat: ChatFormat) -> list[tuple[str, str]]:
    """The student's prompt, and the text it is trained to write: the row's trace as its thought, then the solution.

    `chat.student_sft_gap` separates thought and solution. None follows the row, as the original does: a blank line if
    its solution is padded with one (Stratos), else nothing (plain question/solution rows). The chat that scores
    explanations always has the blank line: pass "\\n\\n" to train a student on plain rows in that form.

    Raises:
      UserError: a row has no trace.
    """
    headers = student_header_texts([(row.question, row.system) for row in rows], chat)
    parts = []
    for row, header in zip(rows, headers):
        gap = chat.student_sft_gap
        if gap is None:
            gap = GAP if row.solution.startswith(PADDING) else ""
        thought = chat.tags.thought_start + padded_thought(_trace(row))
        parts.append((header, thought + student_closing_text(row.solution, chat, gap=gap)))
    return parts


def padded_thought(text: str) -> str:
    """`text` without surrounding thought or explanation tags, padded with two newlines on both sides."""
    for tags in (BESPOKE, R1):
        text = _unwrapped(text, tags.thought_start, tags.thought_end)
        text = _unwrapped(text, tags.explanation_start, tags.explanation_end)
    return PADDING + text.strip("\r\n") + PADDING


def _trace(row: Row) -> str:
    if row.reasoning_trace is None:
        raise UserError(f"row {row.number}: supervised fine-tuning needs a reasoning trace, but the row has none")
    return row.reasoning_trace


def _unwrapped(text: str, start: str, end: str) -> str:
    inner = text.strip()
    wrapped = inner.startswith(start) and inner.endswith(end) and len(inner) >= len(start) + len(end)
    return inner[len(start) : len(inner) - len(end)] if wrapped else text
