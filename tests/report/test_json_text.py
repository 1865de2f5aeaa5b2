"""JSON that any reader takes: no bare NaN, and the digits that numbers had."""

import datetime
import json
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pytest

from rlt_jax.report.json_lines import read_json_lines, write_json_lines
from rlt_jax.report.json_text import json_line, json_text, parsed_json
from rlt_jax.types import WrittenFloat


class Pair(NamedTuple):
    first: float
    second: str


def strict(text: str) -> object:
    """Read as a reader does that knows no more than JSON."""

    def refuse(token: str) -> None:
        raise AssertionError(f"a bare {token}")

    return json.loads(text, parse_constant=refuse)


VALUES = [
    (float("nan"), "null"),
    (float("inf"), "null"),
    (np.float32("-inf"), "null"),
    (Decimal("NaN"), "null"),
    (WrittenFloat("nan"), "null"),
    ([1.5, float("nan"), [float("inf")]], "[1.5, null, [null]]"),
    (np.array([1.0, np.nan]), "[1.0, null]"),
    ({"a": {"b": (float("nan"),)}}, '{"a": {"b": [null]}}'),
    (WrittenFloat("0.12345678901234567890"), "0.12345678901234567890"),
    (WrittenFloat("1.2345678901234568e20"), "1.2345678901234568e20"),
    (WrittenFloat("1e400"), "1e400"),
    (10**30 + 1, "1000000000000000000000000000001"),
    (Decimal("5.00"), "5.00"),
    (np.int64(7), "7"),
    (np.bool_(True), "true"),
    (0.1, "0.1"),
    (1e22, "1e+22"),
    (Pair(1.0, "x"), '[1.0, "x"]'),
    ("π\u2028", '"π\u2028"'),
    ("half \ud83d of a pair", '"half \\ud83d of a pair"'),
]


@pytest.mark.parametrize(("value", "text"), VALUES, ids=[text for _, text in VALUES])
def test_every_value_is_json(value, text):
    assert json_text(value) == text
    assert json_line({"x": value}) == f'{{"x": {text}}}\n'
    strict(text)
    text.encode()


@pytest.mark.parametrize("value", [datetime.date(2025, 1, 1), b"text", {1, 2}, np.datetime64("2025-01-01"), object()])
def test_what_json_has_not_is_refused(value):
    with pytest.raises(TypeError):
        json_text({"x": [value]})


def test_indented_text_is_that_of_the_standard_library():
    value = {"a": [1, {"b": None}], "c": {}, "d": "x"}
    assert json_text(value, indent=2) == json.dumps(value, indent=2)


def test_a_bare_nan_of_an_older_file_is_null(tmp_path):
    assert parsed_json('{"a": NaN, "b": [-Infinity, 1.5]}') == {"a": None, "b": [None, 1.5]}
    (tmp_path / "old.jsonl").write_text('{"a": NaN}\n')
    assert read_json_lines(tmp_path / "old.jsonl") == [{"a": None}]


def test_lines_with_nan_are_written_as_json(tmp_path):
    write_json_lines(tmp_path / "x.jsonl", [{"a": float("nan")}])
    assert (tmp_path / "x.jsonl").read_text() == '{"a": null}\n'
