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
from functools import partial
from typing import Generic, Literal, TypeVar

from rlt_jax.data.cells import BadRow, text_of, text_or_number_of
from rlt_jax.data.columns import AS_USUAL, Columns, unseen_problem
from rlt_jax.data.conversations import COLUMNS as CONVERSATIONS
from rlt_jax.data.conversations import conversation_of, holds_tags, tagged_parts
from rlt_jax.data.sources import Unreadable, open_source
from rlt_jax.errors import UserError
from rlt_jax.types import Row

_log = logging.getLogger("rlt_jax")
Parsed = TypeVar("Parsed")

_READ_AT_ONCE = 1024  # rows between two reports of progress
_MAX_SHOWN = 5  # row numbers or reasons in one message


@dataclass(frozen=True)
class ReadRows(Generic[Parsed]):
    """The usable rows of a data set as they were parsed, and why the others were skipped."""

    rows: tuple[Parsed, ...]
    skipped: tuple[tuple[int, str], ...]  # (row number, reason)
    example: Mapping  # the first row that has columns
    taken: str  # where the usable ones come from


@dataclass(frozen=True)
class LoadedRows:
    """The usable rows of a data set, and why the others were skipped."""

    rows: tuple[Row, ...]
    skipped: tuple[tuple[int, str], ...]  # (row number, reason)
    taken: str  # where the usable rows come from: `units/train/part-0.jsonl (48 rows)`
    trace_hint: str = ""  # how to name the column that looks like the trace, if no row has a trace


def load_rows(
    source: str,
    *,
    split: str = "train",
    subset: str | None = None,
    columns: Columns = AS_USUAL,
    parts: Sequence[str] = ("question", "solution"),
    on_bad_row: Literal["skip", "stop"] = "skip",
    log: Callable[[str], None] = _log.warning,
    say: Callable[[str], None] = _log.info,
    flag: str = "--data.subset",
    on_progress: Callable[[int], None] = lambda done: None,
) -> LoadedRows:
    """Read a data set: hub name, folder (saved by `datasets`, or with jsonl, json, parquet, csv files), or such a file.

    Rows are {"conversations" (or "messages"): [user, assistant]} with tagged thought and solution, or {"question" (or
    "prompt"), "solution", "reasoning_trace" (optional)}; both may have "system", the student's system prompt. Texts are
    not changed; a number that is a question or a solution becomes its text. `say` gets one line with the files and the
    number of rows, `log` one if rows were skipped, `on_progress` the number of
    rows read, now and then; `flag` is what names the subset, for messages.

    Args:
      columns: other names of these columns; a named question or solution is read instead of the conversation.
    Raises:
      UserError: `source` cannot be read, no row is usable, no row has a named column, or there is a bad row when
        `on_bad_row` is "stop".
    """
    read = read_rows(
        source,
        partial(row_from, columns=columns),
        split=split,
        subset=subset,
        columns=columns,
        parts=parts,
        on_bad_row=on_bad_row,
        log=log,
        say=say,
        flag=flag,
        on_progress=on_progress,
    )
    traced = any(row.reasoning_trace is not None for row in read.rows)
    return LoadedRows(read.rows, read.skipped, read.taken, "" if traced else columns.hint(read.example, ["trace"]))


def read_rows(
    source: str,
    parse: Callable[[int, object], Parsed],
    *,
    split: str = "train",
    subset: str | None = None,
    columns: Columns = AS_USUAL,
    parts: Sequence[str] = ("question", "solution"),
    named: Mapping[str, str] | None = None,
    on_bad_row: Literal["skip", "stop"] = "skip",
    log: Callable[[str], None] = _log.warning,
    say: Callable[[str], None] = _log.info,
    flag: str = "--data.subset",
    on_progress: Callable[[int], None] = lambda done: None,
    needed: str = "rows with question and solution, or conversations with tagged thought and solution",
) -> ReadRows[Parsed]:
    """`load_rows` for rows of any kind: `parse` turns a row number and a raw row into a row, or raises BadRow.

    Args:
      parts: what a row must have, to say which columns look like it.
      named: columns that some row must have, as `Columns.named`. None: all that `columns` names.
      needed: what to give, for the error message if no row is usable.
    """
    rows: list[Parsed] = []
    skipped: list[tuple[int, str]] = []
    example: Mapping = {}
    hint, unseen = "", dict(columns.named if named is None else named)
    found = open_source(source, split, subset, flag=flag)
    for number, raw in found.rows():
        if isinstance(raw, Mapping):
            example = example or raw
            if unseen:
                unseen = {part: column for part, column in unseen.items() if column not in raw}
        try:
            rows.append(parse(number, raw))
        except BadRow as bad:
            if on_bad_row == "stop":
                why = f"{source}, row {number}: {bad}: "
                if hint := hint_for(raw, columns, parts):
                    why += f"add {hint}, which looks right, or "
                raise UserError(f"{why}fix the row, or skip such rows with on_bad_row skip") from None
            if not hint and len(skipped) < _MAX_SHOWN:
                hint = hint_for(raw, columns, parts)
            skipped.append((number, str(bad)))
        if not (len(rows) + len(skipped)) % _READ_AT_ONCE:
            on_progress(len(rows) + len(skipped))
    if unseen and example:
        raise UserError(f"{source} (split {split}): {unseen_problem(unseen, example, columns)}")
    if not rows:
        first = {reason: number for number, reason in reversed(skipped)}  # each reason once
        shown = sorted((number, reason) for reason, number in first.items())[:_MAX_SHOWN]
        reasons = "; ".join(f"row {number}: {reason}" for number, reason in shown)
        raise UserError(
            f"expected rows in {source} (split {split}), but none of {len(skipped)} can be used"
            + (f": {reasons}" if reasons else "")
            + (f": add {hint}, which looks right, or" if hint else ":")
            + f" give {needed}"
        )
    say(found.line(len(rows)))
    if skipped:
        line = f"{source}: {len(rows)} rows, {len(skipped)} skipped: {describe_skipped(skipped)}"
        log(f"{line}: {hint} looks right" if hint else line)
    return ReadRows(tuple(rows), tuple(skipped), example, found.taken(len(rows)))


