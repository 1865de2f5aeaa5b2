"""Baselines for a teacher's explanations, and a student's own thoughts, as rows for `rlt_jax.score`.

A further column, `kind`, says which of these a row is.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rlt_jax.data.chat_format import PADDING, padded_thought
from rlt_jax.data.tags import Tags
from rlt_jax.errors import UserError
from rlt_jax.types import Row

BASELINES = ("none", "shuffled", "true", "copied")


def baseline_rows(rows: Sequence[Row], tags: Tags) -> list[dict[str, Any]]:
    """The four baselines of every row, grouped by kind in the order of BASELINES:

    - none: nothing between the explanation's tags but two newlines, so that the solution follows an empty thought. Such
      a row counts as not matched; use its log-probs of the solution, not its reward.
    - shuffled: the trace of the next row (for the last row, of the first)
    - true: the row's own trace
    - copied: the solution instead of an explanation

    Raises:
      UserError: there are fewer than two rows, or a row has no trace.
    """
    traces = [row.reasoning_trace for row in rows if row.reasoning_trace is not None]
    if len(rows) < 2 or len(traces) < len(rows):
        raise UserError(
            f"expected two or more held-out rows, each with a reasoning_trace, but {len(traces)} of {len(rows)} have "
            "one: give such rows, or leave out the stage baselines"
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
    """A row with `thought`, padded, as its explanation; an empty one if it has no words."""
    explanation = padded_thought(thought).removeprefix(PADDING) if thought.strip() else ""
    return raw_row(row, explanation, tags, kind=kind)


def raw_row(row: Row, thought: str, tags: Tags, *, kind: str) -> dict[str, Any]:
    """A row with `thought`, unchanged up to any end tag in it, as what a teacher wrote after its prompt."""
    columns = {"kind": kind, "question": row.question, "solution": row.solution}
    if row.system is not None:
        columns["system"] = row.system
    return {**columns, "completion": thought.partition(tags.explanation_end)[0] + tags.explanation_end}


def own_thought(completion: str, tags: Tags) -> tuple[str, bool]:
    """The thought in what a student wrote after the thought's start tag, and whether it has an end tag.

    Without an end tag the thought is the whole text, padded like one that ends.
    """
    thought, end_tag, _ = completion.partition(tags.thought_end)
    return (thought, True) if end_tag else (thought + PADDING, False)


def student_rows(rows: Sequence[Row], completions: Sequence[tuple[int, str]], tags: Tags) -> Iterator[dict[str, Any]]:
    """Rows to measure how likely a student finds the solutions: after no thought (kind `none`), then after the true one
    (`true`, only for rows with a trace), then after each of its own (`own`). `place` is the index in `rows`.

    Args:
      completions: (index in `rows`, what the student wrote after the thought's start tag).
    """
    for place, row in enumerate(rows):
        yield {**raw_row(row, "", tags, kind="none"), "place": place}
    for place, row in enumerate(rows):
        if row.reasoning_trace is not None:
            yield {**explained_row(row, row.reasoning_trace, tags, kind="true"), "place": place}
    for place, completion in completions:
        yield {**raw_row(rows[place], own_thought(completion, tags)[0], tags, kind="own"), "place": place}
