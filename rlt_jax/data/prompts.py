"""Prompts from rows, tokenised once before a run.

Departures from the original:
- A prompt that is too long is skipped and counted; `truncate=True` truncates it on the left, as the original does.
  Truncation removes the system prompt, then the question, then the solution, which makes the reward meaningless.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlt_jax.data.chat_format import ChatFormat, student_prefix_text, teacher_prompt_text
from rlt_jax.data.encoding import encode_batch
from rlt_jax.errors import UserError
from rlt_jax.types import Prompt, Row


@dataclass(frozen=True)
class BuiltPrompts:
    """The prompts of a run, and the rows whose prompt was too long."""

    prompts: tuple[Prompt, ...]
    skipped: tuple[tuple[int, str], ...]  # (row number, reason)


def build_prompts(
    rows: Sequence[Row], chat: ChatFormat, *, max_prompt_length: int, truncate: bool = False
) -> BuiltPrompts:
    """Format and tokenise every row.

    Args:
      max_prompt_length: maximum length of the teacher's prompt, tokens.
      truncate: truncate a longer prompt's `teacher_ids` on the left instead of skipping it; `teacher_text` stays whole.
    Raises:
      UserError: no prompt fits.
    """
    tokenizer = chat.tokenizer
    texts = [teacher_prompt_text(row.question, row.solution, chat) for row in rows]
    prefixes = [student_prefix_text(row.question, chat, row_system=row.system) for row in rows]
    teacher_ids = encode_batch(tokenizer, texts)
    student_ids = encode_batch(tokenizer, prefixes)
    solution_ids = encode_batch(tokenizer, [row.solution for row in rows])
    prompts, skipped = [], []
    for row, text, ids, prefix, solution in zip(rows, texts, teacher_ids, student_ids, solution_ids, strict=True):
        if len(ids) > max_prompt_length and not truncate:
            skipped.append((row.number, f"prompt is too long ({len(ids)} tokens, at most {max_prompt_length})"))
            continue
        prompts.append(Prompt(row, text, ids[-max_prompt_length:], prefix, solution))
    if not prompts:
        shortest = f"the shortest has {min(map(len, teacher_ids))}" if rows else "there are no rows"
        raise UserError(
            f"expected prompts of at most {max_prompt_length} tokens, but none of {len(rows)} fits ({shortest}): raise "
            "max_prompt_length"
        )
    return BuiltPrompts(tuple(prompts), tuple(skipped))
