"""Which rows become prompts, and that each prompt is what its row says, built late or at once."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_jax.data import (
    R1,
    ChatFormat,
    Room,
    build_prompts,
    describe_skipped,
    encode,
    load_tokenizer,
    read_prompt_file,
    student_closing_text,
    student_prefix_text,
    teacher_prompt_text,
    teacher_texts,
)
from rlt_jax.data.forged import forged_problem
from rlt_jax.data.rows import row_from
from rlt_jax.data.spans import closing_tokens
from rlt_jax.errors import UserError
from rlt_jax.types import Row
from tests.data.templates import SHAPES, shaped_tokenizer


@pytest.fixture(scope="module")
def rows(data_cases):
    return [row_from(number, case["raw"]) for number, case in enumerate(data_cases["rows"])]


def test_golden_prompt_ids(rows, data_cases, chat):
    built = build_prompts(rows, chat, max_prompt_length=175)
    assert built.skipped == () and len(built.prompts) == 12
    for prompt, row, case in zip(built.prompts, rows, data_cases["rows"], strict=True):
        assert prompt.row is row and prompt.teacher_text == case["teacher_line"]["prompt"]
        assert prompt.teacher_ids.dtype == np.int32 and prompt.teacher_ids.tolist() == case["prompt_ids"]
        text = case["student_sft_text"]
        prefix = text[: text.index("<|begin_of_thought|>\n\n") + len("<|begin_of_thought|>\n\n")]
        assert prompt.student_prefix_ids.tolist() == encode(chat.tokenizer, prefix).tolist()
        assert prompt.solution_ids.tolist() == encode(chat.tokenizer, row.solution).tolist()


def test_too_long_prompts_are_skipped_with_their_number(rows, chat):
    built = build_prompts(rows, chat, max_prompt_length=120)
    assert [prompt.row.number for prompt in built.prompts] == [0, 1, 6, 7, 8, 9, 10, 11]
    assert built.skipped[0] == (2, "prompt is too long (131 tokens, at most 120)")
    assert describe_skipped(built.skipped) == "4 x prompt is too long (rows 2, 3, 4, 5)"
    with pytest.raises(UserError, match=r"none of 12 does: 12 x prompt is too long .*\(77 tokens, at most 70\): raise"):
        build_prompts(rows, chat, max_prompt_length=70)


def test_truncation_cuts_on_the_left(rows, data_cases, chat):
    built = build_prompts(rows, chat, max_prompt_length=80, truncate=True)
    assert built.skipped == () and max(len(prompt.teacher_ids) for prompt in built.prompts) == 80
    for prompt, case in zip(built.prompts, data_cases["rows"], strict=True):
        assert prompt.teacher_ids.tolist() == case["prompt_ids"][-80:]


def test_prompt_files(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Explain {x} in two lines.\n Like this.\n\n")
    assert read_prompt_file(file) == "Explain {x} in two lines.\n Like this."
    with pytest.raises(UserError, match=r"missing.txt, but it cannot be read \(No such file or directory\)"):
        read_prompt_file(tmp_path / "missing.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_file(tmp_path)
    file.write_text(" \n")
    with pytest.raises(UserError, match="but the file is empty"):
        read_prompt_file(file)
    file.write_bytes(b"ok \xff")
    with pytest.raises(UserError, match="but byte 3 is not: save it as UTF-8"):
        read_prompt_file(file)


# rows are decided by bounds, prompts are built late


def decided_one_by_one(rows, chat, *, max_prompt_length, truncate, room):
    """The plain way: format and tokenise every row, then compare its lengths."""
    usable, skipped = [], []
    for row in rows:
        length = len(encode(chat.tokenizer, teacher_prompt_text(row.question, row.solution, chat)))
        prefix = encode(chat.student, student_prefix_text(row.question, chat, row_system=row.system))
        student = len(prefix) + len(encode(chat.student, student_closing_text(row.solution, chat)))
        ((_, own),) = closing_tokens([row.solution], chat)
        if truncate:
            length = min(length, max_prompt_length)
        if forged := forged_problem(row, chat):
            skipped.append((row.number, forged))
        elif length > max_prompt_length:
            skipped.append((row.number, f"prompt is too long ({length} tokens, at most {max_prompt_length})"))
        elif not len(own):
            reason = "solution has no token of its own, as all of them hold a piece of a tag"
            skipped.append((row.number, f"{reason} ({row.solution!r})"))
        elif length + room.completion > room.teacher:
            most = f"({length} + {room.completion} tokens, at most {room.teacher})"
            skipped.append((row.number, f"prompt and completion exceed the teacher's positions {most}"))
        elif student + room.completion > room.student:
            most = f"({student} + {room.completion} tokens, at most {room.student})"
            skipped.append((row.number, f"chat and explanation exceed the student's positions {most}"))
        else:
            usable.append(row.number)
    return usable, skipped


PIECES = [
    "42",
    "x",
    "What is 17 + 25?",
    " ",
    "\n\n",
    "</think>",
    "<|im_end|>",
    "<|im_st",
    "é",
    "e\u0301",
    "漢字",
    "\u0958",
]
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join).filter(str.strip)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT), min_size=1, max_size=5),
    limits=st.tuples(*[st.integers(40, 140)] * 3),
    truncate=st.booleans(),
)
def test_rows_are_decided_as_if_each_were_tokenised(name, golden_shapes, texts, limits, truncate):
    chat = golden_shapes[name]
    rows = [Row(i, question, solution, None, system) for i, (question, solution, system) in enumerate(texts)]
    longest, teacher, student = limits
    room = Room(10, teacher, student)
    usable, skipped = decided_one_by_one(rows, chat, max_prompt_length=longest, truncate=truncate, room=room)
    try:
        built = build_prompts(rows, chat, max_prompt_length=longest, truncate=truncate, room=room)
    except UserError as refusal:
        assert usable == [] and describe_skipped(skipped) in str(refusal)
        return
    assert [prompt.row.number for prompt in built.prompts] == usable and list(built.skipped) == skipped
    assert [row.number for row in built.rows] == usable
    for prompt, text in zip(built.prompts, teacher_texts(built.rows, chat), strict=True):
        row = prompt.row
        assert prompt.teacher_text == text == teacher_prompt_text(row.question, row.solution, chat)
        assert prompt.student_text == student_prefix_text(row.question, chat, row_system=row.system)
        assert prompt.teacher_ids.tolist() == encode(chat.tokenizer, text).tolist()[-longest if truncate else 0 :]
        assert prompt.student_prefix_ids.tolist() == encode(chat.student, prompt.student_text).tolist()


@pytest.fixture(scope="module")
def golden_shapes(golden):
    return {
        name: ChatFormat(shaped_tokenizer(shape, golden / "teacher"), R1, "Teach.", "Do.")
        for name, shape in SHAPES.items()
    }


def test_a_prompt_is_built_again_at_every_access(rows, chat):
    prompts = build_prompts(rows, chat, max_prompt_length=175).prompts
    part, taken = prompts[2:7:2], prompts.take(np.array([5, 2]))
    assert [prompt.row.number for prompt in part] == [2, 4, 6] and [prompt.row.number for prompt in taken] == [5, 2]
    assert prompts[-1].row is rows[-1] and prompts[2] is not prompts[2]
    assert prompts[2].teacher_ids.tolist() == part[0].teacher_ids.tolist() == taken[1].teacher_ids.tolist()


def test_a_row_that_no_longer_fits_when_it_is_built_is_refused(golden, rows, data_cases):
    """Nothing is silently longer than was promised: here the template grows after the rows were decided."""
    tokenizer = load_tokenizer(golden / "teacher")
    chat = ChatFormat(tokenizer, teacher_prompt="Teach.", student_prompt="Solve.")
    built = build_prompts(rows[:3], chat, max_prompt_length=100)
    assert len(built.prompts[1].teacher_ids) <= 100
    tokenizer.chat_template += "{{ 'and one more thing ' * 40 }}"
    for build in (lambda: built.prompts[1], lambda: list(built.prompts[1:]), lambda: built.prompts.take([1, 0])):
        with pytest.raises(
            UserError, match=r"^row 1: prompt is too long \(\d+ tokens, at most 100\), but it was found to fit"
        ):
            build()


@pytest.mark.parametrize("column", ["question", "solution", "system"])
@pytest.mark.parametrize("text", ["1+" * 5_000_000, "漢字 " * 1_500_000], ids=["ascii", "unicode"])
def test_ten_megabytes_in_a_row_are_skipped_at_once(rows, chat, column, text):
    long = replace(rows[1], number=99, **{column: text})
    before = time.process_time()
    built = build_prompts([rows[0], long], chat, max_prompt_length=6144, room=Room(1024, 8192, 8192))
    assert time.process_time() - before < 2
    ((number, reason),) = built.skipped
    expected = "prompt is too long (at least " if column != "system" else "chat and explanation exceed the student's"
    assert number == 99 and reason.startswith(expected) and "at least" in reason and len(built.prompts) == 1


def test_many_rows_take_little_memory(chat):
    """Beyond the rows themselves; the tokens of all prompts took 3 kB a row."""
    rows = [Row(i, f"What is {i} + 25?", str(i % 100), None, None) for i in range(20_000)]
    build_prompts(rows[:100], chat, max_prompt_length=400)
    done = []
    tracemalloc.start()
    built = build_prompts(rows, chat, max_prompt_length=400, on_progress=done.append)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(built.prompts) == 20_000 and kept < 100 * len(rows) and peak < 600 * len(rows), (kept, peak)
    assert done[-1] == 20_000 and done == sorted(done) and len(done) > 10
