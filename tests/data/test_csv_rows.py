"""Tables of text keep every cell as it stands, and what cannot be read for certain is refused."""

import csv
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.data.csv_rows import read_csv
from rlt_jax.data.file_rows import Unreadable
from rlt_jax.errors import UserError


@pytest.fixture
def rows(tmp_path):
    def read(content: str | bytes, name: str = "rows.csv") -> list:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        found = list(read_csv(file))
        assert [number for number, _ in found] == list(range(len(found)))
        return [row for _, row in found]

    return read


@pytest.mark.parametrize(
    "content",
    [
        "question,solution\nq,0.00002\n",
        "question;solution\r\nq;0.00002\r\n",
        "question\tsolution\nq\t0.00002",
        '"question","solution"\n"q","0.00002"\n',
        "\ufeffquestion,solution\nq,0.00002\n",
        " question , solution\nq, 0.00002\n",
        "\n\nquestion,solution\n\nq,0.00002\n\n",
        "question,solution\rq,0.00002\r",
        '"question", "solution"\n"q", "0.00002"\n',
    ],
)
def test_forms(rows, content):
    assert rows(content) == [{"question": "q", "solution": "0.00002"}]


def test_texts_stay_as_they_are(rows):
    text = 'question,solution\n"a\nb, ""c""\r\n d ",007\n" e",1e5\nTrue,NaN\n5" pipe,null\n'
    assert rows(text) == [
        {"question": 'a\nb, "c"\r\n d ', "solution": "007"},
        {"question": " e", "solution": "1e5"},
        {"question": "True", "solution": "NaN"},
        {"question": '5" pipe', "solution": "null"},
    ]


def test_missing_cells(rows):
    assert rows("a,b,c\n1,,3\n1\n,,\n") == [
        {"a": "1", "b": None, "c": "3"},
        {"a": "1", "b": None, "c": None},
        {"a": None, "b": None, "c": None},
    ]
    assert rows("a,b\n") == []
    assert rows("a\n1\n\n2\n") == [{"a": "1"}, {"a": "2"}]


def test_large_cells_packed_files_and_tabs(rows):
    long = "x" * 3_000_000
    assert rows(f"a,b\n{long},1\n") == [{"a": long, "b": "1"}]
    assert rows(gzip.compress(b"a,b\n1,2\n"), "rows.csv.gz") == [{"a": "1", "b": "2"}]
    assert rows("a\n1,2\n", "rows.tsv") == [{"a": "1,2"}]


def test_rows_that_do_not_fit_the_header(rows):
    found = rows('a,b\n1,2,3\n4,5\n6,\0\n7, "8"\n')
    assert found == [
        Unreadable("more cells than columns (3, header 2)"),
        {"a": "4", "b": "5"},
        Unreadable("NUL bytes (column b)"),
        Unreadable("a space before the quotes of a cell (column b)"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a header line .* it is empty"),
        ("a,,c\n", "column 2 of 3 has none: name it.*index=False"),
        (",a\n0,1\n", "column 1 of 2 has none"),
        ("a,b, a\n", "expected different columns in .*, but a is there twice"),
        ("a;b,c\n", "but commas and semicolons cut it into equally many names"),
        ('a,b\n1,"2\n3,4\n5,6\n', "its quotes do not close in or after the header: unexpected end of data"),
        ('a,b\n1,2\n"x"y,4\n', "its quotes do not close after row 0: .* expected after"),
        ('a,b\n"x \\"y\\" z",4\n', "its quotes do not close in or after the header"),
        (b"a,b\n1,2\n\xe9,4\n", "expected text in UTF-8, but .*rows.csv has other bytes"),
        ("a,b\n1,2\n".encode("utf-16"), "expected text in UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "has NUL bytes: save it as UTF-8"),
    ],
)
def test_files_that_are_refused(rows, content, message):
    with pytest.raises(UserError, match=message) as refused:
        rows(content)
    assert "\n" not in str(refused.value)


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\0\r", codec="utf-8")), min_size=2, max_size=2)))
def test_what_csv_writes_is_read_again(tmp_path_factory, table):
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *table])
    file = tmp_path_factory.mktemp("csv") / "rows.csv"
    file.write_text(written.getvalue(), encoding="utf-8", newline="")
    for (_, row), (a, b) in zip(read_csv(file), table, strict=True):
        if not isinstance(row, Unreadable):  # a cell of a space and quotes, which could be a mistake
            assert row == {"a": a or None, "b": b or None}
        else:
            assert any(cell.startswith(" ") and cell.strip().endswith('"') for cell in (a, b))