def hint_for(raw: object, columns: Columns, parts: Sequence[str]) -> str:
    """How to name the columns that look like what a bad row lacks; "" if none does."""
    hint = columns.hint(raw, parts)
    if hint or not isinstance(raw, Mapping) or _conversation_column(raw, columns) is None:
        return hint
    # a conversation that cannot be read, next to columns that can: a named column is read instead
    return "" if raw.get("solution") is None else columns.spelled({"solution": "solution"})


def describe_skipped(skipped: Sequence[tuple[int, str]]) -> str:
    """Skipped rows by reason, the most frequent first: `2 x solution is empty (rows 4, 9)`."""
    counts = Counter(reason.partition(" (")[0] for _, reason in skipped)
    parts = []
    for reason, count in counts.most_common():
        numbers = [str(number) for number, why in skipped if why.partition(" (")[0] == reason][:_MAX_SHOWN]
        more = ", ..." if count > _MAX_SHOWN else ""
        parts.append(f"{count} x {reason} (row{'s' if count > 1 else ''} {', '.join(numbers)}{more})")
    return "; ".join(parts)


def row_from(number: int, raw: object, *, columns: Columns = AS_USUAL) -> Row:
    """Parse a raw row; raises BadRow with the reason if that is not possible."""
    raw = columns_of(raw)
    spoken = _conversation_column(raw, columns)
    question: str | None = None
    solution: str | None = None
    trace: str | None = None
    turn: str | None = None  # the conversation's system prompt
    if spoken is None or columns.question is not None or columns.solution is not None:
        question = text_or_number_of(raw, columns.of("question", raw), name="question")
        solution = text_or_number_of(raw, columns.of("solution", raw), name="solution")
        trace = text_of(raw, columns.of("trace", raw), name=columns.trace or "reasoning_trace")
    ask = question is None and columns.question is None
    solve = solution is None and columns.solution is None
    if spoken is not None and (ask or solve):
        conversation = conversation_of(raw, spoken)
        turn = conversation.system
        question = conversation.question if ask else question
        if solve:
            solution, trace = tagged_parts(conversation.answer)
    if columns.trace is not None:
        trace = text_of(raw, columns.trace)
    question, solution = _required(raw, question, "question"), _required(raw, solution, "solution")
    return Row(number, question, solution, trace if trace and trace.strip() else None, _system(raw, turn, columns))


def columns_of(raw: object) -> Mapping:
    """A raw row, if it is one with columns; raises BadRow if not."""
    if isinstance(raw, Unreadable):
        raise BadRow(raw.reason)
    if not isinstance(raw, Mapping):
        raise BadRow(f"not an object with columns (came {type(raw).__name__})")
    return raw


def _conversation_column(raw: Mapping, columns: Columns) -> str | None:
    """The column of the conversation to read, None if there is none.

    `messages` without tags next to a question and a solution are another form of these, so it is not read.
    """
    column = next((name for name in CONVERSATIONS if raw.get(name) is not None), None)
    if column == "messages" and not holds_tags(raw[column]):
        question, solution = (raw.get(columns.of(part, raw)) for part in ("question", "solution"))
        return None if question is not None and solution is not None else column
    return column


def _required(raw: Mapping, text: str | None, part: str) -> str:
    """A text that a row must have."""
    if text is None:
        raise BadRow(f"no {part} (columns: {', '.join(map(str, raw))})")
    if not text.strip():
        raise BadRow(f"{part} is empty")
    return text


def _system(raw: Mapping, turn: str | None, columns: Columns) -> str | None:
    """The row's system prompt, from its column or from the conversation's system turn."""
    column = columns.of("system", raw)
    text = text_of(raw, column) or None
    if text is not None and turn is not None and text.strip() != turn.strip():
        raise BadRow(f"the system turn differs from the column {column}")
    return text or turn
