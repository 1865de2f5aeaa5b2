"""Chats as rows: `conversations` and `messages`, all names of the speakers, system turns, texts in parts."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rlt_jax.data import load_rows
from rlt_jax.errors import UserError
from rlt_jax.types import Row

TAGGED = "<|begin_of_thought|>t<|end_of_thought|><|begin_of_solution|>5<|end_of_solution|>"


def load(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(str(path), log=lambda line: None)


def turn(who: str, text: object, style: str = "role") -> dict:
    return {"role": who, "content": text} if style == "role" else {"from": who, "value": text}


def reason(tmp_path, row: dict) -> str:
    """Why a row is refused."""
    good = {"messages": [turn("user", "q"), turn("assistant", TAGGED)]}
    ((number, why),) = load(tmp_path / "rows.jsonl", good, row).skipped
    assert number == 1
    return why


@pytest.mark.parametrize("column", ["conversations", "messages"])
@pytest.mark.parametrize("style", ["role", "from"])
@pytest.mark.parametrize("user", ["user", "human", "User"])
@pytest.mark.parametrize("assistant", ["assistant", "gpt", "model", "bot", "GPT"])
def test_all_names_of_the_speakers(tmp_path, column, style, user, assistant):
    chat = [turn("system", "Think.", style), turn(user, "q", style), turn(assistant, TAGGED, style)]
    assert load(tmp_path / "rows.jsonl", {column: chat}).rows == (Row(0, "q", "5", "t", "Think."),)
    assert load(tmp_path / "rows.jsonl", {column: chat[1:]}).rows == (Row(0, "q", "5", "t", None),)


@pytest.mark.parametrize(
    ("turn_text", "column", "expected"),
    [("A", None, "A"), ("A", "A", "A"), ("A ", "A", "A"), ("", "B", "B"), (None, "B", "B"), ("A", "", "A")],
)
def test_the_system_turn_is_the_rows_system_prompt(tmp_path, turn_text, column, expected):
    first = [] if turn_text is None else [turn("system", turn_text)]
    row = {"messages": [*first, turn("user", "q"), turn("assistant", TAGGED)], "system": column}
    assert load(tmp_path / "rows.jsonl", row).rows[0].system == expected


def test_two_system_prompts_are_refused(tmp_path):
    row = {"messages": [turn("system", "A"), turn("user", "q"), turn("assistant", TAGGED)], "system": "B"}
    assert reason(tmp_path, row) == "the system turn differs from the column system"


def test_a_text_in_parts(tmp_path):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 3?"}]
    row = {"messages": [turn("user", parts), turn("assistant", [{"type": "text", "text": TAGGED}])]}
    assert load(tmp_path / "rows.jsonl", row).rows == (Row(0, "What is 2 + 3?", "5", "t", None),)


@pytest.mark.parametrize(
    ("part", "kind"),
    [({"type": "image_url", "image_url": {"url": "x"}}, "image_url"), ("text", "str"), ({"type": "text"}, "text")],
)
def test_a_part_that_is_not_text_is_refused(tmp_path, part, kind):
    row = {"messages": [turn("user", [part]), turn("assistant", TAGGED)]}
    assert reason(tmp_path, row) == f"content has a part that is not text (came {kind})"


REFUSED = [
    ([turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", TAGGED)],
     "messages is not [user, assistant] (came [user, assistant, user, assistant])"),
    ([turn("assistant", TAGGED), turn("user", "q")], "messages is not [user, assistant] (came [assistant, user])"),
    ([turn("user", "q"), turn("system", "s"), turn("assistant", TAGGED)],
     "messages is not [user, assistant] (came [user, system, assistant])"),
    ([turn("user", "q"), turn("tool", TAGGED)], "messages is not [user, assistant] (came [user, tool])"),
    ([turn("user", "q"), turn("assistant", "5")], "the assistant's turn has no tags"),
    ([turn("user", 5), turn("assistant", TAGGED)], "content is not text (came int)"),
    ([turn("system", "s")], "messages is not [user, assistant] (came [system])"),
    ([], "messages is not [user, assistant] (came [])"),
    ("a chat", "messages is not a list of turns (came str)"),
]  # fmt: skip


@pytest.mark.parametrize(("chat", "why"), REFUSED, ids=range(len(REFUSED)))
def test_other_chats_are_refused_with_words(tmp_path, chat, why):
    assert reason(tmp_path, {"messages": chat}) == why


def test_a_table_has_every_key_in_every_turn(tmp_path):
    """Those that a turn does not use are null."""
    empty = dict.fromkeys(("from", "value", "role", "content"))
    chats = [
        [{**empty, **turn("user", "q")}, {**empty, **turn("assistant", TAGGED)}],
        [{**empty, **turn("human", "r", "from")}, {**empty, **turn("gpt", TAGGED, "from")}],
    ]
    pyarrow.parquet.write_table(pyarrow.table({"messages": chats}), tmp_path / "rows.parquet")
    rows = load_rows(str(tmp_path / "rows.parquet")).rows
    assert [(row.question, row.solution) for row in rows] == [("q", "5"), ("r", "5")]


def test_an_untagged_answer_alone_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="the assistant's turn has no tags: give rows with question and solution"):
        load(tmp_path / "rows.jsonl", {"messages": [turn("user", "q"), turn("assistant", "5")]})
