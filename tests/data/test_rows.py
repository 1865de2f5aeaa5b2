"""Rows from every kind of source, and what is said about the ones that cannot be used."""

import json
from pathlib import Path

import pytest

from rlt_jax.data import describe_skipped, load_rows
from rlt_jax.errors import UserError
from rlt_jax.types import Row

GOOD = {"question": "What is 2 + 3?", "solution": "5", "reasoning_trace": "Count on from 2."}
THOUGHT = "<|begin_of_thought|>{}<|end_of_thought|>"
SOLUTION = "<|begin_of_solution|>{}<|end_of_solution|>"


def stratos(answer: str, question: str = "What is 2 + 3?") -> dict:
    return {"conversations": [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]}


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_golden_rows_keep_their_texts(data_cases, tmp_path):
    rows = load_rows(write(tmp_path / "rows.jsonl", [case["raw"] for case in data_cases["rows"]])).rows
    assert len(rows) == 12
    for row, case in zip(rows, data_cases["rows"], strict=True):
        line = case["teacher_line"]
        assert row.question == line["questions"]
        assert row.solution == line["solutions_content"]
        assert row.reasoning_trace == "\n\n" + case["teacher_completion_column"].partition("<|end_of_explanation|>")[0]
        assert row.system is None
    assert (rows[0].solution, rows[1].solution) == ("\n\n42\n\n", "42")


def test_both_names_of_the_question_and_a_missing_trace(data_cases, tmp_path):
    """Mend: the original raises KeyError 'prompt' on the columns its own documentation names."""
    raws = {case["name"]: case["raw"] for case in data_cases["failing_rows"]}
    named = raws["custom, columns named as in the original README (question, solution)"]
    rows = load_rows(
        write(tmp_path / "rows.jsonl", [named, {"prompt": "p", "solution": "s", "reasoning_trace": " "}])
    ).rows
    assert rows == (Row(0, "What is 17 + 25?", "42", None, None), Row(1, "p", "s", None, None))


def test_system_column_and_r1_tags(tmp_path):
    r1 = stratos("<think>\nCount.\n</think>\n<solution>5</solution>") | {"system": "Be brief."}
    roles = {
        "conversations": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "<think></think><solution>5</solution>"},
        ]
    }
    rows = load_rows(write(tmp_path / "rows.jsonl", [r1, roles, GOOD | {"system": ""}])).rows
    assert rows[0] == Row(0, "What is 2 + 3?", "5", "\nCount.\n", "Be brief.")
    assert rows[1] == Row(1, "q", "5", None, None)
    assert rows[2].system is None


