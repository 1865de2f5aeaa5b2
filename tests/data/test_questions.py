"""Test sets by column names: free answers, numbers, and options in an order that does not depend on the run."""

import json
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from rlt_jax.data import load_questions
from rlt_jax.errors import UserError
from rlt_jax.evals.answers import grade_math, grade_text

GPQA = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def write(path, rows) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def free(source, **changes):
    return load_questions(
        source, **{"split": "train", "question_column": "problem", "answer_column": "answer"} | changes
    )


def gpqa_row(i: int) -> dict:
    wrong = {column: f"wrong {j} of {i}" for j, column in enumerate(GPQA)}
    return {"Question": f"Which, {i}?", "Correct Answer": f" right of {i}\n", **wrong}


def gpqa(source, **changes):
    columns = {"question_column": "Question", "answer_column": "Correct Answer", "choice_columns": GPQA}
    return load_questions(source, **{"split": "train"} | columns | changes)


def test_free_answers(tmp_path):
    rows = [
        {"problem": " What is 1+1?\n", "answer": "2", "system": "Think.", "level": 1},
        {"problem": "AIME", "answer": 33},
        {"problem": "Half?", "answer": 0.5},
        {"problem": "Five?", "answer": 5.0},
    ]
    questions, skipped = free(write(tmp_path / "rows.jsonl", rows))
    assert [(q.number, q.text, q.answer, q.letters, q.system) for q in questions] == [
        (0, " What is 1+1?\n", "2", "", "Think."),
        (1, "AIME", "33", "", None),
        (2, "Half?", "0.5", "", None),
        (3, "Five?", "5", "", None),
    ]
    assert skipped == ()


WRITTEN = [  # a number in JSON, the expected answer
    ("2e-05", "0.00002"),
    ("0.00002", "0.00002"),
    ("1e-7", "0.0000001"),
    ("-1.50E+3", "-1500"),
    ("5.0", "5"),
    ("100.0", "100"),
    ("0.10", "0.1"),
    ("-0.0", "0"),
    ("1.2345678901234568e20", "123456789012345680000"),
    ("0.1234567890123456789012", "0.1234567890123456789012"),  # beyond a float
    ("100000000000000000000.1", "100000000000000000000.1"),
    ("9007199254740993", "9007199254740993"),  # beyond 2^53
    ("9007199254740993.0", "9007199254740993"),
    ("1e400", "1e400"),  # beyond the largest float
    ("2.50e-300", "25e-301"),
]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_number_keeps_its_digits(tmp_path, ending):
    rows = [f'{{"problem": "?", "answer": {written}}}' for written, _ in WRITTEN]
    source = tmp_path / f"rows.{ending}"
    source.write_text("\n".join(rows) if ending == "jsonl" else f"[{','.join(rows)}]")
    questions, _ = free(str(source))
    assert [question.answer for question in questions] == [expected for _, expected in WRITTEN]


@pytest.mark.parametrize(("written", "expected"), WRITTEN)
def test_a_grader_takes_the_number_as_it_was_written(written, expected):
    assert grade_math(written, expected).correct and grade_text(written, expected).correct
    assert not grade_math(written + "1", expected).correct and not grade_text("1" + expected, expected).correct


def test_numbers_of_a_table(tmp_path):
    answers = [Decimal("0.00002"), Decimal("5.00"), Decimal("12345678901234567890.12345")]
    table = pyarrow.table({"problem": ["?"] * 3, "answer": pyarrow.array(answers, pyarrow.decimal128(30, 5))})
    pyarrow.parquet.write_table(table, tmp_path / "decimals.parquet")
    assert [q.answer for q in free(str(tmp_path / "decimals.parquet"))[0]] == [
        "0.00002",
        "5",
        "12345678901234567890.12345",
    ]
    table = pyarrow.table({"problem": ["?"] * 3, "answer": [2e-05, 5.0, 1e22]})
    pyarrow.parquet.write_table(table, tmp_path / "floats.parquet")
    assert [q.answer for q in free(str(tmp_path / "floats.parquet"))[0]] == ["0.00002", "5", "1" + "0" * 22]


