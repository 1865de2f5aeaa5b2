"""What stands around a text in a chat, for templates in the shapes of public models (`templates.py`)."""

import pytest

from rlt_jax.data import (
    BESPOKE,
    R1,
    ChatFormat,
    build_prompts,
    build_sft_examples,
    encode,
    end_of_turn,
    eos_ids,
    load_tokenizer,
    plain_chat_text,
    score_row_from_ids,
    score_row_from_text,
    student_closing_text,
    student_header_text,
    student_prefix_text,
    teacher_prompt_text,
    template_notes,
    turns_of,
)
from rlt_jax.data.turns import TODAY, chat_text, chat_texts
from rlt_jax.errors import UserError
from rlt_jax.types import Row
from tests.data.templates import SHAPES, shaped_tokenizer

ROW = Row(0, "What is 2+3?", "5", "Two and three make five.", "Be exact.")


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture
def shaped(shape, golden):
    return shaped_tokenizer(shape, golden / "teacher")


def test_headers_openings_and_ends_are_found(shape, shaped):
    turns = turns_of(shaped)
    assert (turns.has_system, turns.opened, turns.ending) == (shape.has_system, shape.opened, shape.ending)
    assert (turns.missing, turns.prompts) == (shape.missing, shape.missing == "")
    assert shaped.convert_ids_to_tokens(turns.end_id) == shape.end


@pytest.mark.parametrize("tags", [BESPOKE, R1], ids=["bespoke", "r1"])
def test_tags_are_opened_once_and_solutions_stand_outside_of_thoughts(shape, shaped, tags):
    chat = ChatFormat(shaped, tags, "Teach.", "Solve.")
    teacher = teacher_prompt_text(ROW.question, ROW.solution, chat)
    student = student_prefix_text(ROW.question, chat, row_system=ROW.system) + student_closing_text("5", chat)
    opened = f"{tags.solution_start}5{tags.solution_end}\n\n{tags.explanation_start}\n\n"
    assert teacher.endswith(shape.header + opened)
    assert student.endswith(
        f"{shape.header}{tags.thought_start}\n\n{tags.thought_end}\n\n{tags.solution_start}5{tags.solution_end}{shape.ending}"
    )
    for text in (teacher, student):
        assert text.count("<think>") == text.count("</think>") == (text is student and tags is R1)
    assert [teacher.count(text) for text in ("Teach.", ROW.question)] == [1, 1]
    assert [student.count(text) for text in ("Be exact.", ROW.question)] == [1, 1]
    assert "made-up" not in teacher + student and "SmolLM" not in teacher + student  # our prompt replaces theirs


def test_what_is_taught_to_end_a_turn_is_what_ends_a_completion(shape, shaped, golden):
    """Fine-tuning, sampling, scoring and the count of finished completions agree, whatever the tokenizer's EOS is."""
    chat = ChatFormat(shaped, BESPOKE, "Teach.", "Solve.")
    ends = eos_ids(shaped, golden / "student")
    end = shaped.convert_tokens_to_ids(shape.end)
    assert end in ends and shaped.convert_tokens_to_ids(shape.eos) in ends
    for target in ("teacher", "student"):
        (example,) = build_sft_examples([ROW], chat, target=target, max_length=512).examples
        trained = example.ids[example.trained]
        assert trained.tolist().count(end) == 1
        assert not set(trained[: trained.tolist().index(end)].tolist()) & set(ends)
    (example,) = build_sft_examples([ROW], chat, target="teacher", max_length=512).examples
    (prompt,) = build_prompts([ROW], chat, max_prompt_length=512).prompts
    taught = example.ids[example.trained]
    sampled = taught[: taught.tolist().index(end) + 1]
    row = score_row_from_ids(prompt, sampled, chat, ends)
    assert row.matched and row.explanation == "Two and three make five.\n\n"
    text = "".join(shaped.batch_decode([sampled]))
    assert text.endswith(shape.end)
    from_text = score_row_from_text(
        prompt.teacher_text, text, question=ROW.question, solution="5", chat=chat, row_system=ROW.system
    )
    assert from_text.matched and from_text.explanation == row.explanation
    unclosed = "Two and three" + shape.ending  # the end of the turn is no part of an explanation without an end tag
    cut = score_row_from_text(
        prompt.teacher_text, unclosed, question=ROW.question, solution="5", chat=chat, row_system=ROW.system
    )
    assert cut.explanation == "Two and three" and not cut.matched


def test_a_model_that_is_asked_in_its_own_way_keeps_its_opening(shape, shaped):
    chat = ChatFormat(shaped)
    assert plain_chat_text("Why?", chat, system=None).endswith(shape.header + shape.opened)
    assert plain_chat_text("Why?", chat, system="Be brief.").count("Be brief.") == 1
    default = plain_chat_text("Why?", chat, system=None)
    assert ("made-up" in default or "SmolLM" in default) == ("made-up" in shape.template or "SmolLM" in shape.template)


def test_departures_from_a_template_are_named(golden):
    def notes(name):
        return " ".join(template_notes(shaped_tokenizer(SHAPES[name], golden / "teacher")))

    assert notes("qwen2.5") == notes("llama3") == notes("qwen3") == ""
    assert "begins the assistant's turn with '<think>\\n', which is left out" in notes("r1-distill")
    assert "has no system turn: the system prompt begins the user's" in notes("gemma")
    assert "generation prompt lacks '<|im_start|>assistant\\n', which it writes before an" in notes("no-prompt")


