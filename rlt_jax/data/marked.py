"""A chat for people: its text and tokens, cut where what is counted begins and ends."""

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WIDTH = 110  # characters of a line of tokens


class Span(NamedTuple):
    """Some tokens of a sequence, and what they count for."""

    positions: np.ndarray  # i32[K]
    meaning: str  # such as "solution: its log-prob is the reward's first term"


def marked_chat(
    title: str,
    ids: np.ndarray,
    tokenizer: "PreTrainedTokenizerFast",
    spans: Sequence[Span],
    *,
    rest: str,
    tokens: bool = True,
) -> str:
    """The sequence `ids` i32[T] part by part: what a part counts for, its text, its tokens with their ids.

    Lines of the text begin with `>` where it is counted, else with `|`.

    Args:
      rest: what the tokens of no span are.
      tokens: show them below the text.
    """
    span_of = np.full(len(ids), -1)
    for number, span in enumerate(spans):
        span_of[span.positions] = number
    cuts = [0, *(np.flatnonzero(np.diff(span_of)) + 1).tolist(), len(ids)]
    lines = [f"{title}, {len(ids)} tokens"]
    for start, end in pairwise(cuts):
        number = int(span_of[start])
        meaning, bar = (rest, "|") if number < 0 else (spans[number].meaning, ">")
        count = end - start
        lines.append(f"  {bar} {count} token{'s' if count > 1 else ''}, {meaning}")
        text = _decode(ids[start:end], tokenizer)
        lines += [f"    {bar} {line}".rstrip() for line in text.split("\n")]
        lines += _token_lines(ids[start:end], tokenizer) if tokens else []
    return "\n".join(lines)


def token_text(token_id: int, tokenizer: "PreTrainedTokenizerFast") -> str:
    """A token as `420 '<|im_end|>'`."""
    return f"{token_id} {_decode(np.array([token_id]), tokenizer)!r}"


def _token_lines(ids: np.ndarray, tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    tokens = [token_text(int(i), tokenizer).replace(" ", "\0") for i in ids]  # a token is not broken over two lines
    lines = textwrap.wrap("  ".join(tokens), WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"      {line}".replace("\0", " ") for line in lines]


def _decode(ids: np.ndarray, tokenizer: "PreTrainedTokenizerFast") -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
