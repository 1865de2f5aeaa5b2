"""JSON Lines: what is written is read, what is broken is named."""

import json

import pytest

from rlt_jax.errors import UserError
from rlt_jax.report.json_lines import read_json_lines, write_json_lines


def test_what_is_written_is_read(tmp_path):
    records = [{"text": "a\u2028b\nc\x85d, π", "number": -0.1}, {}, {"list": [1, None, {"x": True}]}]
    path = tmp_path / "new" / "folder" / "x.jsonl"
    write_json_lines(path, iter(records))
    assert read_json_lines(path) == records
    assert path.read_text(encoding="utf-8").count("\n") == 3 and "π" in path.read_text(encoding="utf-8")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "x.jsonl"
    write_json_lines(path, [{"a": 1}])

    def torn():
        yield {"a": 2}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_json_lines(path, torn())
    assert read_json_lines(path) == [{"a": 1}] and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write --out .*/file/x\.jsonl \(.*\): choose another file"):
        write_json_lines(tmp_path / "file" / "x.jsonl", [], name="--out")


BROKEN = {
    "torn": (b'{"a": 1}\n{"a": ', r"line 2 is not JSON \(Expecting value\)"),
    "blank": (b'{"a": 1}\n\n', r"line 2 is not JSON"),
    "a list": (json.dumps([1]).encode(), r"line 1 is not an object"),
    "not UTF-8": (b'{"a": "\xff"}', r"it is not UTF-8 text"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named(content, reason, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.jsonl: expected JSON Lines, but {reason}.*: delete the file and repeat"):
        read_json_lines(path)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*x\.jsonl \(No such file or directory\): expected JSON Lines"):
        read_json_lines(tmp_path / "x.jsonl")
