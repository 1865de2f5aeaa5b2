"""Examples for supervised fine-tuning: token ids, and which of them are trained on.

Departures from the original:
- The trained part is known from how the text is built, not searched for in the ids: the original finds nothing, and
  trains on nothing, where the start tag's newlines merge with the trace's, or the solution with its end tag.
- Prompt and answer are tokenised separately, as when the model writes the answer itself.
- A row without a trace is refused (the original uses the solution instead); a text that is too long is skipped, not
  truncated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from rlt_jax.data.chat_format import ChatFormat, student_sft_parts, teacher_sft_parts
from rlt_jax.data.encoding import encode_batch
from rlt_jax.data.forged import forged_problem
from rlt_jax.data.lazily import Lazily
from rlt_jax.data.lengths import Length, counter_of
from rlt_jax.data.prompts import changed_since, row_batches
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

    examples: Lazily[Row, SftExample]  # each formatted and tokenised at every access
    skipped: tuple[tuple[int, str], ...]  # (row number, reason)


def build_sft_examples(
    rows: Sequence[Row],
    chat: ChatFormat,
    *,
    target: Target,
    max_length: int,
    positions: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> BuiltSftExamples:
    """The teacher's or the student's chat for every row that has a trace and at most `max_length` tokens.

    Which rows these are is decided here; each chat is formatted and tokenised when it is asked for.

    The trained tokens are, for the teacher, those after the explanation's start tag and its two newlines (explanation,
    end tag, end of turn); for the student, those after the assistant's header.

    Args:
      positions: how many tokens the model was made for; longer texts are skipped, too. None: not known.
      on_progress: called with the number of rows that are decided.
    Raises:
      UserError: there is no such row, or the chat template ends an assistant's turn with no token. An example raises
        it when it is built if it is not what was found here.
    """
    tokenizer = chat.tokenizer if target == "teacher" else chat.student
    if turns_of(tokenizer).end_id is None:
        raise UserError(
            f"expected a chat template that ends an assistant's turn with a token, which fine-tuning can teach and "
            f"sampling stop at, but this one writes {turns_of(tokenizer).ending!r}: let chat_template.jinja write "
            f"{tokenizer.eos_token or 'an end token'} after an assistant's text"
        )
    limits = [max_length] if positions is None else [max_length, positions]
    usable, skipped, done = [], [], 0
    for batch in row_batches(rows):
        problems = [_unusable(row, chat) for row in batch]
        skipped += [(row.number, problem) for row, problem in zip(batch, problems) if problem is not None]
        traced = [row for row, problem in zip(batch, problems) if problem is None]
        lengths = counter_of(tokenizer).lengths(_parts(traced, chat, target), limits)
        for row, length in zip(traced, lengths):
            problem = _problem(length, max_length, positions)
            if problem is None:
                usable.append(row)
            else:
                skipped.append((row.number, problem))
        done += len(batch)
        on_progress(done)
    if not usable:
        reasons = "; ".join(f"row {number}: {reason}" for number, reason in skipped[:5]) or "there are no rows"
        raise UserError(
            f"expected rows with a reasoning trace and at most {min(max_length, positions or max_length)} tokens, but "
            f"none of {len(rows)} can be used ({reasons}): give rows with shorter traces, a model for longer texts, or "
            "raise max_length"
        )
    build = partial(_examples, chat=chat, target=target, max_length=max_length, positions=positions)
    return BuiltSftExamples(Lazily(tuple(usable), build), tuple(sorted(skipped)))


def _unusable(row: Row, chat: ChatFormat) -> str | None:
    """Why a row is skipped whatever its length; None if it is not."""
    if row.reasoning_trace is None:
        return "no reasoning trace"
    return forged_problem(row, chat, trace=True)


def _examples(
    rows: Sequence[Row], chat: ChatFormat, target: Target, max_length: int, positions: int | None
) -> list[SftExample]:
    """Format and tokenise rows that were found usable.

    Raises:
      UserError: one is not.
    """
    tokenizer = chat.tokenizer if target == "teacher" else chat.student
    parts = _parts(rows, chat, target)
    prompts = encode_batch(tokenizer, [prompt for prompt, _ in parts])
    answers = encode_batch(tokenizer, [answer for _, answer in parts])
    examples = []
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        length = len(prompt) + len(answer)
        if problem := _problem(Length.exact(length), max_length, positions):
            raise changed_since(row, problem)
        examples.append(SftExample(np.concatenate([prompt, answer]), np.arange(length) >= len(prompt)))
    return examples


def _problem(length: Length, max_length: int, positions: int | None) -> str | None:
    """Why a row is skipped; None if it can be used."""
    if length.low > max_length:
        return f"text is too long ({length} tokens, at most {max_length})"
    if positions is not None and length.low > positions:
        return f"text exceeds the model's positions ({length} tokens, at most {positions})"
    return None


def _parts(rows: Sequence[Row], chat: ChatFormat, target: Target) -> list[tuple[str, str]]:
    match target:
        case "teacher":
            return teacher_sft_parts(rows, chat)
        case "student":
            return student_sft_parts(rows, chat)
