"""Where thought and solution stand in the teacher's and the student's token sequences (RLT, arXiv 2506.08388).

Two ways in. `score_row_from_ids` (training) keeps the sampled ids: the student reads the very tokens the teacher
wrote. `score_row_from_text` (explanations that exist as text) tokenises both whole texts and counts the tokens that lie
wholly between the tags in both.

Departures from the original, which decodes, tokenises again and then searches the parts' token lists in the whole:
- Spans are found by position, not by search: its search finds a thought that repeats the question in the question.
- A token that straddles a tag belongs to no span: where it merged, the original's search failed and it went on with
  escaped tags, shifted spans, or empty ones (rewards of 3e36).
- An empty thought, or one without a token of its own, counts as not matched.
- An end-of-text token's text at the end of a completion is not part of the explanation.
"""

import numpy as np

from rlt_jax.data.chat_format import (
    PADDING,
    ChatFormat,
    end_of_turn,
    padded_thought,
    student_closing_text,
    student_header_text,
)
from rlt_jax.data.copying import copy_rate, repeat_rate
from rlt_jax.data.encoding import encode, encode_with_offsets, ids_to_bytes
from rlt_jax.data.tags import Tags
from rlt_jax.errors import UserError
from rlt_jax.types import Prompt, ScoreRow


def score_row_from_ids(
    prompt: Prompt, completion_ids: np.ndarray, chat: ChatFormat, eos_ids: tuple[int, ...]
) -> ScoreRow:
    """A sampled explanation, token for token.

    The thought is the sampled tokens that end before the explanation's end tag (all of them up to EOS, and not matched,
    when there is no end tag). A token that holds both thought and tag is left out, its thought text tokenised anew in
    the student's sequence. The two newlines of both start tags belong to the prompts.

    Args:
      completion_ids: i32[N] sampled ids, with or without EOS.
    """
    completion_ids = np.asarray(completion_ids, np.int32)
    sampled = completion_ids[: _first_of(completion_ids, eos_ids)]
    kept, lead, explanation, closed = _split_at_tag(chat, sampled)
    prefix = np.concatenate([prompt.student_prefix_ids, sampled[:kept]])
    closing = lead + student_closing_text(prompt.row.solution, chat)
    closing_ids, offsets = encode_with_offsets(chat.tokenizer, closing)
    return ScoreRow(
        teacher_ids=np.concatenate([prompt.teacher_ids, completion_ids]),
        teacher_thought=_positions(np.arange(kept) + len(prompt.teacher_ids)),
        student_ids=np.concatenate([prefix, closing_ids]),
        student_thought=_positions(np.arange(kept) + len(prompt.student_prefix_ids)),
        solution=_positions(_inside(offsets, *_solution_range(closing, prompt.row.solution, chat)) + len(prefix)),
        matched=closed and kept > 0,
        explanation=explanation,
        copy_rate=copy_rate(sampled[:kept], prompt.solution_ids),
        repeat_rate=repeat_rate(sampled[:kept]),
    )


def score_row_from_text(
    teacher_prompt_text: str,
    completion_text: str,
    *,
    question: str,
    solution: str,
    chat: ChatFormat,
    row_system: str | None = None,
) -> ScoreRow:
    """An explanation that exists as text, tokenised inside the teacher's and the student's whole chat.

    The thought is what stands between the explanation's tags, newlines included; the tokens that count are those with
    the same characters and the same id in both chats. Where the tags are not closed the end tag is appended, and if
    that is not enough the start tag put before the completion: not matched.
    """
    tags = chat.tags
    head, padding, written = _split_prompt(teacher_prompt_text, tags)
    written += completion_text.removesuffix(chat.tokenizer.eos_token or "")
    written, begin, end, closed = _close_tags(written, tags)
    thought = written[begin:end]
    explanation = thought.removeprefix(padding)

    teacher_ids, teacher_offsets = encode_with_offsets(chat.tokenizer, head + written)
    opening = student_header_text(question, chat, row_system=row_system) + tags.thought_start
    text = opening + thought + student_closing_text(solution, chat)
    student_ids, student_offsets = encode_with_offsets(chat.tokenizer, text)

    teacher_thought, student_thought = np.empty((2, 0), np.int32)
    if explanation:
        teacher_thought, student_thought = _shared_tokens(
            _tokens_of_range(teacher_ids, teacher_offsets, len(head) + begin, len(head) + end),
            _tokens_of_range(student_ids, student_offsets, len(opening), len(opening) + len(thought)),
        )
    return ScoreRow(
        teacher_ids=teacher_ids,
        teacher_thought=teacher_thought,
        student_ids=student_ids,
        student_thought=student_thought,
        solution=_positions(_inside(student_offsets, *_solution_range(text, solution, chat))),
        matched=closed and len(teacher_thought) > 0,
        explanation=explanation,
        copy_rate=copy_rate(teacher_ids[teacher_thought], encode(chat.tokenizer, solution)),
        repeat_rate=repeat_rate(teacher_ids[teacher_thought]),
    )


