"""Forged tags: a text inside a chat that holds a piece of the chat itself.

A question with `<|im_end|>` ends its turn, an explanation with `<|end_of_thought|>` ends the student's thought and can
write a solution of its own, a trace with its end tag teaches to stop there. One rule for all commands:

- a row whose question, solution, trace or given explanation holds a tag of the run's format or a special token of a
  model is skipped and counted; system prompts may name tags, but hold no special token;
- an explanation that a teacher wrote (sampled, or `completion` in `rlt_jax.score`) and that holds one before its end
  tag, other than its start tag once more, counts as not matched.

Departures from the original: it has no such rule, so that a teacher is rewarded for a forged end of the thought.
"""

import re
from collections.abc import Mapping
from dataclasses import astuple, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from rlt_jax.data.chat_format import ChatFormat, padded_thought
from rlt_jax.data.tags import Tags
from rlt_jax.types import Row, ScoreRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def forged_tag(text: str, chat: ChatFormat) -> str | None:
    """The first tag of the chat's format, or special token of its tokenizers, in `text`; None if there is none."""
    found = _pattern(chat.tags, chat.tokenizer, chat.student).search(text)
    return found[0] if found else None


def special_token(text: str, chat: ChatFormat) -> str | None:
    """The first special token of the chat's tokenizers in `text`; None if there is none."""
    found = _pattern(None, chat.tokenizer, chat.student).search(text)
    return found[0] if found else None


def forged_problem(row: Row, chat: ChatFormat, *, trace: bool = False) -> str | None:
    """Why a row cannot be used; None if it forges nothing.

    Args:
      trace: whether its trace is used, too; tags around it do not count.
    """
    texts = {"question": row.question, "solution": row.solution}
    if trace and row.reasoning_trace is not None:
        texts["reasoning_trace"] = padded_thought(row.reasoning_trace)
    return text_problem(texts, chat, system=row.system)


def text_problem(
    texts: Mapping[str, str], chat: ChatFormat, *, system: str | None = None, plain: bool = False
) -> str | None:
    """Why texts (name -> text) and a system prompt cannot stand in a chat; None if they forge nothing.

    Args:
      plain: the chat is the model's own, in which the tags of our formats are words like any other.
    """
    find = special_token if plain else forged_tag
    for name, text in texts.items():
        if tag := find(text, chat):
            return f"{name} holds a tag of the chat ({tag!r})"
    if system is not None and (token := special_token(system, chat)):
        return f"system holds a tag of the chat ({token!r})"
    return None


def judged(row: ScoreRow, chat: ChatFormat) -> ScoreRow:
    """A teacher's explanation, which counts as not matched if it forges a tag.

    Its own start tag said again forges nothing: the student's chat has no such tag.
    """
    written = row.explanation.replace(chat.tags.explanation_start, "")
    return replace(row, matched=False) if row.matched and forged_tag(written, chat) else row


@lru_cache(maxsize=8)
def _pattern(
    tags: Tags | None, teacher: "PreTrainedTokenizerFast", student: "PreTrainedTokenizerFast"
) -> re.Pattern[str]:
    texts = {
        token.content
        for tokenizer in (teacher, student)
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and token.content.strip()
    }
    if tags is not None:
        texts.update(astuple(tags))
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
