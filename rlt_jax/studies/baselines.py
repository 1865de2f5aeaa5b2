"""Explanations to compare a teacher's with, and a student's own thoughts, as rows that `rlt_jax.score` reads.

Every row has `kind` besides: what it is.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rlt_jax.data.chat_format import PADDING, padded_thought
from rlt_jax.data.tags import Tags
from rlt_jax.errors import UserError
from rlt_jax.types import Row

BASELINES = ("none", "shuffled", "true", "copied")


def baseline_rows(rows: Sequence[Row], tags: Tags) -> list[dict[str, Any]]:
    """Four rows for each of N, all of one kind together, in the order of BASELINES:

    - none: nothing between the explanation's tags but its two newlines, so that the solution follows on an empty
      thought. Such a row counts as not matched; its log-probs of the solution are what is wanted, not its reward.
    - shuffled: the trace of the next row (of the first for the last)
    - true: the row's own trace
    - copied: the solution in place of an explanation

    Raises:
      UserError: fewer than two rows, or one without a trace.
    """
    traces = [row.reasoning_trace for row in rows if row.reasoning_trace is not None]
    if len(rows) < 2 or len(traces) < len(rows):
        raise UserError(
            f"expected two or more held-out rows, each with a reasoning_trace, but {len(traces)} of {len(rows)} have "
            "one: give such rows, or leave the stage baselines out"
        )
    thoughts = {
        "none": [""] * len(rows),
        "shuffled": [*traces[1:], traces[0]],
        "true": traces,
        "copied": [row.solution for row in rows],
    }
    return [
        explained_row(row, thought, tags, kind=kind) for kind in BASELINES for row, thought in zip(rows, thoughts[kind])
    ]


def explained_row(row: Row, thought: str, tags: Tags, *, kind: str) -> dict[str, Any]:
    """A row with a text as its explanation, padded as explanations are; without words it is an empty one."""
    written = padded_thought(thought).removeprefix(PADDING) if thought.strip() else ""
    return raw_row(row, written, tags, kind=kind)


def raw_row(row: Row, thought: str, tags: Tags, *, kind: str) -> dict[str, Any]:
    """A row with `thought` as it stands, up to an end tag in it, as what a teacher wrote after its prompt."""
    columns = {"kind": kind, "question": row.question, "solution": row.solution}
    if row.system is not None:
        columns["system"] = row.system
    return {**columns, "completion": thought.partition(tags.explanation_end)[0] + tags.explanation_end}


def own_thought(completion: str, tags: Tags) -> tuple[str, bool]:
    """What a student wrote after its thought's start tag, up to the end tag, and whether there was one.

    Without an end tag it is all of the text, padded as a thought that ends.
    """
    thought, end, _ = completion.partition(tags.thought_end)
    return (thought, True) if end else (thought + PADDING, False)


def student_rows(rows: Sequence[Row], completions: Sequence[tuple[int, str]], tags: Tags) -> Iterator[dict[str, Any]]:
    """Rows that show how likely a student finds the solutions: first after no thought (kind `none`), then after the
    true one (`true`, rows with a trace alone), then after each of its own (`own`, with `place`).

    Args:
      completions: (place in `rows`, what the student wrote after its thought's start tag).
    """
    for place, row in enumerate(rows):
        yield {**raw_row(row, "", tags, kind="none"), "place": place}
    for place, row in enumerate(rows):
        if row.reasoning_trace is not None:
            yield {**explained_row(row, row.reasoning_trace, tags, kind="true"), "place": place}
    for place, completion in completions:
        yield {**raw_row(rows[place], own_thought(completion, tags)[0], tags, kind="own"), "place": place}
