"""Spans of thought and solution in the teacher's and the student's token sequences (RLT, arXiv 2506.08388).

There are two entry points. `score_row_from_ids` (training) keeps the sampled ids: the student reads exactly the tokens
that the teacher wrote. `score_row_from_text` (existing explanations) tokenises both whole texts and counts the tokens
that lie entirely between the tags in both.

A student with another tokenizer (`ChatFormat.student_tokens` "text") reads the text in tokens of its own in both cases;
tokens of the thought then count where both models have one for the same characters.

Departures from the original, which decodes, tokenises again and then searches for the token lists of the parts:
- Spans are found by position, not by search: its search finds a thought that repeats the question in the question.
- A token that straddles a tag belongs to no span: the original's search fails there, and it continues with escaped
  tags, shifted spans, or empty ones (rewards of 3e36).
- An empty thought, or one without a token of its own, counts as not matched.
- The text of an end-of-text token at the end of a completion is not part of the explanation.
"""

import codecs
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlt_jax.data.chat_format import PADDING, ChatFormat, padded_thought, student_closing_text, student_header_text
from rlt_jax.data.copying import copy_rate, repeat_rate
from rlt_jax.data.encoding import encode, encode_batch_with_offsets, encode_with_offsets, ids_to_bytes
from rlt_jax.data.tags import Tags
from rlt_jax.data.tokenizer import end_texts
from rlt_jax.data.turns import end_of_turn
from rlt_jax.errors import UserError
from rlt_jax.types import Prompt, Row, ScoreRow

NO_SOLUTION_TOKEN = "solution has no token of its own, as all of them hold a piece of a tag"