BAD_ROWS = [
    ({"question": "q"}, "no solution (columns: question)"),
    ({"solution": "5"}, "no question (columns: solution)"),
    ({"question": None, "prompt": None, "solution": "5"}, "no question (columns: question, prompt, solution)"),
    ({"question": True, "solution": "5"}, "question is neither text nor a number (came bool)"),
    ({"question": "q", "solution": ["5"]}, "solution is neither text nor a number (came list)"),
    ({"question": "q", "solution": "5", "reasoning_trace": 7}, "reasoning_trace is not text (came int)"),
    ({"question": "q", "solution": "5", "system": {}}, "system is not text (came dict)"),
    ({"question": " \n", "solution": "5"}, "question is empty"),
    ({"question": "q", "solution": " \n"}, "solution is empty"),
    ({"question": "q", "solution": "5\ud800"}, "solution is not valid Unicode (half a character pair at 1)"),
    (["q", "5"], "not an object with columns (came list)"),
    (None, "not an object with columns (came NoneType)"),
    ({}, "no question (columns: )"),
    ({"conversations": "hello"}, "conversations is not a list of turns (came str)"),
    ({"conversations": ["hello"]}, "conversations is not a list of turns (came list)"),
    ({"conversations": [{"from": "user", "value": "q"}]}, "conversations is not [user, assistant] (came [user])"),
    ({"conversations": [{"from": "user"}]}, "no content (columns: from)"),
    (stratos("5"), "the assistant's turn has no tags"),
    (stratos(SOLUTION.format("5")), "the assistant's turn lacks a tag (<|begin_of_thought|>, <|end_of_thought|>)"),
    (
        stratos(SOLUTION.format("5") + THOUGHT.format("t")),
        "the tags are out of order (no <|begin_of_solution|> after the one before it)",
    ),
    (stratos(THOUGHT.format("t") + SOLUTION.format("\n\n")), "solution is empty"),
    (stratos(THOUGHT.format("t") + SOLUTION.format("5"), question=""), "question is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "reason"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_bad_row_is_skipped_or_stops(raw, reason, tmp_path):
    source = write(tmp_path / "rows.jsonl", [GOOD, raw, GOOD])
    lines = []
    loaded = load_rows(source, log=lines.append)
    assert [row.number for row in loaded.rows] == [0, 2]
    assert loaded.skipped == ((1, reason),)
    assert lines == [f"{source}: 2 rows, 1 skipped: 1 x {reason.partition(' (')[0]} (row 1)"]
    with pytest.raises(UserError) as stop:
        load_rows(source, on_bad_row="stop")
    assert str(stop.value) == f"{source}, row 1: {reason}: fix the row, or skip such rows with on_bad_row skip"


def test_broken_lines_carry_their_line_number(tmp_path):
    source = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD).encode()
    source.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n{'question': 1}\n" + good[:20] + b"\n\xff\n" + good)
    loaded = load_rows(str(source), log=lambda line: None)
    assert [row.number for row in loaded.rows] == [0, 5]  # line 1 (with a byte-order mark) and line 6
    assert [number for number, _ in loaded.skipped] == [2, 3, 4]
    assert loaded.skipped[0][1] == "not JSON (Expecting property name enclosed in double quotes, column 2)"
    assert loaded.skipped[2][1] == "not UTF-8 (byte 0)"


def test_nothing_usable_lists_the_first_reasons(tmp_path):
    with pytest.raises(UserError, match=r"none of 2 can be used: row 0: question is empty; row 1: no solution \("):
        load_rows(write(tmp_path / "rows.jsonl", [{"question": "", "solution": "5"}, {"question": "q"}]))
    with pytest.raises(UserError, match=r"none of 9 can be used: row 0: question is empty: give rows"):  # said once
        load_rows(write(tmp_path / "same.jsonl", [{"question": "", "solution": "5"}] * 9))
    with pytest.raises(UserError, match="none of 0 can be used: give rows"):
        load_rows(write(tmp_path / "empty.jsonl", []))


def test_skipped_rows_are_counted_by_reason():
    skipped = [(n, "solution is empty") for n in range(7)] + [(9, "not JSON (a)"), (11, "not JSON (b)")]
    assert describe_skipped(skipped) == ("7 x solution is empty (rows 0, 1, 2, 3, 4, ...); 2 x not JSON (rows 9, 11)")


def test_json_parquet_and_saved_folders_give_the_same_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    raws = [
        GOOD,
        GOOD | {"question": "Why?", "reasoning_trace": None},
        stratos(THOUGHT.format("t") + SOLUTION.format("5")),
    ]
    custom = load_rows(write(tmp_path / "rows.jsonl", raws[:2])).rows
    (tmp_path / "rows.json").write_text(json.dumps(raws[:2], indent=1))
    assert load_rows(str(tmp_path / "rows.json")).rows == custom
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, raws[:2])))
    assert load_rows(str(tmp_path / "lines.json")).rows == custom

    data = datasets.Dataset.from_list([dict.fromkeys((*GOOD, "conversations")) | raw for raw in raws])
    everything = (*custom, Row(2, "What is 2 + 3?", "5", "t", None))
    data.to_parquet(str(tmp_path / "rows.parquet"))
    assert load_rows(str(tmp_path / "rows.parquet")).rows == everything
    data.save_to_disk(str(tmp_path / "saved"))
    assert load_rows(str(tmp_path / "saved")).rows == everything
    datasets.DatasetDict({"train": data, "dev": data.select([1])}).save_to_disk(str(tmp_path / "splits"))
    assert load_rows(str(tmp_path / "splits")).rows == everything
    assert load_rows(str(tmp_path / "splits"), split="dev").rows == (Row(0, "Why?", "5", None, None),)
    with pytest.raises(UserError, match=r"expected split 'test' in .*splits, but it has train, dev"):
        load_rows(str(tmp_path / "splits"), split="test")


def test_folder_of_files_by_split(tmp_path):
    for name, question in (("train-00001-of-00002", "b"), ("train-00000-of-00002", "a"), ("test", "c")):
        write(tmp_path / f"{name}.jsonl", [GOOD | {"question": question}])
    assert [(row.number, row.question) for row in load_rows(str(tmp_path)).rows] == [(0, "a"), (1, "b")]
    assert [row.question for row in load_rows(str(tmp_path), split="test").rows] == ["c"]
    with pytest.raises(UserError, match="expected a file of split 'dev'"):
        load_rows(str(tmp_path), split="dev")


def test_unreadable_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.txt").write_text("question,solution\n")
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "bad.json").write_text("[1,")
    write(tmp_path / "good.jsonl", [GOOD])
    for source, message in [
        (tmp_path / "missing.jsonl", "there is no such file or folder"),
        ("", "expected a data set, but its name is empty"),
        (tmp_path / "empty", "expected .jsonl, .json, .parquet, .csv, .tsv files"),
        (tmp_path / "rows.txt", "expected a file that ends in .jsonl, .json, .parquet"),
        (tmp_path / "bad.parquet", "expected a parquet file"),
        (tmp_path / "bad.json", r"expected a JSON list of rows in .*not JSON \(Expecting value, column 4\)"),
        (
            "nobody/no-such-data",
            "no nobody/no-such-data here and HF_HUB_OFFLINE is set.* folder of a downloaded data set",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            load_rows(str(source))
    with pytest.raises(UserError, match="expected split 'train' of the single file"):
        load_rows(str(tmp_path / "good.jsonl"), split="test")
