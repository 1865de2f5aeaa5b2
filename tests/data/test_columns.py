"""Rows under other column names: read as the names say, and a hint where a column looks right."""

import json

import pytest

from rlt_jax.data import Columns, load_explained_rows, load_questions, load_rows, tags_of
from rlt_jax.data.columns import looking_right
from rlt_jax.errors import UserError
from rlt_jax.types import Row

TAGGED = "<|begin_of_thought|>t<|end_of_thought|><|begin_of_solution|>5<|end_of_solution|>"
MINE = {"problem": "What is 2 + 3?", "answer": 5, "cot": "Count on.", "persona": "Be brief."}


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(answer: str, column: str = "messages") -> dict:
    return {column: [{"role": "user", "content": "asked"}, {"role": "assistant", "content": answer}]}


def one(tmp_path, row: dict, **columns: str) -> Row:
    (read,) = load_rows(write(tmp_path / "rows.jsonl", [row]), columns=Columns(**columns)).rows
    return read


def test_named_columns_are_read(tmp_path):
    row = one(tmp_path, MINE, question="problem", solution="answer", trace="cot", system="persona")
    assert row == Row(0, "What is 2 + 3?", "5", "Count on.", "Be brief.")


def test_a_named_column_is_read_instead_of_the_usual_one(tmp_path):
    row = {"question": "old", "solution": "old", "reasoning_trace": "old", "system": "old", **MINE}
    named = one(tmp_path, row, question="problem", solution="answer", trace="cot", system="persona")
    assert named == Row(0, "What is 2 + 3?", "5", "Count on.", "Be brief.")
    assert one(tmp_path, row) == Row(0, "old", "old", "old", "old")


def test_an_empty_cell_of_a_named_column_is_a_missing_value(tmp_path):
    """The usual column does not stand in for it: the two may hold different things."""
    rows = [{**MINE, "question": "q", "answer": None, "solution": "other"}, {**MINE, "question": "q"}]
    loaded = load_rows(write(tmp_path / "rows.jsonl", rows), columns=Columns(solution="answer"), log=lambda line: None)
    assert [row.number for row in loaded.rows] == [1]
    assert loaded.skipped[0][1].startswith("no solution (columns: ")


NEXT_TO_A_CHAT = [  # a row, the named columns, what is read: question, solution, trace
    (chat(TAGGED) | MINE, {}, ("asked", "5", "t")),
    (chat(TAGGED) | {**MINE, "answer": 7}, {"solution": "answer"}, ("asked", "7", None)),
    (chat("No tags: 5.") | {**MINE, "answer": 7}, {"solution": "answer"}, ("asked", "7", None)),
    (chat("No tags: 5.") | {**MINE, "answer": 7}, {"solution": "answer", "trace": "cot"}, ("asked", "7", "Count on.")),
    (chat(TAGGED) | MINE, {"question": "problem"}, ("What is 2 + 3?", "5", "t")),
    (chat(TAGGED) | MINE, {"trace": "cot"}, ("asked", "5", "Count on.")),
    (chat("No tags") | {"question": "q", "solution": "s"}, {}, ("q", "s", None)),
    (chat(TAGGED) | {"question": "q", "solution": "s"}, {}, ("asked", "5", "t")),
    (chat(TAGGED, "conversations") | chat("No tags") | {"question": "q", "solution": "s"}, {}, ("asked", "5", "t")),
    (chat("No", "conversations") | MINE, {"question": "problem", "solution": "answer"}, ("What is 2 + 3?", "5", None)),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "named", "expected"), NEXT_TO_A_CHAT, ids=range(len(NEXT_TO_A_CHAT)))
def test_a_named_column_wins_over_a_conversation(tmp_path, raw, named, expected):
    row = one(tmp_path, raw, **named)
    assert (row.question, row.solution, row.reasoning_trace) == expected


LOOKING_RIGHT = [
    (["problem", "answer"], {"question": "problem", "solution": "answer"}),
    (["Problem", "Final Answer"], {"question": "Problem", "solution": "Final Answer"}),
    (["instruction", "input", "output"], {"question": "instruction", "solution": "output"}),
    (["query", "response", "rationale"], {"question": "query", "solution": "response", "trace": "rationale"}),
    (["Question", "Anwser", "ChainOfThought"],
     {"question": "Question", "solution": "Anwser", "trace": "ChainOfThought"}),
    (["questions", "target", "CoT"], {"question": "questions", "solution": "target", "trace": "CoT"}),
    (["answer", "label"], {"solution": "answer"}),
    (["label"], {"solution": "label"}),
    (["id", "level", "subject"], {}),
]  # fmt: skip


@pytest.mark.parametrize(("names", "expected"), LOOKING_RIGHT, ids=lambda value: "-".join(value))
def test_columns_that_look_right(names, expected):
    assert looking_right(dict.fromkeys(names, "text"), ["question", "solution", "trace"]) == expected


def test_what_cannot_be_a_text_does_not_look_right():
    assert looking_right({"answer": ["5"], "target": True, "output": None, "label": 3}, ["solution"]) == {
        "solution": "label"
    }