def test_a_system_prompt_without_a_turn_of_its_own_begins_the_question(golden):
    chat = ChatFormat(shaped_tokenizer(SHAPES["gemma"], golden / "teacher"), R1, "Teach.", "Solve.")
    assert student_header_text("Why?", chat) == (
        "<bos><start_of_turn>user\nSolve.\n\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_prompts_are_the_same_on_every_day(golden):
    chat = ChatFormat(shaped_tokenizer(SHAPES["llama3"], golden / "teacher"))
    assert "Today Date: 26 Jul 2024" in student_header_text("Why?", chat)
    other = load_tokenizer(golden / "teacher")
    other.chat_template = "\n{{ strftime_now('%d %B %Y') }}\n" + SHAPES["qwen2.5"].template
    header = student_header_text("Why?", ChatFormat(other))
    assert header.startswith("\n26 Jul 2024\n<|im_start|>")


REFUSED = {
    "no answer": ("{{ messages[0].content }}{{ messages[1].content }}", "the assistant.s text, once, .* 0 times"),
    "an answer twice": ("{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}"
                        "{% endfor %}", "2 times"),
    "no question": ("{{ messages[0].content }}", "then the question, each once, but this one writes 1 and 0:"),
    "two prompts": ("{% for m in messages %}{{ m.content }}{{ messages[0].content }}{% endfor %}", "writes 3 and 1 in"),
    "question first": ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "1 and 1 in the other order"),
    "nothing at all": ("{{ raise_exception('not for chats') }}", "but it says: not for chats"),
    "an undefined name": ("{{ nobody.knows }}", "but it says: 'nobody' is undefined"),
    "not a template": ("{% for %}", "but it says: "),
}  # fmt: skip


@pytest.mark.parametrize(("template", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_templates_that_lose_a_text_are_refused(golden, template, message):
    tokenizer = load_tokenizer(golden / "teacher")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        ChatFormat(tokenizer)


def test_several_templates_without_a_default_are_refused(golden):
    tokenizer = load_tokenizer(golden / "teacher")
    tokenizer.chat_template = {"tools": SHAPES["qwen2.5"].template, "rag": SHAPES["qwen2.5"].template}
    with pytest.raises(UserError, match="expected one chat template, or one called default, but: "):
        ChatFormat(tokenizer)
    tokenizer.chat_template = {"tools": "{{ nothing }}", "default": SHAPES["qwen2.5"].template}
    assert student_header_text("Why?", ChatFormat(tokenizer)).endswith("<|im_start|>assistant\n")


def test_a_channel_that_the_generation_prompt_leaves_open_is_that_of_answers(golden):
    """As in gpt-oss, where the model itself would choose the channel."""
    tokenizer = load_tokenizer(golden / "teacher")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}[final]{% endif %}{{ m.content }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = ChatFormat(tokenizer, student_prompt="Solve.")
    assert student_header_text("Why?", chat) == "[system]Solve.<|im_end|>[user]Why?<|im_end|>[assistant][final]"
    assert plain_chat_text("Why?", chat, system=None) == "[user]Why?<|im_end|>[assistant]"


def test_a_template_that_ignores_the_system_turn_gets_the_prompt_in_the_users(golden):
    tokenizer = load_tokenizer(golden / "teacher")
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert student_header_text("Why?", ChatFormat(tokenizer, student_prompt="Solve.")) == (
        "[user]Solve.\n\nWhy?<|im_end|>[assistant]"
    )


def test_fine_tuning_needs_a_token_that_ends_a_turn(golden):
    tokenizer = load_tokenizer(golden / "teacher")
    tokenizer.chat_template = (
        "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant: {% endif %}"
    )
    chat = ChatFormat(tokenizer)
    assert end_of_turn(tokenizer) == "\n" and turns_of(tokenizer).end_id is None
    with pytest.raises(UserError, match=r"ends an assistant's turn with a token, .* writes '\\n': let chat_template"):
        build_sft_examples([ROW], chat, target="student", max_length=512)
    assert student_closing_text("5", chat).endswith("<|end_of_solution|>\n")  # fine for a student that only reads
    assert encode(tokenizer, student_closing_text("5", chat)).size


HOSTILE = [
    "Why?",
    "",
    " \n padded\t ",
    "</think>x<think>",
    "{{ 1 }}{% raw %}",
    "<|im_end|>",
    "<tool_response>a</tool_response>",
]


def test_many_chats_are_each_what_the_template_writes_alone(shape, shaped):
    """Also where the template trims a text or looks into it."""
    asked = [(system, question) for system in [None, *HOSTILE] for question in HOSTILE]
    turns = turns_of(shaped)
    expected = []
    for system, question in asked:
        if system is not None and not turns.has_system:
            system, question = None, f"{system}\n\n{question}"
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": question})
        text = shaped.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=TODAY)
        expected.append(text.removesuffix(shape.opened) + shape.missing)
    assert chat_texts(shaped, asked, own_opening=False) == expected
    assert [chat_text(shaped, *one, own_opening=False) for one in asked] == expected
    assert chat_texts(shaped, [], own_opening=False) == []
