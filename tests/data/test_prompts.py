"""Prompts are tokenised once; one that is too long is skipped with a count, or cut on the left."""

import numpy as np
import pytest

from rlt_jax.data import build_prompts, describe_skipped, encode, read_prompt_file
from rlt_jax.data.rows import row_from
from rlt_jax.errors import UserError


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
