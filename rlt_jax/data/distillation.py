"""Rows of the data set that a student is trained on, from rows and their explanations."""

from typing import Any

from rlt_jax.data.cells import BadRow
from rlt_jax.data.chat_format import GAP, ChatFormat, padded_thought, student_system
from rlt_jax.data.rows import row_from
from rlt_jax.types import Row


def distillation_row(row: Row, explanation: str, chat: ChatFormat) -> dict[str, Any] | None:
    """A row's columns for training, `conversations` and `system`, and columns for people, with the row as it was.

    `conversations` is the chat in which the student scores explanations, in Bespoke-Stratos form: the explanation is
    the thought. `load_rows` reads the first two; `question`, `solution` and `reasoning_trace` are for people.

    Returns:
      The columns; None if `load_rows` would read something else, because explanation or solution contains a tag.
    """
    tags, system = chat.tags, student_system(chat, row_system=row.system)
    thought = padded_thought(explanation)
    solution = tags.solution_start + row.solution + tags.solution_end
    columns: dict[str, Any] = {
        "row": row.number,
        "question": row.question,
        "solution": row.solution,
        "reasoning_trace": row.reasoning_trace,
        "explanation": thought.strip("\r\n"),
        "system": system,
        "conversations": [
            {"from": "user", "value": row.question},
            {"from": "assistant", "value": tags.thought_start + thought + tags.thought_end + GAP + solution},
        ],
    }
    try:
        read = row_from(row.number, columns)
    except BadRow:
        return None
    written = Row(row.number, row.question, row.solution, thought if thought.strip() else None, system)
    return columns if read == written else None
