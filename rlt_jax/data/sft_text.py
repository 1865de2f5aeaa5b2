"""Examples for supervised fine-tuning: token ids, and which of them are trained on.

Departures from the original:
- The trained part is known from how the text is built, not searched for in the ids: the original finds nothing, and
  trains on nothing, where the start tag's newlines merge with the trace's, or the solution with its end tag.
- Prompt and answer are tokenised separately, as when the model writes the answer itself.
- A row without a trace is refused (the original uses the solution instead); a text that is too long is skipped, not
  truncated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rlt_jax.data.chat_format import ChatFormat, student_sft_parts, teacher_sft_parts
from rlt_jax.data.encoding import encode_batch
from rlt_jax.data.forged import forged_problem
from rlt_jax.data.turns import turns_of
from rlt_jax.errors import UserError
from rlt_jax.types import Row

Target = Literal["teacher", "student"]


class SftExample(NamedTuple):
    """Token ids of one text, and which of them count in the loss."""

    ids: np.ndarray  # i32[T] token ids
    trained: np.ndarray  # bool[T]


@dataclass(frozen=True)
class BuiltSftExamples:
    """The examples of a run, and why the other rows were skipped."""

    examples: tuple[SftExample, ...]
    skipped: tuple[tuple[int, str], ...]  # (row number, reason)


def build_sft_examples(
    rows: Sequence[Row], chat: ChatFormat, *, target: Target, max_length: int, positions: int | None = None
) -> BuiltSftExamples:
    """The teacher's or the student's chat for every row that has a trace and at most `max_length` tokens.

    The trained tokens are, for the teacher, those after the explanation's start tag and its two newlines (explanation,
    end tag, end of turn); for the student, those after the assistant's header.

    Args:
      positions: how many tokens the model was made for; longer texts are skipped, too. None: not known.
    Raises:
      UserError: there is no such row, or the chat template ends an assistant's turn with no token.
    """
    tokenizer = chat.tokenizer if target == "teacher" else chat.student
    if turns_of(tokenizer).end_id is None:
        raise UserError(
            f"expected a chat template that ends an assistant's turn with a token, which fine-tuning can teach and "
            f"sampling stop at, but this one writes {turns_of(tokenizer).ending!r}: let chat_template.jinja write "
            f"{tokenizer.eos_token or 'an end token'} after an assistant's text"
        )
    problems = [_problem(row, chat) for row in rows]
    skipped = [(row.number, problem) for row, problem in zip(rows, problems) if problem is not None]
    usable = [row for row, problem in zip(rows, problems) if problem is None]
    parts = [_parts(row, chat, target) for row in usable]
    prompts = encode_batch(tokenizer, [prompt for prompt, _ in parts])
    answers = encode_batch(tokenizer, [answer for _, answer in parts])
    examples = []
    for row, prompt, answer in zip(usable, prompts, answers, strict=True):
        length = len(prompt) + len(answer)
        if length > max_length:
            skipped.append((row.number, f"text is too long ({length} tokens, at most {max_length})"))
            continue
        if positions is not None and length > positions:
            skipped.append((row.number, f"text exceeds the model's positions ({length} tokens, at most {positions})"))
            continue
        examples.append(SftExample(np.concatenate([prompt, answer]), np.arange(length) >= len(prompt)))
    if not examples:
        reasons = "; ".join(f"row {number}: {reason}" for number, reason in skipped[:5]) or "there are no rows"
        raise UserError(
            f"expected rows with a reasoning trace and at most {min(max_length, positions or max_length)} tokens, but "
            f"none of {len(rows)} can be used ({reasons}): give rows with shorter traces, a model for longer texts, or "
            "raise max_length"
        )
    return BuiltSftExamples(tuple(examples), tuple(sorted(skipped)))


def _problem(row: Row, chat: ChatFormat) -> str | None:
    if row.reasoning_trace is None:
        return "no reasoning trace"
    return forged_problem(row, chat, trace=True)


def _parts(row: Row, chat: ChatFormat, target: Target) -> tuple[str, str]:
    match target:
        case "teacher":
            return teacher_sft_parts(row, chat)
        case "student":
            return student_sft_parts(row, chat)
