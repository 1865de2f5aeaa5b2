"""Conversations of one question and one answer: `conversations` (ShareGPT) or `messages` (chat) columns."""

from collections.abc import Mapping
from dataclasses import dataclass

from rlt_jax.data.cells import BadRow, text_of
from rlt_jax.data.tags import BESPOKE, R1, Tags

COLUMNS = ("conversations", "messages")
NO_TAGS = "the assistant's turn has no tags"
_SPEAKERS = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """The texts of a conversation's turns."""

    system: str | None
    question: str  # the user's turn
    answer: str  # the assistant's


def conversation_of(raw: Mapping, column: str) -> Conversation:
    """Read `[user, assistant]`, after an optional system turn.

    A turn is `from` and `value`, or `role` and `content`; `human` is another name of the user, `gpt`, `model` and `bot`
    of the assistant. A text may be a list of parts, as long as all of them are text.

    Raises:
      BadRow: it is anything else, such as several questions and answers.
    """
    turns = raw[column]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow(f"{column} is not a list of turns (came {type(turns).__name__})")
    spoken = [_turn(turn) for turn in turns]
    system = spoken.pop(0)[1] if spoken and spoken[0][0] == "system" else None
    if [speaker for speaker, _ in spoken] != ["user", "assistant"]:
        came = ", ".join(speaker for speaker, _ in map(_turn, turns))
        raise BadRow(f"{column} is not [user, assistant] (came [{came}])")
    return Conversation(system or None, spoken[0][1], spoken[1][1])


def holds_tags(turns: object) -> bool:
    """Whether the last turn has any tag of thought or solution."""
    try:
        return isinstance(turns, list) and bool(turns) and _tags_in(_turn(turns[-1])[1]) is not None
    except (BadRow, AttributeError):  # no turn
        return False


def tagged_parts(answer: str) -> tuple[str, str]:
    """Solution and thought of a tagged answer in either tag format, unchanged.

    Raises:
      BadRow: it has no tags, lacks some, or has them in another order.
    """
    tag_format = _tags_in(answer)
    if tag_format is None:
        raise BadRow(NO_TAGS)
    tags = _tag_texts(tag_format)
    missing = [tag for tag in tags if tag not in answer]
    if missing:
        raise BadRow(f"the assistant's turn lacks a tag ({', '.join(missing)})")
    ranges, position = [], 0  # characters [start, end) of each tag
    for tag in tags:
        position = answer.find(tag, position)
        if position < 0:
            raise BadRow(f"the tags are out of order (no {tag} after the one before it)")
        ranges.append((position, position + len(tag)))
        position += len(tag)
    (_, thought_start), (thought_end, _), (_, solution_start), (solution_end, _) = ranges
    return answer[solution_start:solution_end], answer[thought_start:thought_end]


def _tags_in(answer: str) -> Tags | None:
    """The format whose tags an answer has."""
    return next((tags for tags in (BESPOKE, R1) if any(tag in answer for tag in _tag_texts(tags))), None)


def _tag_texts(tags: Tags) -> tuple[str, str, str, str]:
    return tags.thought_start, tags.thought_end, tags.solution_start, tags.solution_end


def _turn(turn: Mapping) -> tuple[str, str]:
    """Speaker and text."""
    who, what = ("from" if turn.get("from") is not None else "role"), "value"
    if turn.get(what) is None:  # a table has all keys in each turn, those that are not used with null
        what = "content"
    speaker = _required(turn, who).strip().lower()
    content = turn.get(what)
    text = _joined(content) if isinstance(content, list) else _required(turn, what)
    return _SPEAKERS.get(speaker, speaker), text


def _joined(parts: list) -> str:
    """The text of a list of parts such as {"type": "text", "text": "..."}."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind not in ("text", None) or part.get("text") is None:
            raise BadRow(f"content has a part that is not text (came {kind})")
        texts.append(_required(part, "text"))
    return "".join(texts)


def _required(turn: Mapping, key: str) -> str:
    text = text_of(turn, key)
    if text is None:
        raise BadRow(f"no {key} (columns: {', '.join(map(str, turn))})")
    return text
