"""Texts of both chats, equal to the recorded ones character by character."""

from dataclasses import replace

import pytest

from rlt_jax.data import (
    BESPOKE,
    R1,
    ChatFormat,
    encode,
    end_of_turn,
    load_rows,
    load_tokenizer,
    padded_thought,
    student_closing_text,
    student_header_text,
    student_prefix_text,
    student_sft_parts,
    tags_of,
    teacher_prompt_text,
    teacher_sft_parts,
)
from rlt_jax.data.rows import row_from
from rlt_jax.errors import UserError


def teacher_sft(row, chat):
    """The whole chat that a teacher is fine-tuned on."""
    return "".join(*teacher_sft_parts([row], chat))


def student_sft(row, chat):
    """The whole chat that a student is fine-tuned on."""
    return "".join(*student_sft_parts([row], chat))


def student_chat(question, thought, solution, chat, *, row_system=None):
    """The student's whole chat as it is scored."""
    header = student_header_text(question, chat, row_system=row_system)
    return header + chat.tags.thought_start + thought + student_closing_text(solution, chat)


def test_golden_texts_and_prompt_ids(data_cases, chat):
    for number, case in enumerate(data_cases["rows"]):
        row = row_from(number, case["raw"])
        prompt = teacher_prompt_text(row.question, row.solution, chat)
        assert prompt == case["teacher_line"]["prompt"]
        assert prompt.endswith("<|begin_of_explanation|>\n\n")
        assert encode(chat.tokenizer, prompt).tolist() == case["prompt_ids"]
        assert teacher_sft(row, chat) == case["teacher_line"]["text"]
        assert student_sft(row, chat) == case["student_sft_text"]


def test_traces_that_the_original_masks_out_are_padded(data_cases, chat):
    """Mend: `failing_rows` whose trace lacks the blank lines, and one whose trace carries its own tags."""
    cases = {case["name"]: case for case in data_cases["failing_rows"]}
    padded = next(case for case in data_cases["rows"] if (case["row"], case["format"]) == ("add", "custom"))
    bare = row_from(0, cases["custom, trace without the blank-line padding"]["raw"])
    assert teacher_sft(bare, chat) == padded["teacher_line"]["text"]
    assert student_sft(bare, chat) == padded["student_sft_text"]
    wrapped = cases["custom, trace already wrapped in student tags"]
    assert teacher_sft(row_from(0, wrapped["raw"]), chat) == wrapped["teacher_sft_line"]["text"]
    assert student_sft(row_from(0, wrapped["raw"]), chat) == wrapped["student_sft_line"]["text"]
    untraced = row_from(3, cases["custom, no reasoning_trace column"]["raw"])
    with pytest.raises(UserError, match="row 3: supervised fine-tuning needs a reasoning trace"):
        teacher_sft(untraced, chat)


def test_golden_student_chats_of_the_reward(reward_cases, chat):
    for case in reward_cases.values():
        inputs = case["inputs"]
        if case["id"].startswith(("empty_", "missing_end_tag_empty")) or case["id"].endswith("_merge_mismatch"):
            continue  # the original loses the thought's newlines there (fixed: see test_spans)
        thought = case["student_chat"].rpartition("<|im_start|>assistant\n<|begin_of_thought|>")[2]
        thought = thought.removesuffix(
            f"<|end_of_thought|>\n\n<|begin_of_solution|>{inputs['solutions_content']}<|end_of_solution|><|im_end|>\n"
        )
        text = student_chat(inputs["questions"], thought, inputs["solutions_content"], chat)
        assert text == case["student_chat"]


@pytest.mark.parametrize(
    "text", ["X", "\nX", "\n\nX\n\n", "\n\n\n\nX\r\n", "<think>X</think>", " <explanation>\nX</explanation>\n"]
)
def test_padding_is_normalised(text):
    assert padded_thought(text) == "\n\nX\n\n"


def test_padding_keeps_indentation_and_inner_tags():
    assert padded_thought("  x = 1\n  y = 2") == "\n\n  x = 1\n  y = 2\n\n"
    assert padded_thought("a <think>b</think>") == "\n\na <think>b</think>\n\n"


def test_gap_between_thought_and_solution_can_be_set(data_cases, chat):
    row = row_from(0, data_cases["rows"][1]["raw"])
    assert "<|end_of_thought|><|begin_of_solution|>42<|end_of_solution|>" in student_sft(row, chat)
    text = student_sft(row, replace(chat, student_sft_gap="\n\n"))
    assert "<|end_of_thought|>\n\n<|begin_of_solution|>42<|end_of_solution|>" in text


def test_student_prompt_comes_from_the_row_unless_overridden(chat):
    system = (
        "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
        "<|im_start|>assistant\n<|begin_of_thought|>\n\n"
    )
    own, rows = chat.student_prompt, "Be {thought_start} brief."
    assert student_prefix_text("q", chat) == system.format(own)
    assert student_prefix_text("q", chat, row_system=rows) == system.format(rows)  # data is never filled in
    forced = replace(chat, student_prompt_overrides_rows=True)
    assert student_prefix_text("q", forced, row_system=rows) == system.format(own)


def test_default_prompts_name_the_tags(tokenizer):
    for tag_format, other in (("bespoke", R1), ("r1", BESPOKE)):
        tags = tags_of(tag_format)
        chat = ChatFormat(tokenizer, tags)
        teacher, student = teacher_prompt_text("q", "5", chat), student_prefix_text("q", chat)
        assert teacher.count(tags.explanation_start) == 2 and teacher.count(tags.explanation_end) == 1
        assert teacher.endswith(f"{tags.solution_start}5{tags.solution_end}\n\n{tags.explanation_start}\n\n")
        assert [student.count(tag) for tag in (tags.thought_start, tags.thought_end)] == [2, 1]
        assert [student.count(tag) for tag in (tags.solution_start, tags.solution_end)] == [1, 1]
        assert other.thought_end not in student and "{" not in student + teacher


def test_end_of_turn_is_what_the_template_writes(golden):
    tokenizer = load_tokenizer(golden / "teacher")
    assert end_of_turn(tokenizer) == "<|im_end|>\n"
    other = load_tokenizer(golden / "teacher")
    other.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = ChatFormat(other, R1, "T", "S")
    assert end_of_turn(other) == "<end>"
    assert student_chat("q", "t", "5", chat) == (
        "[system]S<end>[user]q<end>[assistant]<think>t</think>\n\n<solution>5</solution><end>"
    )


def test_templates_that_do_not_fit(golden):
    bare = load_tokenizer(golden / "teacher")
    bare.chat_template = None
    with pytest.raises(UserError, match="expected a tokenizer with a chat template"):
        ChatFormat(bare)
    no_system = load_tokenizer(golden / "teacher")
    no_system.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="takes a system and a user message, but it says: System role not supported"):
        teacher_prompt_text("q", "5", ChatFormat(no_system))


def test_load_rows_is_what_the_golden_rows_went_through(data_cases, tmp_path):
    """The other tests here build rows from raw ones directly; this pins that the loader does the same."""
    import json

    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(case["raw"]) for case in data_cases["rows"]))
    assert load_rows(str(file)).rows == tuple(row_from(n, case["raw"]) for n, case in enumerate(data_cases["rows"]))
