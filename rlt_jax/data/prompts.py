"""Prompts from rows, tokenised once before a run.

Departures from the original:
- A prompt that is too long is skipped and counted; `truncate=True` truncates it on the left, as the original does.
  Truncation removes the system prompt, then the question, then the solution, which makes the reward meaningless.
- A solution all of whose tokens hold a piece of a tag is skipped: it has no log-prob of its own.
- A question or solution that forges a tag of the chat is skipped (`forged.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlt_jax.data.chat_format import ChatFormat, student_prefix_text, teacher_prompt_text
from rlt_jax.data.encoding import encode_batch
from rlt_jax.data.forged import forged_problem
from rlt_jax.data.rows import describe_skipped
from rlt_jax.data.spans import NO_SOLUTION_TOKEN, closing_tokens
from rlt_jax.errors import UserError
from rlt_jax.types import Prompt, Row


@dataclass(frozen=True)
class BuiltPrompts:
    """The prompts of a run, and why the other rows were skipped."""

    prompts: tuple[Prompt, ...]
    skipped: tuple[tuple[int, str], ...]  # (row number, reason)


@dataclass(frozen=True)
class Room:
    """The lengths that the models of a run were made for, and the longest completion, tokens."""

    completion: int
    teacher: int  # positions of the teacher, and of the reference if it has fewer
    student: int | None  # None: nothing is scored


def build_prompts(
    rows: Sequence[Row], chat: ChatFormat, *, max_prompt_length: int, truncate: bool = False, room: Room | None = None
) -> BuiltPrompts:
    """Format and tokenise every row; skip those that are too long, forge a tag, or have no solution token of their own.

    Args:
      max_prompt_length: maximum length of the teacher's prompt, tokens.
      truncate: truncate a longer prompt's `teacher_ids` on the left instead of skipping it; `teacher_text` stays whole.
      room: skip rows that could exceed the positions of a model if their completion is as long as it may be. None:
        nothing is known of the models.
    Raises:
      UserError: no row can be used.
    """
    texts = [teacher_prompt_text(row.question, row.solution, chat) for row in rows]
    prefixes = [student_prefix_text(row.question, chat, row_system=row.system) for row in rows]
    teacher_ids = encode_batch(chat.tokenizer, texts)
    student_ids = encode_batch(chat.student, prefixes)
    solution_ids = encode_batch(chat.tokenizer, [row.solution for row in rows])
    closings = closing_tokens([row.solution for row in rows], chat)
    prompts, skipped = [], []
    for i, row in enumerate(rows):
        closing_ids, solution = closings[i]
        prompt = Prompt(
            row=row,
            teacher_text=texts[i],
            teacher_ids=teacher_ids[i][-max_prompt_length:] if truncate else teacher_ids[i],
            student_text=prefixes[i],
            student_prefix_ids=student_ids[i],
            closing_ids=closing_ids,
            closing_solution=solution,
            solution_ids=solution_ids[i],
        )
        problem = forged_problem(row, chat) or _problem(prompt, max_prompt_length, room)
        if problem is None:
            prompts.append(prompt)
        else:
            skipped.append((row.number, problem))
    if not prompts:
        raise UserError(_none_fits(skipped, min(range(len(rows)), key=lambda i: len(teacher_ids[i]), default=None)))
    return BuiltPrompts(tuple(prompts), tuple(skipped))


def _none_fits(skipped: Sequence[tuple[int, str]], shortest: int | None) -> str:
    """What to say if no row can be used; `shortest` indexes the row with the shortest prompt."""
    if shortest is None:
        return "expected rows, but there are none: give rows with question and solution"
    number, reason = skipped[shortest]
    return (
        f"expected rows whose prompt fits, but none of {len(skipped)} does: {describe_skipped(skipped)}; the shortest "
        f"is row {number}: {reason}: raise max_prompt_length, lower max_completion_length, or give shorter rows"
    )


def _problem(prompt: Prompt, max_prompt_length: int, room: Room | None) -> str | None:
    """Why a row is skipped; None if it can be used."""
    length = len(prompt.teacher_ids)
    if length > max_prompt_length:
        return f"prompt is too long ({length} tokens, at most {max_prompt_length})"
    if not len(prompt.closing_solution):
        return f"{NO_SOLUTION_TOKEN} ({prompt.row.solution!r})"
    if room is None:
        return None
    if length + room.completion > room.teacher:
        return (
            f"prompt and completion exceed the teacher's positions ({length} + {room.completion} tokens, at most "
            f"{room.teacher})"
        )
    student = len(prompt.student_prefix_ids) + len(prompt.closing_ids)
    if room.student is not None and student + room.completion > room.student:
        return (
            f"chat and explanation exceed the student's positions ({student} + {room.completion} tokens, at most "
            f"{room.student})"
        )
    return None