def score_row_from_ids(
    prompt: Prompt, completion_ids: np.ndarray, chat: ChatFormat, eos_ids: tuple[int, ...]
) -> ScoreRow:
    """The spans of a sampled explanation, with its tokens unchanged.

    The thought is the sampled tokens that end before the explanation's end tag; without an end tag, all tokens before
    EOS, and the row counts as not matched. A token that holds both thought and tag is left out; its part of the thought
    is tokenised again in the student's sequence. The two newlines after both start tags belong to the prompts.

    Args:
      completion_ids: i32[N] sampled ids, with or without EOS.
      eos_ids: all ids that end a completion.
    """
    completion_ids = np.asarray(completion_ids, np.int32)
    sampled = completion_ids[: _first_of(completion_ids, eos_ids)]
    length, remainder, explanation, closed = _split_at_tag(chat, sampled)
    thought = sampled[:length]
    if chat.student_tokens == "ids":
        student = _student_of_ids(prompt, thought, remainder, chat)
    else:
        student = _student_of_text(prompt, thought, explanation, chat)
    return ScoreRow(
        teacher_ids=np.concatenate([prompt.teacher_ids, completion_ids]),
        teacher_thought=_positions(student.read + len(prompt.teacher_ids)),
        student_ids=student.ids,
        student_thought=_positions(student.thought),
        solution=_positions(student.solution),
        matched=closed and len(student.thought) > 0,
        explanation=explanation,
        copy_rate=copy_rate(thought, prompt.solution_ids),
        repeat_rate=repeat_rate(thought),
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
    """The spans of an explanation given as text, which is tokenised within the teacher's and the student's whole chat.

    The thought is the text between the explanation's tags, including newlines; the tokens that count are those with the
    same characters in both chats, and the same id if ids mean the same to both models. If the tags are not closed, the
    end tag is appended and, if that is not enough, the start tag put before the completion; the row then counts as not
    matched.
    """
    return score_chats(
        explanation_chats(
            teacher_prompt_text,
            completion_text,
            student_header=student_header_text(question, chat, row_system=row_system),
            solution=solution,
            chat=chat,
        ),
        chat,
    )


class ExplanationChats(NamedTuple):
    """Both chats of an explanation as text, not tokenised yet. Made by `explanation_chats`."""

    teacher: str
    student: str
    teacher_thought: tuple[int, int]  # characters [start, end) in `teacher`
    student_thought: tuple[int, int]  # the same in `student`
    explanation: str  # the thought without what the prompt begins it with
    closed: bool  # whether its tags were
    solution: str


def explanation_chats(
    teacher_prompt_text: str, completion_text: str, *, student_header: str, solution: str, chat: ChatFormat
) -> ExplanationChats:
    """The chats that `score_row_from_text` tokenises; arguments as there.

    Args:
      student_header: the student's chat up to the assistant's header.
    """
    tags = chat.tags
    head, padding, written = _split_prompt(teacher_prompt_text, tags)
    written += _without_end(completion_text, end_texts(chat.tokenizer))
    written, begin, end, closed = _close_tags(written, tags)
    thought = written[begin:end]
    opening = student_header + tags.thought_start
    return ExplanationChats(
        teacher=head + written,
        student=opening + thought + student_closing_text(solution, chat),
        teacher_thought=(len(head) + begin, len(head) + end),
        student_thought=(len(opening), len(opening) + len(thought)),
        explanation=thought.removeprefix(padding),
        closed=closed,
        solution=solution,
    )


def score_chats(chats: ExplanationChats, chat: ChatFormat) -> ScoreRow:
    """Tokenise both chats, and find the spans in them."""
    teacher_ids, teacher_offsets = encode_with_offsets(chat.tokenizer, chats.teacher)
    student_ids, student_offsets = encode_with_offsets(chat.student, chats.student)
    teacher_thought, student_thought = np.empty((2, 0), np.int32)
    if chats.explanation:
        if chat.student_tokens == "ids":
            teacher_thought, student_thought = _shared_tokens(
                _tokens_in_range(teacher_ids, teacher_offsets, *chats.teacher_thought),
                _tokens_in_range(student_ids, student_offsets, *chats.student_thought),
            )
        else:
            teacher_thought, student_thought = _shared_tokens(
                _whole_tokens(teacher_offsets, *chats.teacher_thought),
                _whole_tokens(student_offsets, *chats.student_thought),
            )
    return ScoreRow(
        teacher_ids=teacher_ids,
        teacher_thought=teacher_thought,
        student_ids=student_ids,
        student_thought=student_thought,
        solution=_positions(_inside(student_offsets, *_solution_range(chats.student, chats.solution, chat))),
        matched=chats.closed and len(teacher_thought) > 0,
        explanation=chats.explanation,
        copy_rate=copy_rate(teacher_ids[teacher_thought], encode(chat.tokenizer, chats.solution)),
        repeat_rate=repeat_rate(teacher_ids[teacher_thought]),
    )


def score_row_from_trace(prompt: Prompt, chat: ChatFormat) -> ScoreRow | None:
    """The spans of the row's own trace, as if the teacher had sampled it; None if there is no trace it could write."""
    completion = trace_completion(prompt.row, chat.tags)
    return None if completion is None else score_row_from_ids(prompt, encode(chat.tokenizer, completion), chat, ())


def trace_completion(row: Row, tags: Tags) -> str | None:
    """The row's trace as a teacher's completion; None if there is none, or none that a teacher could write."""
    if row.reasoning_trace is None:
        return None
    try:
        return explanation_to_completion(row.reasoning_trace, tags)
    except UserError:  # empty, or with the end tag inside
        return None


def explanation_to_completion(text: str, tags: Tags) -> str:
    """Turn a bare explanation into a teacher's completion with closed tags.

    Tags around the text are removed; its end is padded with two newlines.

    Raises:
      UserError: the text is empty, or contains the explanation's end tag, which would end it too early.
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


class _Student(NamedTuple):
    """The student's sequence for a sampled explanation."""

    ids: np.ndarray  # i32[S]
    read: np.ndarray  # [K] which of the teacher's thought tokens count
    thought: np.ndarray  # [K] positions of their counterparts in ids
    solution: np.ndarray  # [M] positions in ids


def _student_of_ids(prompt: Prompt, thought: np.ndarray, remainder: str, chat: ChatFormat) -> _Student:
    """The student reads the teacher's tokens, and what is left of the last one before the tag in tokens of its own."""
    prefix = np.concatenate([prompt.student_prefix_ids, thought])
    closing_ids, solution = prompt.closing_ids, prompt.closing_solution
    if remainder:
        ((closing_ids, solution),) = closing_tokens([prompt.row.solution], chat, remainder=remainder)
    places = np.arange(len(thought))
    return _Student(
        np.concatenate([prefix, closing_ids]), places, places + len(prompt.student_prefix_ids), solution + len(prefix)
    )


def _student_of_text(prompt: Prompt, thought: np.ndarray, explanation: str, chat: ChatFormat) -> _Student:
    """The student reads the explanation's text in tokens of its own."""
    begin = len(prompt.student_text)
    text = prompt.student_text + explanation + student_closing_text(prompt.row.solution, chat)
    ids, offsets = encode_with_offsets(chat.student, text)
    written = _character_offsets(ids_to_bytes(chat.tokenizer, thought))
    read, places = _shared_tokens(
        _whole_tokens(written, 0, len(explanation)), _whole_tokens(offsets, begin, begin + len(explanation))
    )
    return _Student(ids, read, places, _inside(offsets, *_solution_range(text, prompt.row.solution, chat)))


def closing_tokens(
    solutions: Sequence[str], chat: ChatFormat, *, remainder: str = ""
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What follows the thought's tokens in the student's chat: ids i32[C], and the solution's positions in them.

    Args:
      remainder: the end of the thought that belongs to none of its tokens.
    """
    texts = [remainder + student_closing_text(solution, chat) for solution in solutions]
    return [
        (ids, _positions(_inside(offsets, *_solution_range(text, solution, chat))))
        for text, solution, (ids, offsets) in zip(texts, solutions, encode_batch_with_offsets(chat.student, texts))
    ]


def _without_end(text: str, ends: tuple[str, ...]) -> str:
    """`text` without an end token at its end, and without the blanks that a template writes after it."""
    stripped = text.rstrip()
    end = next((end for end in ends if stripped.endswith(end)), None)
    return text if end is None else stripped.removesuffix(end)


def _character_offsets(tokens: list[bytes]) -> np.ndarray:
    """The characters [start, end) of each token, i64[K, 2], in the text that the tokens are together.

    A token that is no text by itself, such as half a character, has (-1, -1).
    """
    decoder, offsets, end = codecs.getincrementaldecoder("utf-8")("replace"), [], 0
    for token in tokens:
        end += len(decoder.decode(token))
        try:
            length = len(token.decode())
        except UnicodeDecodeError:
            length = 0
        offsets.append((end - length, end) if length else (-1, -1))
    return np.array(offsets, np.int64).reshape(-1, 2)


def _first_of(ids: np.ndarray, wanted: tuple[int, ...]) -> int:
    """Index of the first wanted id; len(ids) if there is none."""
    found = np.flatnonzero(np.isin(ids, wanted))
    return int(found[0]) if len(found) else len(ids)


def _split_at_tag(chat: ChatFormat, sampled: np.ndarray) -> tuple[int, str, str, bool]:
    """(number of thought tokens, text from their end to the tag, text before the tag, whether there is a tag)."""
    tokens_bytes = ids_to_bytes(chat.tokenizer, sampled)
    text = b"".join(tokens_bytes)
    tag = text.find(chat.tags.explanation_end.encode())
    if tag < 0:
        return len(sampled), "", text.decode(errors="replace"), False
    ends = np.cumsum([0, *map(len, tokens_bytes)])  # ends[k]: where the first k tokens end, in bytes
    length = int(np.searchsorted(ends, tag, side="right")) - 1
    while length and _inside_character(text, ends[length]):  # half a character cannot be tokenised again
        length -= 1
    return length, text[ends[length] : tag].decode(errors="replace"), text[:tag].decode(errors="replace"), True


def _inside_character(text: bytes, place: int) -> bool:
    """Whether `place` is inside a UTF-8 character: one begins before it and has not ended."""
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
    stripped = prompt.rstrip()
    if not stripped.endswith(tags.explanation_start):
        return prompt, "", ""
    head = stripped.removesuffix(tags.explanation_start)
    return head, prompt[len(stripped) :], prompt[len(head) :]


def _close_tags(written: str, tags: Tags) -> tuple[str, int, int, bool]:
    """(text with both tags, start and end of the thought in it, whether both tags were there already)."""
    end_added = written + tags.explanation_end
    for text in (written, end_added, tags.explanation_start + end_added):
        start_tag = text.find(tags.explanation_start)
        begin = start_tag + len(tags.explanation_start)
        end = text.find(tags.explanation_end, begin)
        if start_tag >= 0 and end >= 0:
            return text, begin, end, text is written
    raise AssertionError("a text between both tags has both tags")


def _solution_range(text: str, solution: str, chat: ChatFormat) -> tuple[int, int]:
    """Characters [start, end) of the solution in the student's chat, or in its closing text."""
    end = len(text) - len(chat.tags.solution_end) - len(end_of_turn(chat.student))
    return end - len(solution), end


def _inside(offsets: np.ndarray, begin: int, end: int) -> np.ndarray:
    """i64[M] indices of the tokens that lie entirely in the characters [begin, end)."""
    return np.flatnonzero((offsets[:, 0] >= begin) & (offsets[:, 1] <= end))


def _tokens_in_range(ids: np.ndarray, offsets: np.ndarray, begin: int, end: int) -> dict[tuple[int, ...], int]:
    """Positions of the tokens entirely in [begin, end), in order, by (characters from begin, id, occurrence).

    The occurrence tells apart equal tokens of one character, which all have that character's range.
    """
    positions: dict[tuple[int, ...], int] = {}
    for position in _inside(offsets, begin, end).tolist():
        first, last = (offsets[position] - begin).tolist()
        key, occurrence = (first, last, int(ids[position])), 0
        while (*key, occurrence) in positions:
            occurrence += 1
        positions[*key, occurrence] = position
    return positions


def _whole_tokens(offsets: np.ndarray, begin: int, end: int) -> dict[tuple[int, ...], int]:
    """Positions of the tokens entirely in [begin, end), in order, by their characters from begin.

    Without those that are only a part of a character, which share their range with the others of that character.
    """
    ranges = [(first - begin, last - begin) for first, last in offsets.tolist()]
    count = Counter(ranges)
    return {ranges[i]: i for i in _inside(offsets, begin, end).tolist() if count[ranges[i]] == 1}


def _shared_tokens(
    teacher: dict[tuple[int, ...], int], student: dict[tuple[int, ...], int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two i32[K]: positions of the tokens that both chats have."""
    both = [(position, student[key]) for key, position in teacher.items() if key in student]
    return _positions([t for t, _ in both]), _positions([s for _, s in both])


def _positions(values: np.ndarray | list[int]) -> np.ndarray:
    return np.asarray(values, np.int32)
