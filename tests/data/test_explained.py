"""Rows to score: which are too long, found without tokenising what surely is."""

import time
from dataclasses import replace

import pytest

from rlt_jax.data import ExplainedRow, Room, explained_score_rows, score_row_from_text, teacher_prompt_text
from rlt_jax.types import Row

ROW = Row(0, "What is 2+3?", "5", None, None)
SHORT = ExplainedRow(ROW, "Two and three make five.\n\n<|end_of_explanation|>", None, {})


def scored_alone(explained, chat):
    row = explained.row
    prompt = teacher_prompt_text(row.question, row.solution, chat)
    return score_row_from_text(
        prompt, explained.completion, question=row.question, solution=row.solution, chat=chat, row_system=row.system
    )


def test_rows_that_exceed_the_positions_of_a_model_are_skipped_with_their_length(chat):
    alone = scored_alone(SHORT, chat)
    teacher, student = len(alone.teacher_ids), len(alone.student_ids)
    ((explained, row),), skipped = explained_score_rows([SHORT], chat, room=Room(0, teacher, student))
    assert explained is SHORT and skipped == [] and row.teacher_ids.tolist() == alone.teacher_ids.tolist()
    usable, skipped = explained_score_rows([SHORT], chat, room=Room(0, teacher - 1, student))
    assert usable == []
    assert skipped == [(0, f"chat exceeds the teacher's positions ({teacher} tokens, at most {teacher - 1})")]
    _, skipped = explained_score_rows([SHORT], chat, room=Room(0, teacher, student - 1))
    assert skipped == [(0, f"chat exceeds the student's positions ({student} tokens, at most {student - 1})")]


@pytest.mark.parametrize("text", ["1+" * 5_000_000, "漢字 " * 1_500_000], ids=["ascii", "unicode"])
@pytest.mark.parametrize("column", ["question", "solution", "system", "completion"])
def test_ten_megabytes_in_a_row_are_skipped_at_once(chat, text, column):
    row = replace(ROW, number=1, **({column: text} if column != "completion" else {}))
    long = ExplainedRow(row, text if column == "completion" else SHORT.completion, None, {})
    before = time.process_time()
    usable, ((number, reason),) = explained_score_rows([SHORT, long], chat, room=Room(0, 4096, 8192))
    assert time.process_time() - before < 2
    model = "student" if column == "system" else "teacher"
    assert len(usable) == 1 and number == 1 and reason.startswith(f"chat exceeds the {model}'s positions (at least ")