def test_an_integer_too_long_for_python_is_a_bad_row(tmp_path):
    source = write(
        tmp_path / "rows.jsonl", [f'{{"problem": "?", "answer": {"1" * 5000}}}', {"problem": "?", "answer": 2}]
    )
    questions, skipped = free(source)
    assert [question.answer for question in questions] == ["2"]
    assert skipped == ((0, "not JSON (a number has too many digits)"),)


def test_options_have_letters_and_the_letter_is_the_answer(tmp_path):
    questions, _ = gpqa(write(tmp_path / "rows.jsonl", map(gpqa_row, range(40))))
    for i, question in enumerate(questions):
        asked, _, *options, _, last = question.text.split("\n")
        assert (asked, last) == (f"Which, {i}?", "Answer with the letter of the right option.")
        texts = dict(option.split(") ", 1) for option in options)
        assert list(texts) == list(question.letters) == ["A", "B", "C", "D"]
        assert texts[question.answer] == f"right of {i}"
        assert set(texts.values()) == {f"right of {i}", *(f"wrong {j} of {i}" for j in range(3))}
    assert {question.answer for question in questions} == {"A", "B", "C", "D"}


def test_the_order_is_that_of_the_row_alone(tmp_path):
    rows = [gpqa_row(i) for i in range(8)]
    all_of_them, _ = gpqa(write(tmp_path / "all.jsonl", rows))
    without, _ = gpqa(write(tmp_path / "bad.jsonl", ["{", *rows[1:]]))
    assert without == all_of_them[1:]
    assert [question.answer for question in all_of_them] == list("BACDBDAA")  # as ever: scores stay comparable


def test_two_wrong_options_give_three_letters(tmp_path):
    questions, _ = gpqa(write(tmp_path / "rows.jsonl", [gpqa_row(0)]), choice_columns=GPQA[:2])
    assert questions[0].letters == "ABC"


def test_bad_rows(tmp_path):
    rows = [
        "not JSON",
        "[]",
        {"problem": "?"},
        {"problem": "?", "answer": None},
        {"problem": "?", "answer": True},
        {"problem": "?", "answer": ["2"]},
        {"problem": "?", "answer": " "},
        '{"problem": "?", "answer": NaN}',
        {"problem": "", "answer": "2"},
        {"problem": "good", "answer": "2"},
    ]
    questions, skipped = free(write(tmp_path / "rows.jsonl", rows))
    assert [question.number for question in questions] == [9]
    assert dict(skipped) == {
        0: "not JSON (Expecting value, column 1)",
        1: "not an object with columns (came list)",
        2: "no answer (columns: problem)",
        3: "no answer (columns: problem, answer)",
        4: "answer is neither text nor a number (came bool)",
        5: "answer is neither text nor a number (came list)",
        6: "answer is empty",
        7: "no answer (columns: problem, answer)",  # a bare NaN in JSON is a missing value
        8: "problem is empty",
    }


def test_equal_options(tmp_path):
    row = {**gpqa_row(0), "Incorrect Answer 2": "right of 0"}
    _, skipped = gpqa(write(tmp_path / "rows.jsonl", [row, gpqa_row(1)]))
    assert skipped == ((0, "two options are the same"),)


def test_a_wrong_column_name_says_which_columns_there_are(tmp_path):
    source = write(tmp_path / "rows.jsonl", [{"question": "?", "answer": "2"}])
    with pytest.raises(
        UserError,
        match=r"row 0: no problem \(columns: question, answer\): add question_column='question', which ",
    ):
        free(source)
    with pytest.raises(UserError, match="row 0: no problem"):
        free(source, on_bad_row="stop")
