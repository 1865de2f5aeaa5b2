"""Baselines and a student's thoughts: the rows, and that scoring reads in them what they are called."""

import json

import pytest

from rlt_jax.data import BESPOKE, R1, ChatFormat, Room, explained_score_rows, load_explained_rows, load_tokenizer
from rlt_jax.errors import UserError
from rlt_jax.studies.baselines import BASELINES, baseline_rows, own_thought, student_rows
from rlt_jax.types import Row

ROWS = (
    Row(0, "What is 2+3?", "5", "Two and three make five.", "Be short."),
    Row(1, "What is 4+4?", "8", "\n\nTwice four.\n", None),
    Row(2, "What is 1+1?", "2", "<|begin_of_thought|>One more.<|end_of_thought|>", None),
)


@pytest.fixture(scope="module")
def chat(golden) -> ChatFormat:
    return ChatFormat(load_tokenizer(golden / "teacher"))


def read(rows, path, chat):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    explained, skipped = load_explained_rows(str(path), chat.tags)
    assert not skipped
    usable, skipped = explained_score_rows(explained, chat, room=Room(0, 10_000, 10_000))
    assert not skipped
    return [row for _, row in usable]


def test_four_rows_of_each(tmp_path, chat):
    rows = baseline_rows(ROWS, BESPOKE)
    assert [row["kind"] for row in rows] == [kind for kind in BASELINES for _ in ROWS]
    scored = read(rows, tmp_path / "rows.jsonl", chat)
    explanations = dict(zip(BASELINES, ([row.explanation for row in scored[i : i + 3]] for i in range(0, 12, 3))))
    true = ["Two and three make five.\n\n", "Twice four.\n\n", "One more.\n\n"]
    assert explanations["none"] == ["", "", ""]
    assert explanations["true"] == true
    assert explanations["shuffled"] == [true[1], true[2], true[0]]
    assert explanations["copied"] == ["5\n\n", "8\n\n", "2\n\n"]
    assert [row.matched for row in scored] == [False] * 3 + [True] * 9
    assert [row.get("system") for row in rows[:3]] == ["Be short.", None, None]


def test_no_explanation_is_an_empty_thought(tmp_path, chat):
    (none, *_) = read(baseline_rows(ROWS, BESPOKE), tmp_path / "rows.jsonl", chat)
    text = chat.tokenizer.decode(none.student_ids)
    assert text.count("<|begin_of_thought|>\n\n<|end_of_thought|>\n\n<|begin_of_solution|>5<|end_of_solution|>") == 1
    assert len(none.solution) and not len(none.student_thought)


@pytest.mark.parametrize("rows", [ROWS[:1], (*ROWS, Row(3, "a", "b", None, None))])
def test_rows_without_traces_are_refused(rows):
    with pytest.raises(UserError, match=r"expected two or more held-out rows, each with a reasoning_trace"):
        baseline_rows(rows, BESPOKE)


@pytest.mark.parametrize("tags", [BESPOKE, R1], ids=["bespoke", "r1"])
def test_own_thought(tags):
    assert own_thought(f"So 5.\n\n{tags.thought_end}\n\nrest", tags) == ("So 5.\n\n", True)
    assert own_thought("So 5", tags) == ("So 5\n\n", False)
    assert own_thought("", tags) == ("\n\n", False)


def test_a_students_thoughts(tmp_path, chat):
    rows = list(student_rows(ROWS, [(0, "So 5.\n\n<|end_of_thought|> x"), (0, "Hm"), (2, "2")], BESPOKE))
    assert [(row["kind"], row["place"]) for row in rows] == [
        *(("none", 0), ("none", 1), ("none", 2), ("true", 0), ("true", 1), ("true", 2)),
        *(("own", 0), ("own", 0), ("own", 2)),
    ]
    scored = read(rows, tmp_path / "rows.jsonl", chat)
    assert [row.explanation for row in scored[6:]] == ["So 5.\n\n", "Hm\n\n", "2\n\n"]
    text = chat.tokenizer.decode(scored[7].student_ids)
    assert "<|begin_of_thought|>\n\nHm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>5<" in text


def test_an_explanations_end_tag_in_a_thought_ends_it():
    (*_, row) = student_rows(ROWS[:1], [(0, "So<|end_of_explanation|>5<|end_of_thought|>")], BESPOKE)
    assert row["completion"] == "So<|end_of_explanation|>"


def test_rows_without_a_trace_have_no_true_thought():
    rows = list(student_rows([Row(0, "a", "b", None, None)], [], BESPOKE))
    assert [row["kind"] for row in rows] == ["none"]
