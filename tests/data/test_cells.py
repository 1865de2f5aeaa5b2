"""Numbers that are questions or solutions become their digits; what is neither text nor a number is refused by name."""

import datetime
from decimal import Decimal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rlt_jax.data import load_rows
from rlt_jax.data.cells import BadRow, text_of, text_or_number_of
from rlt_jax.errors import UserError

WRITTEN = [
    ("0.00002", "0.00002"),
    ("2e-05", "0.00002"),
    ("1.2345678901234568e20", "123456789012345680000"),
    ("0.12345678901234567890", "0.1234567890123456789"),
    ("5.0", "5"),
    ("9007199254740993", "9007199254740993"),
    ("1e400", "1e400"),
    ("-0.50", "-0.5"),
]


def test_json_numbers_keep_their_digits(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"question": {x}, "solution": {x}}}\n' for x, _ in WRITTEN))
    rows = load_rows(str(source)).rows
    assert [row.solution for row in rows] == [row.question for row in rows] == [expected for _, expected in WRITTEN]


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "null"])
def test_a_token_that_is_no_number_is_a_missing_value(tmp_path, token):
    source = tmp_path / "rows.jsonl"
    row = f'{{"question": "q", "solution": {token}, "reasoning_trace": {token}, "system": {token}}}\n'
    source.write_text(row + row.replace(f'"solution": {token}', '"solution": "5"'))
    loaded = load_rows(str(source), log=lambda line: None)
    assert loaded.skipped == ((0, "no solution (columns: question, solution, reasoning_trace, system)"),)
    assert (loaded.rows[0].reasoning_trace, loaded.rows[0].system) == (None, None)


TABLE = [  # a parquet column, the solutions; None: a bad row
    (pyarrow.array([5, None, -3], pyarrow.int64()), ["5", None, "-3"]),
    (pyarrow.array([5.0, float("nan"), 2e-05]), ["5", None, "0.00002"]),
    (pyarrow.array([Decimal("5.00"), None, Decimal("0.00002")], pyarrow.decimal128(30, 5)), ["5", None, "0.00002"]),
    (pyarrow.array([float("inf"), 0.1, -0.0]), [None, "0.1", "0"]),
    (pyarrow.array(["5", " ", None]), ["5", None, None]),
    (pyarrow.array(["5", "NaN", "1e5"]), ["5", "NaN", "1e5"]),  # texts stay as they are
]


@pytest.mark.parametrize(("column", "expected"), TABLE, ids=lambda value: str(getattr(value, "type", "")))
def test_numbers_of_a_table(tmp_path, column, expected):
    table = pyarrow.table({"question": ["q"] * len(column), "solution": column})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = load_rows(str(tmp_path / "rows.parquet"), log=lambda line: None).rows
    solutions = {row.number: row.solution for row in rows}
    assert [solutions.get(number) for number in range(len(column))] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.float32(0.1), "0.1"), (np.float64(2e-05), "0.00002"), (np.int64(7), "7"), (np.float32("nan"), None)],
)
def test_numpy_scalars(value, expected):
    assert text_or_number_of({"x": value}, "x") == expected


REFUSED = [
    (True, "bool"),
    (np.bool_(True), "bool"),
    (datetime.date(2025, 1, 1), "date"),
    (datetime.datetime(2025, 1, 1), "datetime"),
    (b"5", "bytes"),
    ({"value": 5}, "dict"),
    ([5], "list"),
]


@pytest.mark.parametrize(("value", "kind"), REFUSED, ids=[kind for _, kind in REFUSED])
def test_other_types_are_refused_by_name(value, kind):
    with pytest.raises(BadRow, match=rf"^answer is neither text nor a number \(came {kind}"):
        text_or_number_of({"answer": value}, "answer")


def test_a_trace_is_text():
    with pytest.raises(BadRow, match=r"^cot is not text \(came int\)"):
        text_of({"cot": 5}, "cot")


def test_a_date_in_a_table_is_a_bad_row(tmp_path):
    days = pyarrow.array([datetime.date(2025, 1, 1), None], pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q", "q"], "solution": days}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"row 0: solution is neither text nor a number \(came date\)"):
        load_rows(str(tmp_path / "rows.parquet"))
