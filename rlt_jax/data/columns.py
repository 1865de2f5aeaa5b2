"""Which column holds what: the usual names, other names that a user gives, and columns that look right."""

import difflib
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

CLOSE = 0.8  # similarity, 0 to 1, from which a name counts as another spelling

USUAL = {  # what a column holds -> names under which it is read without being named
    "question": ("question", "prompt"),
    "solution": ("solution",),
    "trace": ("reasoning_trace",),
    "system": ("system",),
    "explanation": ("explanation",),
    "completion": ("completion",),
    "answer": ("answer",),
}

_THOUGHTS = (
    *("reasoning", "rationale", "thought", "thoughts", "thinking", "think", "cot", "chain_of_thought"),
    *("explanation", "trace", "reasoning_content"),
)
_ANSWERS = (
    *("final_answer", "expected_answer", "correct_answer", "reference_answer", "ground_truth", "gold", "target"),
    *("output", "response", "label", "result"),
)
SIMILAR = {  # what a column holds -> names that look right, the likeliest first
    "question": ("question", "problem", "instruction", "query", "prompt", "input", "task"),
    "solution": ("solution", "answer", *_ANSWERS),
    "trace": ("reasoning_trace", *_THOUGHTS),
    "system": ("system", "system_prompt"),
    "explanation": ("explanation", "reasoning_trace", *_THOUGHTS),
    "completion": ("completion",),
    "answer": ("answer", *_ANSWERS, "solution"),
}


Spelling = Callable[[Mapping[str, str]], str]  # what a column holds -> its name: how the user gives these names


def as_record(columns: Mapping[str, str]) -> str:
    """How a caller of `load_rows` names columns."""
    return f"columns=Columns({', '.join(f'{part}={column!r}' for part, column in columns.items())})"


def as_arguments(columns: Mapping[str, str]) -> str:
    """How a caller of `load_questions` names columns."""
    return ", ".join(f"{part}_column={column!r}" for part, column in columns.items())


def as_flags(columns: Mapping[str, str], *, prefix: str) -> str:
    """How a command line names columns: `--data.solution-column answer`."""
    return " ".join(f"--{prefix}{part}-column {shlex.quote(column)}" for part, column in columns.items())


@dataclass(frozen=True)
class Columns:
    """The columns to read, where they do not have their usual names.

    A column that is named is read alone: an empty cell there is a missing value.
    """

    question: str | None = None  # None: question or prompt
    solution: str | None = None
    trace: str | None = None  # None: reasoning_trace
    system: str | None = None
    explanation: str | None = None
    completion: str | None = None
    answer: str | None = None
    spelled: Spelling = as_record  # for messages

    @property
    def named(self) -> dict[str, str]:
        """What a column holds -> its name, for the columns that are named."""
        return {part: column for part in USUAL if (column := getattr(self, part)) is not None}

    def of(self, part: str, raw: Mapping) -> str:
        """The column of a row that holds `part`: the named one, else the usual one that is there."""
        named = getattr(self, part)
        usual = USUAL[part]
        return named or next((column for column in usual if raw.get(column) is not None), usual[-1])

    def hint(self, raw: object, parts: Iterable[str]) -> str:
        """How to name the columns of a row that look like those of `parts` that it lacks; "" if none does."""
        if not isinstance(raw, Mapping):
            return ""
        column_of = {part: self.of(part, raw) for part in parts}
        missing = [part for part, column in column_of.items() if raw.get(column) is None]
        if "explanation" in missing and raw.get(self.of("completion", raw)) is not None:  # one of them is enough
            missing.remove("explanation")
        taken = {*self.named.values(), *(column for part, column in column_of.items() if part not in missing)}
        found = looking_right(raw, missing, taken)
        return self.spelled(found) if found else ""


AS_USUAL = Columns()  # no column is named


class NamesColumns(Protocol):
    """Settings that name the columns of rows."""

    @property
    def question_column(self) -> str | None: ...
    @property
    def solution_column(self) -> str | None: ...
    @property
    def trace_column(self) -> str | None: ...
    @property
    def system_column(self) -> str | None: ...


def columns_named_by(data: NamesColumns, *, spelled: Spelling) -> Columns:
    """The columns that settings name.

    Args:
      spelled: how the user names a column, for messages.
    """
    return Columns(
        question=data.question_column,
        solution=data.solution_column,
        trace=data.trace_column,
        system=data.system_column,
        spelled=spelled,
    )


def looking_right(raw: Mapping, parts: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """What a column holds -> the column of the row that looks like it, for the parts that have one.

    Args:
      taken: columns that hold something else.
    """
    left = {str(name): _key(str(name)) for name, value in raw.items() if name not in taken and _may_be_text(value)}
    found: dict[str, str] = {}
    for part in parts:
        keys = [_key(name) for name in SIMILAR[part]]
        by_key = {key: name for name, key in reversed(left.items())}
        column = next((by_key[key] for key in keys if key in by_key), None)
        if column is None:
            close = (difflib.get_close_matches(key, by_key, n=1, cutoff=CLOSE) for key in keys)
            column = next((by_key[matches[0]] for matches in close if matches), None)
        if column is not None:
            found[part] = column
            del left[column]
    return found


def unseen_problem(named: Mapping[str, str], raw: Mapping, columns: Columns) -> str:
    """What to say of named columns that no row has.

    Args:
      named: what a column holds -> its name, for those that no row has.
      raw: a row, with the columns that there are.
    """
    there = list(map(str, raw))
    close = {part: difflib.get_close_matches(column, there, n=1) for part, column in named.items()}
    better = looking_right(raw, named) | {part: matches[0] for part, matches in close.items() if matches}
    them, s = ("them", "s") if len(named) > 1 else ("it", "")
    return (
        f"expected the column{s} {', '.join(named.values())} ({columns.spelled(named)}), but no row has {them}; the "
        f"columns are {', '.join(there)}: "
        + (f"did you mean {columns.spelled(better)}?" if better else "name one of these")
    )


def _key(name: str) -> str:
    """A name without case and separators: `Final Answer`, `final_answer` and `finalAnswer` are one."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _may_be_text(value: object) -> bool:
    return isinstance(value, str | int | float | Decimal) and not isinstance(value, bool)
