"""Parse raw rows: Stratos conversations, or question / solution / reasoning_trace columns.

Departures from the original:
- The question may be in `question` or `prompt`: the original reads `prompt` but documents `question`.
- An unusable row is skipped (with its number, the reason and a count) or stops the run: the original crashes on it, or
  trains on nothing.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from rlt_jax.data.sources import Unreadable, open_source
from rlt_jax.data.tags import BESPOKE, R1
from rlt_jax.errors import UserError
from rlt_jax.types import Row

_log = logging.getLogger("rlt_jax")
Parsed = TypeVar("Parsed")

_MAX_SHOWN = 5  # row numbers or reasons in one message


@dataclass(frozen=True)
class LoadedRows:
    """The usable rows of a data set, and why the others were skipped."""

    rows: tuple[Row, ...]
    skipped: tuple[tuple[int, str], ...]  # (row number, reason)
    taken: str  # where the usable rows come from: `units/train/part-0.jsonl (48 rows)`


class BadRow(Exception):
    """Why a row cannot be used; details are in parentheses, so that reasons can be counted without them."""


def load_rows(
    source: str,
    *,
    split: str = "train",
    subset: str | None = None,
    on_bad_row: Literal["skip", "stop"] = "skip",
    log: Callable[[str], None] = _log.warning,
    say: Callable[[str], None] = _log.info,
    flag: str = "--data.subset",
) -> LoadedRows:
    """Read a data set: hub name, folder (saved by `datasets`, or with jsonl, json, parquet, csv files), or such a file.

    Rows are {"conversations": [user, assistant]} with tagged thought and solution, or {"question" (or "prompt"),
    "solution", "reasoning_trace" (optional)}; both may have "system", the student's system prompt. Texts are not
    changed. `say` gets one line with the files and the number of rows, `log` one if rows were skipped; `flag` is what
    names the subset, for messages.

    Raises:
      UserError: `source` cannot be read, no row is usable, or there is a bad row when `on_bad_row` is "stop".
    """
    return LoadedRows(
        *read_rows(source, row_from, split=split, subset=subset, on_bad_row=on_bad_row, log=log, say=say, flag=flag)
    )


def read_rows(
    source: str,
    parse: Callable[[int, object], Parsed],
    *,
    split: str = "train",
    subset: str | None = None,
    on_bad_row: Literal["skip", "stop"] = "skip",
    log: Callable[[str], None] = _log.warning,
    say: Callable[[str], None] = _log.info,
    flag: str = "--data.subset",
    needed: str = "rows with question and solution, or conversations with tagged thought and solution",
) -> tuple[tuple[Parsed, ...], tuple[tuple[int, str], ...], str]:
    """`load_rows` for rows of any kind: `parse` turns a row number and a raw row into a row, or raises BadRow.

    Args:
      needed: what to give, for the error message if no row is usable.
    Returns:
      The usable rows, (row number, reason) for each of the others, and where the usable ones come from.
    """
    rows, skipped = [], []
    found = open_source(source, split, subset, flag=flag)
    for number, raw in found.rows():
        try:
            rows.append(parse(number, raw))
        except BadRow as bad:
            if on_bad_row == "stop":
                raise UserError(
                    f"{source}, row {number}: {bad}: fix the row, or skip such rows with on_bad_row skip"
                ) from None
            skipped.append((number, str(bad)))
    if not rows:
        reasons = "; ".join(f"row {number}: {reason}" for number, reason in skipped[:_MAX_SHOWN])
        raise UserError(
            f"expected rows in {source} (split {split}), but none of {len(skipped)} can be used"
            + (f": {reasons}" if reasons else "")
            + f": give {needed}"
        )
    say(found.line(len(rows)))
    if skipped:
        log(f"{source}: {len(rows)} rows, {len(skipped)} skipped: {describe_skipped(skipped)}")
    return tuple(rows), tuple(skipped), found.taken(len(rows))


def describe_skipped(skipped: Sequence[tuple[int, str]]) -> str:
    """Skipped rows by reason, the most frequent first: `2 x solution is empty (rows 4, 9)`."""
    counts = Counter(reason.partition(" (")[0] for _, reason in skipped)
    parts = []
    for reason, count in counts.most_common():
        numbers = [str(number) for number, why in skipped if why.partition(" (")[0] == reason][:_MAX_SHOWN]
        more = ", ..." if count > _MAX_SHOWN else ""
        parts.append(f"{count} x {reason} (row{'s' if count > 1 else ''} {', '.join(numbers)}{more})")
    return "; ".join(parts)


def row_from(number: int, raw: object) -> Row:
    """Parse a raw row; raises BadRow with the reason if that is not possible."""
    if isinstance(raw, Unreadable):
        raise BadRow(raw.reason)
    if not isinstance(raw, Mapping):
        raise BadRow(f"not an object with columns (came {type(raw).__name__})")
    if raw.get("conversations") is not None:
        question, answer = _turns(raw["conversations"])
        solution, trace = _tagged_parts(answer)
    else:
        question_column = "question" if raw.get("question") is not None else "prompt"
        question = _required(raw, question_column, name="question")
        solution = _required(raw, "solution", name="solution")
        trace = optional_text(raw, "reasoning_trace")
    if not question.strip():
        raise BadRow("question is empty")
    if not solution.strip():
        raise BadRow("solution is empty")
    if trace is not None and not trace.strip():
        trace = None
    return Row(number, question, solution, trace, optional_text(raw, "system") or None)


def _turns(conversations: object) -> tuple[str, str]:
    """The texts of the user's and the assistant's turn."""
    if not isinstance(conversations, list) or not all(isinstance(turn, Mapping) for turn in conversations):
        raise BadRow(f"conversations is not a list of turns (came {type(conversations).__name__})")
    turns = [_turn(turn) for turn in conversations]
    speakers = [speaker for speaker, _ in turns]
    if speakers != ["user", "assistant"]:
        raise BadRow(f"conversations is not [user, assistant] (came [{', '.join(speakers)}])")
    return turns[0][1], turns[1][1]


def _turn(turn: Mapping) -> tuple[str, str]:
    """Speaker and text, from `from` and `value` or from `role` and `content`."""
    speaker = _required(turn, "from" if "from" in turn else "role")
    return speaker, _required(turn, "value" if "value" in turn else "content")


def _tagged_parts(answer: str) -> tuple[str, str | None]:
    """Solution and thought of a tagged answer in either tag format, unchanged."""
    for tag_format in (BESPOKE, R1):
        tags = (tag_format.thought_start, tag_format.thought_end, tag_format.solution_start, tag_format.solution_end)
        if any(tag in answer for tag in tags):
            break
    else:
        raise BadRow("the assistant's turn has no tags")
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


def _required(raw: Mapping, column: str, *, name: str | None = None) -> str:
    text = optional_text(raw, column)
    if text is None:
        raise BadRow(f"no {name or column} (columns: {', '.join(map(str, raw))})")
    return text


def optional_text(raw: Mapping, column: str) -> str | None:
    """A column's text; None if it is missing or null. Raises BadRow if it is not text."""
    text = raw.get(column)
    if text is None:
        return None
    if not isinstance(text, str):
        raise BadRow(f"{column} is not text (came {type(text).__name__})")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{column} is not valid Unicode (half a character pair at {error.start})") from None
    return text
