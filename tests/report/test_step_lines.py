"""Files of lines with steps: cut back to a step at their end, damage kept aside."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_jax.report import step_lines
from rlt_jax.report.step_lines import iter_lines, keep_until, latest_lines, parsed_line, read_lines


def line(step: int, text: str = "x") -> bytes:
    return json.dumps({"step": step, "text": text}, ensure_ascii=False).encode() + b"\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def kept(path, data: bytes, step: int) -> bytes:
    path.write_bytes(data)
    keep_until(path, step)
    return path.read_bytes()


def aside(path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.parent.glob("*.damaged-*"))]


def test_only_the_lines_behind_the_step_go(path, logged):
    data = b"".join(map(line, (0, 1, 1, 2, 5, 5, 9)))
    for step, count in ((9, 7), (8, 6), (5, 6), (4, 4), (1, 3), (0, 0)):
        assert kept(path, data, step) == b"".join(data.splitlines(keepends=True)[:count])
    assert logged.messages[0] == f"{path}: resuming from step 8, 6 of 7 lines kept"
    assert kept(path, b"", 3) == b"" and aside(path) == []


@given(
    steps=st.lists(st.integers(0, 6), max_size=8).map(sorted),
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=8, max_size=8),
    cut=st.integers(0, 40),
    step=st.integers(1, 7),
)
@settings(max_examples=150, deadline=None)
def test_after_a_kill_at_any_byte_the_whole_lines_up_to_the_step_are_left(tmp_path_factory, steps, texts, cut, step):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    lines = [line(number, text) for number, text in zip(steps, texts)]
    data = b"".join(lines)
    data = data[: max(0, len(data) - cut)]
    block, step_lines.BLOCK = step_lines.BLOCK, 64  # so that lines span blocks
    try:
        result = kept(path, data, step)
    finally:
        step_lines.BLOCK = block
    whole = [part for part in data.splitlines(keepends=True) if part.endswith(b"\n")]
    whole = lines[: data.count(b"\n")]
    rest = data[sum(map(len, whole)) :]
    if parsed_line(rest) is not None:  # only its newline is missing
        whole.append(rest + b"\n")
    assert result == b"".join(part for part in whole if parsed_line(part)["step"] <= step)
    assert aside(path) == []


BAD = {
    "garbage": b"\xff\xfe\x00garbage\n",
    "nulls": b"\0" * 5000 + b"\n",
    "not UTF-8": b'{"step": 2, "text": "\xc3"}\n',
    "no object": b"[1, 2]\n",
    "no step": b'{"text": "x"}\n',
    "cut off": b'{"step": 2, "te\n',
    "endless nesting": b"[" * 100_000 + b"\n",
}
UNSEEN = [b'{"step": true}\n', b'{"step": 2, "x": ' + b"1" * 5000 + b"}\n", b'{"step": 2, "x"; 4}\n']  # unless parsed


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_damaged_lines_are_taken_out_and_kept_aside(path, bad, place, logged):
    good = [line(1, "a" * 3000), line(2), line(3)]
    data = b"".join([*good[:place], bad, *good[place:]])
    assert kept(path, data, 2) == b"".join(good[:2])
    assert aside(path) == [bad]
    assert f"{path}: line {place + 1} is not a JSON object with a step, left out" in logged.messages
    assert f"{path}: what is damaged of it is kept in metrics.jsonl.damaged-1" in logged.messages
    assert list(path.parent.glob(".*")) == []  # no temporary files


@pytest.mark.parametrize("bad", UNSEEN)
def test_damage_that_only_parsing_shows_stays_but_for_the_tail(path, bad):
    """It costs seconds per gigabyte to parse all; readers leave such a line out."""
    assert kept(path, line(1) + bad + line(2) + line(3), 2) == line(1) + bad + line(2)
    assert [record["step"] for record in read_lines(path)] == [1, 2]
    assert kept(path, line(1) + bad + line(2) + line(3), 1) == line(1)
    assert aside(path) == [bad]


def test_a_second_damage_does_not_replace_the_first(path, logged):
    kept(path, line(1) + b"{1\n{2\n" + line(2), 2)
    kept(path, line(1) + b"{3\n" + line(2), 2)
    assert aside(path) == [b"{1\n{2\n", b"{3\n"]
    assert f"{path}: 2 lines (the first is line 2) are not JSON objects with a step, left out" in logged.messages


def test_a_torn_last_line_is_dropped(path):
    assert kept(path, line(1) + b'{"step": 2, "re' + b"\0" * 9, 5) == line(1)
    assert aside(path) == []


def test_lines_of_another_spelling_stay_as_they_are(path):
    data = b'{"a": 1, "step":1}\r\n' + line(2)
    assert kept(path, data, 2) == data


def test_reading_leaves_damage_out_and_says_so_once(path, logged):
    path.write_bytes(line(1) + b"{\n\n" + b"\xff\n" + line(2, "\u2028"))
    assert [record["step"] for record in iter_lines(path)] == [1, 2]
    assert read_lines(path)[1] == {"step": 2, "text": "\u2028"}
    assert logged.messages[0] == f"{path}: 2 lines (the first is line 2) are not JSON objects with a step, left out"
    assert read_lines(path.with_name("none")) == []


def test_the_tail_is_cut_without_reading_the_rest(path, monkeypatch):
    """Of 20,000 lines only those behind the step are parsed."""
    data = b"".join(line(step, "y" * 100) for step in range(20_000))
    parsed = []
    monkeypatch.setattr(step_lines, "parsed_line", lambda text: parsed.append(text) or parsed_line(text))
    assert kept(path, data, 19_990) == data[: data.index(b'{"step": 19991')]
    assert len(parsed) == 10


@pytest.mark.parametrize("size", [0, 1, 7, 3000])
def test_the_latest_lines_are_those_of_the_whole_file_backwards(tmp_path, size):
    path = tmp_path / "metrics.jsonl"
    assert list(latest_lines(path)) == []
    records = [{"step": i, "text": "x" * (i % 50)} for i in range(size)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3, "te')
    assert list(latest_lines(path)) == records[::-1]