def score_row_from_trace(prompt: Prompt, chat: ChatFormat) -> ScoreRow | None:
    """The row's own reasoning trace as what a teacher sampled; None where it has none that a teacher could write."""
    if prompt.row.reasoning_trace is None:
        return None
    try:
        completion = explanation_to_completion(prompt.row.reasoning_trace, chat.tags)
    except UserError:  # empty, or with the end tag inside
        return None
    return score_row_from_ids(prompt, encode(chat.tokenizer, completion), chat, ())


def explanation_to_completion(text: str, tags: Tags) -> str:
    """A bare explanation as the completion of a teacher who closed its tags well.

    Tags the text is wrapped in are taken off; the end is padded with two newlines.

    Raises:
      UserError: the text is empty, or holds the explanation's end tag, which would cut it short.
    """
    explanation = padded_thought(text).removeprefix(PADDING)
    if not explanation.strip():
        raise UserError("expected an explanation, but it is empty: give its text, or leave the row out")
    if tags.explanation_end in explanation:
        raise UserError(
            f"expected an explanation without tags, but it holds {tags.explanation_end}: give a teacher's raw output "
            "as completion, not as explanation"
        )
    return explanation + tags.explanation_end


def _first_of(ids: np.ndarray, wanted: tuple[int, ...]) -> int:
    hits = np.flatnonzero(np.isin(ids, wanted))
    return int(hits[0]) if len(hits) else len(ids)


def _split_at_tag(chat: ChatFormat, sampled: np.ndarray) -> tuple[int, str, str, bool]:
    """(tokens of the thought, text between their end and the tag, text before the tag, whether there is a tag)."""
    tokens_bytes = ids_to_bytes(chat.tokenizer, sampled)
    text = b"".join(tokens_bytes)
    seam = text.find(chat.tags.explanation_end.encode())
    if seam < 0:
        return len(sampled), "", text.decode(errors="replace"), False
    ends = np.cumsum([0, *map(len, tokens_bytes)])  # ends[k]: where the first k tokens end, in bytes
    kept = int(np.searchsorted(ends, seam, side="right")) - 1
    while kept and _inside_character(text, ends[kept]):  # half a character cannot be tokenised anew
        kept -= 1
    return kept, text[ends[kept] : seam].decode(errors="replace"), text[:seam].decode(errors="replace"), True


def _inside_character(text: bytes, place: int) -> bool:
    """Whether a UTF-8 character begins before `place` and goes on at it."""
    for back in range(1, min(place, 3) + 1):
        byte = text[place - back]
        if byte >= 0xC0:  # first byte of a character of 2, 3 or 4 bytes
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back < length and 0x80 <= text[place] < 0xC0
        if byte < 0x80:
            return False
    return False


def _split_prompt(prompt: str, tags: Tags) -> tuple[str, str, str]:
    """(text before the start tag at the prompt's end, whitespace after that tag, tag and whitespace)."""
    bare = prompt.rstrip()
    if not bare.endswith(tags.explanation_start):
        return prompt, "", ""
    head = bare.removesuffix(tags.explanation_start)
    return head, prompt[len(bare) :], prompt[len(head) :]


def _close_tags(written: str, tags: Tags) -> tuple[str, int, int, bool]:
    """(text with both tags, where the thought begins and ends in it, whether nothing had to be added)."""
    end_added = written + tags.explanation_end
    for text in (written, end_added, tags.explanation_start + end_added):
        tag = text.find(tags.explanation_start)
        begin = tag + len(tags.explanation_start)
        end = text.find(tags.explanation_end, begin)
        if tag >= 0 and end >= 0:
            return text, begin, end, text is written
    raise AssertionError("a text between both tags has both tags")


def _solution_range(text: str, solution: str, chat: ChatFormat) -> tuple[int, int]:
    """Characters [start, end) of the solution in a student's chat, or in its last part."""
    end = len(text) - len(chat.tags.solution_end) - len(end_of_turn(chat.tokenizer))
    return end - len(solution), end


def _inside(offsets: np.ndarray, begin: int, end: int) -> np.ndarray:
    """i64[M] indices of the tokens that lie wholly in the characters [begin, end)."""
    return np.flatnonzero((offsets[:, 0] >= begin) & (offsets[:, 1] <= end))


def _tokens_of_range(ids: np.ndarray, offsets: np.ndarray, begin: int, end: int) -> dict[tuple[int, ...], int]:
    """Positions of the tokens wholly in [begin, end), in order, by (characters from begin, id, which of its kind).

    The last part of the key tells the tokens of one character apart, which all have that character's range.
    """
    found: dict[tuple[int, ...], int] = {}
    for position in _inside(offsets, begin, end).tolist():
        first, last = (offsets[position] - begin).tolist()
        key, count = (first, last, int(ids[position])), 0
        while (*key, count) in found:
            count += 1
        found[*key, count] = position
    return found


def _shared_tokens(
    teacher: dict[tuple[int, ...], int], student: dict[tuple[int, ...], int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two i32[K]: positions of the tokens that both chats have."""
    both = [(position, student[key]) for key, position in teacher.items() if key in student]
    return _positions([t for t, _ in both]), _positions([s for _, s in both])


def _positions(values: np.ndarray | list[int]) -> np.ndarray:
    return np.asarray(values, np.int32)