HINTS = [  # a row, the hint
    ({"problem": "q", "answer": "5"}, "Columns(question='problem', solution='answer')"),
    ({"question": "q", "answer": "5"}, "Columns(solution='answer')"),
    ({"input": "q", "solution": "5"}, "Columns(question='input')"),
    (chat("No tags") | {"answer": "5"}, "Columns(solution='answer')"),
    (chat("No tags", "conversations") | {"question": "q", "solution": "5"}, "Columns(solution='solution')"),
    (chat("No tags") | {"problem": "q", "solution": "5"}, "Columns(question='problem')"),
]


@pytest.mark.parametrize(("raw", "hint"), HINTS, ids=range(len(HINTS)))
def test_the_hint_names_what_is_missing_and_works(tmp_path, raw, hint):
    source = write(tmp_path / "rows.jsonl", [raw])
    with pytest.raises(UserError) as refused:
        load_rows(source)
    assert f": add columns={hint}, which looks right, or give rows with question and solution" in str(refused.value)
    with pytest.raises(UserError) as stopped:
        load_rows(source, on_bad_row="stop")
    assert f": add columns={hint}, which looks right, or fix the row" in str(stopped.value)
    (row,) = load_rows(source, columns=eval(hint, {"Columns": Columns})).rows
    assert row.question in ("q", "asked") and row.solution == "5"


def test_no_hint_without_a_column_that_looks_right(tmp_path):
    with pytest.raises(UserError) as refused:
        load_rows(write(tmp_path / "rows.jsonl", [{"id": 1, "text": "q"}]))
    assert "looks right" not in str(refused.value)


def test_a_hint_when_most_rows_are_skipped(tmp_path):
    lines = []
    rows = [{"question": "q", "solution": "5"}, *[{"question": "q", "answer": "5"}] * 3]
    load_rows(write(tmp_path / "rows.jsonl", rows), log=lines.append)
    assert lines[0].endswith("3 x no solution (rows 1, 2, 3): columns=Columns(solution='answer') looks right")


def test_a_named_column_that_no_row_has_is_refused_with_the_columns_there_are(tmp_path):
    source = write(tmp_path / "rows.jsonl", [{"question": "q", "solution": "5", "thinking": "t"}] * 2)
    for name, end in [("thinkng", "did you mean columns=Columns(trace='thinking')?"), ("xyz", "(trace='thinking')?")]:
        with pytest.raises(UserError) as refused:
            load_rows(source, columns=Columns(trace=name))
        assert f"expected the column {name} (columns=Columns(trace='{name}')), but no row has it" in str(refused.value)
        assert "the columns are question, solution, thinking" in str(refused.value)
        assert str(refused.value).endswith(end)
    with pytest.raises(UserError, match=r"expected the column persona .*question, solution, thinking: name one of"):
        load_rows(source, columns=Columns(system="persona"))


def test_a_named_column_may_be_missing_in_some_rows(tmp_path):
    rows = [{"question": "q", "solution": "5"}, {"question": "q", "solution": "5", "cot": "t"}]
    loaded = load_rows(write(tmp_path / "rows.jsonl", rows), columns=Columns(trace="cot"))
    assert [row.reasoning_trace for row in loaded.rows] == [None, "t"]


def test_the_trace_that_no_row_has_is_looked_for(tmp_path):
    good = {"question": "q", "solution": "5", "thinking": "t"}
    assert load_rows(write(tmp_path / "a.jsonl", [good])).trace_hint == "columns=Columns(trace='thinking')"
    assert load_rows(write(tmp_path / "b.jsonl", [{**good, "reasoning_trace": "t"}])).trace_hint == ""
    assert load_rows(write(tmp_path / "c.jsonl", [{"question": "q", "solution": "5"}])).trace_hint == ""


def test_explanations_under_other_names(tmp_path):
    tags, row = tags_of("bespoke"), {"problem": "q", "answer": 5, "why": "Since.", "completion": "raw"}
    source = write(tmp_path / "rows.jsonl", [row])
    names = {"question": "problem", "solution": "answer"}
    ((read,), _) = load_explained_rows(source, tags, columns=Columns(**names, explanation="why"))
    assert read.explanation == "Since." and "Since." in read.completion and read.row.solution == "5"
    ((read,), _) = load_explained_rows(source, tags, columns=Columns(**names, completion="why"))
    assert (read.completion, read.explanation) == ("Since.", None)
    with pytest.raises(UserError, match=r"add columns=Columns\(question='problem', solution='answer'\), which"):
        load_explained_rows(source, tags)  # no explanation is missing
    source = write(tmp_path / "others.jsonl", [{"question": "q", "solution": "5", "rationale": "Since."}])
    with pytest.raises(UserError, match=r"neither completion nor explanation .*Columns\(explanation='rationale'\)"):
        load_explained_rows(source, tags)


def test_a_test_set_under_other_names(tmp_path):
    source = write(tmp_path / "rows.jsonl", [{"problem": "q", "final_answer": 0.5, "persona": "p"}])
    with pytest.raises(UserError, match="add question_column='problem', answer_column='final_answer', which looks"):
        load_questions(source, split="train", question_column="question", answer_column="answer")
    columns = {"question_column": "problem", "answer_column": "final_answer"}
    ((question,), _) = load_questions(source, split="train", system_column="persona", **columns)
    assert (question.text, question.answer, question.system) == ("q", "0.5", "p")
    with pytest.raises(UserError, match=r"expected the column persna .*did you mean system_column='persona'"):
        load_questions(source, split="train", system_column="persna", **columns)
