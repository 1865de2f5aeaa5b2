"""Which tokens supervised fine-tuning trains: the recorded masks, and the rows the original loses."""

import time
from dataclasses import replace

import numpy as np
import pytest

from rlt_jax.data import ChatFormat, build_sft_examples, ids_to_bytes, load_tokenizer
from rlt_jax.data.rows import row_from
from rlt_jax.errors import UserError


@pytest.fixture(scope="module")
def rows(data_cases):
    return [row_from(number, case["raw"]) for number, case in enumerate(data_cases["rows"])]


def sft_example(row, chat, target):
    (example,) = build_sft_examples([row], chat, target=target, max_length=1_000_000).examples
    return example


def test_golden_masks(rows, data_cases, chat):
    compared = 0
    for row, case in zip(rows, data_cases["rows"], strict=True):
        for template, golden in case["masks"].items():
            example = sft_example(row, chat, "student" if template == "student_sft" else "teacher")
            assert example.ids.dtype == np.int32 and example.trained.dtype == bool
            assert example.ids.tolist() == golden["input_ids"]
            if golden["trained_positions"]:  # fixed: three custom rows are masked out whole with the longer template
                assert np.flatnonzero(example.trained).tolist() == golden["trained_positions"]
                compared += 1
            else:
                assert template == "teacher_sft_with_solution_end_custom" and row.solution[-1] in ".°$"
    assert compared == 33


def test_golden_labels_of_collated_batches(rows, data_cases, chat):
    by_text = {case["student_sft_text"]: row for row, case in zip(rows, data_cases["rows"], strict=True)}
    by_text |= {case["teacher_line"]["text"]: row for row, case in zip(rows, data_cases["rows"], strict=True)}
    for batch in data_cases["batches"]:
        target = "student" if batch["template"] == "student_sft" else "teacher"
        for text, labels, mask in zip(batch["texts"], batch["labels"], batch["attention_mask"], strict=True):
            ids, trained = sft_example(by_text[text], chat, target)
            assert np.where(trained, ids, -100).tolist() == [t for t, real in zip(labels, mask, strict=True) if real]


def test_rows_the_original_masks_out_are_trained_on(data_cases, chat):
    """Fixed: without the padding nothing at all was trained; now exactly explanation, end tag and end of turn are."""
    cases = {case["name"]: case for case in data_cases["failing_rows"]}
    for name in ("custom, trace without the blank-line padding", "stratos, thought without the blank-line padding"):
        assert cases[name]["teacher_sft_trained_positions"] == []
        ids, trained = sft_example(row_from(0, cases[name]["raw"]), chat, "teacher")
        text = b"".join(ids_to_bytes(chat.tokenizer, ids[trained])).decode()
        assert text.startswith("First add the tens") and text.endswith("42.\n\n<|end_of_explanation|><|im_end|>\n")
    wrapped = cases["custom, trace already wrapped in student tags"]
    ids, trained = sft_example(row_from(0, wrapped["raw"]), chat, "teacher")
    assert ids.tolist() == wrapped["teacher_sft_input_ids"]
    assert np.flatnonzero(trained).tolist() == wrapped["teacher_sft_trained_positions"]


def test_examples_of_a_data_set_count_what_is_left_out(rows, data_cases, chat):
    untraced = row_from(12, {"prompt": "What is 17 + 25?", "solution": "42"})
    built = build_sft_examples([untraced, *rows], chat, target="teacher", max_length=200)
    assert built.skipped == (
        (4, "text is too long (236 tokens, at most 200)"),
        (5, "text is too long (235 tokens, at most 200)"),
        (12, "no reasoning trace"),
    )
    expected = [sft_example(row, chat, "teacher") for row in rows if row.number not in (4, 5)]
    assert len(built.examples) == len(expected) == 10
    for example, single in zip(built.examples, expected, strict=True):
        assert example.ids.tolist() == single.ids.tolist() and example.trained.tolist() == single.trained.tolist()
    with pytest.raises(UserError, match=r"none of 1 can be used \(row 12: no reasoning trace\)"):
        build_sft_examples([untraced], chat, target="student", max_length=200)


@pytest.mark.parametrize("target", ["teacher", "student"])
@pytest.mark.parametrize("text", ["1+" * 5_000_000, "漢字 " * 1_500_000], ids=["ascii", "unicode"])
def test_ten_megabytes_in_a_row_are_skipped_at_once(rows, chat, target, text):
    long = replace(rows[1], number=99, reasoning_trace=text)
    before = time.process_time()
    built = build_sft_examples([rows[0], long], chat, target=target, max_length=4096, positions=8192)
    assert time.process_time() - before < 2
    ((number, reason),) = built.skipped
    assert number == 99 and reason.startswith("text is too long (at least ") and len(built.examples) == 1


def test_examples_are_built_when_they_are_asked_for(rows, chat):
    done: list[int] = []
    examples = build_sft_examples(rows, chat, target="student", max_length=1000, on_progress=done.append).examples
    assert done == [len(rows)] and len(examples) == len(rows)
    for taken, row in zip(examples.take([7, 0, 3]), (rows[7], rows[0], rows[3]), strict=True):
        assert taken.ids.tolist() == sft_example(row, chat, "student").ids.tolist()


def test_an_example_that_no_longer_fits_when_it_is_built_is_refused(golden, rows):
    tokenizer = load_tokenizer(golden / "teacher")
    built = build_sft_examples(rows[:2], ChatFormat(tokenizer), target="student", max_length=600)
    tokenizer.chat_template += "{{ 'and one more thing ' * 200 }}"
    with pytest.raises(UserError, match=r"^row 0: text is too long \(\d+ tokens, at most 600\), but it was found"):
        built.examples[0]
