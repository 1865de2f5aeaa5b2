"""Which tokens count, against the original's recorded spans, and token by token for anything a teacher may write."""

import json
import shutil
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_jax.data import (
    R1,
    ChatFormat,
    build_prompts,
    copy_rate,
    encode,
    explanation_to_completion,
    ids_to_bytes,
    load_tokenizer,
    repeat_rate,
    score_row_from_ids,
    score_row_from_text,
    student_prefix_text,
)
from rlt_jax.data.spans import _inside_character
from rlt_jax.errors import UserError
from rlt_jax.types import Prompt, Row, ScoreRow

EOS = (999,)

# Golden cases on which we differ, and why (fixes). Which of ids and spans still agree is asserted below.
MENDED = {
    "thought_occurs_in_question": "the original finds the student's thought in the question",
    "trailing_merge_mismatch": "`?!)<|` merges: the original escapes its tags and scores shifted spans",
    "leading_merge_mismatch": "`>([-` merges: the original escapes its tags and loses the thought",
    "missing_end_tag_empty_completion": "an empty thought: escaped tags, and a search for no tokens",
    "empty_thought_after_padding": "an empty thought: escaped tags, and a search for no tokens",
    "empty_thought_no_padding": "an empty thought: a search for no tokens",
}
SAME_TEACHER_IDS = {"thought_occurs_in_question", "empty_thought_no_padding"}
SAME_STUDENT_IDS = {"thought_occurs_in_question", "empty_thought_no_padding"}
EMPTY = {"missing_end_tag_empty_completion", "empty_thought_after_padding", "empty_thought_no_padding"}


def from_text(case: dict, chat: ChatFormat) -> ScoreRow:
    inputs = case["inputs"]
    return score_row_from_text(
        inputs["prompts"],
        inputs["completions"],
        question=inputs["questions"],
        solution=inputs["solutions_content"],
        chat=chat,
    )


def text_of(chat: ChatFormat, ids: np.ndarray) -> str:
    return b"".join(ids_to_bytes(chat.tokenizer, ids)).decode(errors="replace")


def prompt_of(chat: ChatFormat, question: str, solution: str) -> Prompt:
    row = Row(number=0, question=question, solution=solution, reasoning_trace=None, system=None)
    return build_prompts([row], chat, max_prompt_length=1000).prompts[0]


def test_golden_cases_from_text(reward_cases, chat):
    for name in reward_cases.keys() - MENDED.keys():
        case, row = reward_cases[name], from_text(reward_cases[name], chat)
        assert row.teacher_ids.tolist() == case["teacher_text_ids"], name
        assert row.student_ids.tolist() == case["student_chat_ids"], name
        assert row.teacher_thought.tolist() == list(range(*case["teacher_thought_token_span"])), name
        assert row.student_thought.tolist() == list(range(*case["student_thought_token_span"])), name
        assert row.solution.tolist() == list(range(*case["student_solution_token_span"])), name
        assert row.matched is not case["match_penalised"], name
        assert text_of(chat, row.teacher_ids[row.teacher_thought]) == case["teacher_thought_text"], name
    assert len(reward_cases) == 27 and len(reward_cases.keys() - MENDED.keys()) == 21


def test_golden_cases_that_are_fixed(reward_cases, chat):
    for name in MENDED:
        case, row = reward_cases[name], from_text(reward_cases[name], chat)
        assert (row.teacher_ids.tolist() == case["teacher_text_ids"]) is (name in SAME_TEACHER_IDS), name
        assert (row.student_ids.tolist() == case["student_chat_ids"]) is (name in SAME_STUDENT_IDS), name
        assert text_of(chat, row.student_ids[row.solution]) == case["student_solution_text"], name
        assert row.matched is (name not in EMPTY), name
        if name in EMPTY:
            assert (row.teacher_thought.shape, row.student_thought.shape, row.explanation) == ((0,), (0,), ""), name
            continue
        thought = row.teacher_ids[row.teacher_thought]
        assert thought.tolist() == row.student_ids[row.student_thought].tolist(), name
        kept = {
            "thought_occurs_in_question": "What is 17 + 25",
            "trailing_merge_mismatch": "We add 17 and 25 (is it 42?",  # `!)<|` straddles
            "leading_merge_mismatch": "- 17 + 25 -]) is 42\n\n",  # `>([` straddles
        }[name]
        assert text_of(chat, thought) == kept, name


def test_the_thought_is_not_taken_from_the_question(reward_cases, chat):
    row = from_text(reward_cases["thought_occurs_in_question"], chat)
    before = text_of(chat, row.student_ids[: row.student_thought[0]])
    assert before.endswith("<|im_start|>assistant\n<|begin_of_thought|>")


def test_both_ways_agree_where_the_tokens_do(reward_cases, chat):
    """Sampling the completion's own tokens gives the same row, if prompt and completion do not merge."""
    agreed = []
    for name in reward_cases.keys() - EMPTY:
        inputs, by_text = reward_cases[name]["inputs"], from_text(reward_cases[name], chat)
        prompt = prompt_of(chat, inputs["questions"], inputs["solutions_content"])
        if prompt.teacher_text != inputs["prompts"]:
            continue  # prompts without the start tag or its newlines never reach a sampler
        sampled = encode(chat.tokenizer, inputs["completions"])
        row = score_row_from_ids(prompt, np.append(sampled, EOS[0]).astype(np.int32), chat, EOS)
        assert row.matched is by_text.matched
        assert row.explanation == unicodedata.normalize("NFC", by_text.explanation)  # as the tokenizer normalises
        assert row.copy_rate == pytest.approx(by_text.copy_rate, abs=1e-12)
        assert row.repeat_rate == pytest.approx(by_text.repeat_rate, abs=1e-12)
        if row.matched:  # else the text way has put the end tag that the sampler did not
            assert row.teacher_ids[:-1].tolist() == by_text.teacher_ids.tolist()
        assert row.student_ids.tolist() == by_text.student_ids.tolist()
        assert row.teacher_thought.tolist() == by_text.teacher_thought.tolist()
        assert row.student_thought.tolist() == by_text.student_thought.tolist()
        assert row.solution.tolist() == by_text.solution.tolist()
        agreed.append(name)
    assert len(agreed) == 18


def test_unmatched_completion_is_thought_to_its_end(chat):
    prompt = prompt_of(chat, "q", "5")
    sampled = encode(chat.tokenizer, "Because two and three")
    for ids in (sampled, np.append(sampled, 999)):  # cut off, or ended without a tag
        row = score_row_from_ids(prompt, ids, chat, EOS)
        assert not row.matched and row.explanation == "Because two and three"
        assert row.teacher_thought.tolist() == list(
            range(len(prompt.teacher_ids), len(prompt.teacher_ids) + len(sampled))
        )
        assert row.student_ids[row.student_thought].tolist() == sampled.tolist()
        assert len(row.teacher_ids) == len(prompt.teacher_ids) + len(ids)


def test_every_eos_ends_the_thought(chat):
    prompt = prompt_of(chat, "q", "5")
    sampled = np.array([*encode(chat.tokenizer, "Two"), 997, 999], np.int32)
    assert score_row_from_ids(prompt, sampled, chat, (999,)).explanation == "Two<|endoftext|>"
    assert score_row_from_ids(prompt, sampled, chat, (999, 997)).explanation == "Two"


@pytest.mark.parametrize("completion", ["", "<|end_of_explanation|>", ".<|end_of_explanation|>"])
def test_thought_without_a_token_is_not_matched(completion, chat):
    """`.<|` is one token: the thought `.` has no token of its own, but the student still reads it."""
    prompt = prompt_of(chat, "q", "5")
    row = score_row_from_ids(prompt, encode(chat.tokenizer, completion), chat, EOS)
    assert not row.matched and row.copy_rate == 0.0
    assert row.teacher_thought.shape == row.student_thought.shape == (0,)
    assert row.teacher_thought.dtype == row.student_thought.dtype == row.solution.dtype == np.int32
    thought = completion.partition("<|end")[0]
    closing = f"{thought}<|end_of_thought|>\n\n<|begin_of_solution|>5<|end_of_solution|><|im_end|>\n"
    assert text_of(chat, row.student_ids).endswith("<|begin_of_thought|>\n\n" + closing)


def test_straddling_token_moves_into_the_students_suffix(chat):
    prompt = prompt_of(chat, "q", "5")
    sampled = encode(chat.tokenizer, "So 5.<|end_of_explanation|>")
    assert b".<|" in ids_to_bytes(chat.tokenizer, sampled)
    row = score_row_from_ids(prompt, sampled, chat, EOS)
    assert row.matched and row.explanation == "So 5."
    assert text_of(chat, row.teacher_ids[row.teacher_thought]) == "So 5"
    after = row.student_ids[row.student_thought[-1] + 1 :]
    assert text_of(chat, after).startswith(".<|end_of_thought|>\n\n<|begin_of_solution|>5")
    assert text_of(chat, row.student_ids[row.solution]) == "5"


def test_straddler_that_begins_inside_a_character_takes_the_whole_character(golden, tmp_path, data_cases):
    """A tokenizer with a token of a euro sign's last bytes and `<`: the golden one has none, so one is made."""
    shutil.copytree(golden / "teacher", tmp_path / "t", ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "t" / "tokenizer.json"
    table = json.loads(file.read_text())
    euro = encode(load_tokenizer(golden / "teacher"), "€")
    last_bytes = next(token for token, i in table["model"]["vocab"].items() if i == euro[-1])
    assert ids_to_bytes(load_tokenizer(golden / "teacher"), euro)[-1] == b"\x82\xac"
    old = next(token for token, i in table["model"]["vocab"].items() if i == 996)
    table["model"]["vocab"].pop(old)
    table["model"]["vocab"][last_bytes + "<"] = 996
    table["model"]["merges"] = [pair for pair in table["model"]["merges"] if "".join(pair) != old]
    file.write_text(json.dumps(table))
    chat = ChatFormat(load_tokenizer(tmp_path / "t"))
    prompt = prompt_of(chat, "q", "5")
    tail = encode(chat.tokenizer, "|end_of_explanation|>")
    sampled = np.concatenate([encode(chat.tokenizer, "It costs"), euro[:-1], [996], tail])
    row = score_row_from_ids(prompt, sampled, chat, EOS)
    assert row.matched and row.explanation == "It costs€"
    assert text_of(chat, row.teacher_ids[row.teacher_thought]) == "It costs"
    assert "It costs€<|end_of_thought|>" in text_of(chat, row.student_ids)


def test_ids_beyond_the_vocabulary_stay_in_the_thought(chat):
    """Models often have more embedding rows than tokens; a sampler may draw one."""
    prompt = prompt_of(chat, "q", "5")
    sampled = np.array([1005, *encode(chat.tokenizer, "So"), 1005, *encode(chat.tokenizer, "<|end_of_explanation|>")])
    row = score_row_from_ids(prompt, sampled, chat, EOS)
    assert row.matched and row.explanation == "So"
    assert row.student_ids[row.student_thought].tolist() == sampled[: len(row.student_thought)].tolist()
    assert row.student_ids[row.student_thought][-1] == 1005


def test_r1_chat_and_row_system(tokenizer):
    chat = ChatFormat(tokenizer, R1)
    row = Row(number=0, question="q", solution="\n5\n", reasoning_trace=None, system="Short.")
    prompt = build_prompts([row], chat, max_prompt_length=1000).prompts[0]
    sampled = encode(tokenizer, "Two and three.\n\n</explanation>")
    by_ids = score_row_from_ids(prompt, sampled, chat, EOS)
    by_text = score_row_from_text(
        prompt.teacher_text, "Two and three.\n\n</explanation><|im_end|>",
        question="q", solution="\n5\n", chat=chat, row_system="Short.",
    )  # fmt: skip
    assert text_of(chat, by_ids.student_ids) == (
        "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n"
        "Two and three.\n\n</think>\n\n<solution>\n5\n</solution><|im_end|>\n"
    )
    assert by_ids.matched and by_text.matched and by_ids.explanation == by_text.explanation == "Two and three.\n\n"
    assert by_ids.teacher_ids.tolist() == by_text.teacher_ids.tolist()
    assert by_ids.student_ids.tolist() == by_text.student_ids.tolist()
    assert by_ids.solution.tolist() == by_text.solution.tolist() and len(by_ids.solution) == 3
    # `>` and the padding do not merge here: from text the padding counts too, from ids it belongs to the prompts
    assert by_ids.teacher_thought.tolist() == by_text.teacher_thought.tolist()[1:]
    assert text_of(chat, by_text.student_ids[by_text.student_thought]) == "\n\nTwo and three.\n\n"


def test_empty_thought_from_text_has_no_tokens_even_where_the_padding_has_one(tokenizer):
    chat = ChatFormat(tokenizer, R1)
    prompt = prompt_of(chat, "q", "5")
    row = score_row_from_text(prompt.teacher_text, "</explanation>", question="q", solution="5", chat=chat)
    assert "<explanation>\n\n</explanation>" in text_of(chat, row.teacher_ids)
    assert not row.matched and row.explanation == ""
    assert row.teacher_thought.shape == row.student_thought.shape == (0,)


def test_what_is_inside_a_character():
    text = "a€🙂é".encode() + b"\x80<"  # 1 + 3 + 4 + 2 bytes, a stray continuation byte, 1
    assert [place for place in range(len(text)) if _inside_character(text, place)] == [2, 3, 5, 6, 7, 9]
    assert not _inside_character(b"\xe2<", 1)  # a first byte without the rest


def test_copied_solution_shows_in_the_copy_rate(chat):
    solution = "Step 1. The key is in blue.\nStep 2. Hence the coin is not in green."
    prompt = prompt_of(chat, "q", solution)
    honest = encode(chat.tokenizer, "Look at each box in turn.\n\n<|end_of_explanation|>")
    copied = np.concatenate([prompt.solution_ids, encode(chat.tokenizer, "\n\n<|end_of_explanation|>")])
    row = score_row_from_ids(prompt, copied, chat, EOS)
    assert score_row_from_ids(prompt, honest, chat, EOS).copy_rate == 0.0
    thought = row.teacher_ids[row.teacher_thought]
    assert row.copy_rate == copy_rate(thought, prompt.solution_ids) == len(prompt.solution_ids) / len(thought) > 0.9


def test_a_sentence_said_again_shows_in_the_repeat_rate(chat):
    prompt = prompt_of(chat, "q", "The key is in blue.")
    sentence = "So the coin is not in the green box, as the label of the green box is wrong.\n"

    def rates(text: str) -> list[float]:
        row = score_row_from_ids(prompt, encode(chat.tokenizer, text), chat, EOS)
        return [row.repeat_rate, repeat_rate(row.teacher_ids[row.teacher_thought])]

    once, twice = rates(sentence + "\n<|end_of_explanation|>"), rates(3 * sentence + "\n<|end_of_explanation|>")
    assert once == [0.0, 0.0] and twice[0] == twice[1]
    assert 0.55 < twice[0] < 0.7


def test_explanation_becomes_a_matched_completion(reward_cases, chat):
    case = reward_cases["well_formed_short"]
    for text in ("Add 17 and 25. 17 + 25 = 42.", "\n\nAdd 17 and 25. 17 + 25 = 42.\n\n",
                 "<|begin_of_thought|>\nAdd 17 and 25. 17 + 25 = 42.\n<|end_of_thought|>"):  # fmt: skip
        assert explanation_to_completion(text, chat.tags) == case["inputs"]["completions"]
    for text, message in [
        (" \n", "expected an explanation, but it is empty"),
        ("a<|end_of_explanation|>b", r"it holds <\|end_of_explanation\|>: give a teacher's raw output as completion"),
    ]:
        with pytest.raises(UserError, match=message):
            explanation_to_completion(text, chat.tags)


def test_penalty_once_and_thought_of_the_first_pair(chat):
    """The end tag is appended first, the start tag put in front only when that does not close the tags."""
    prompt = prompt_of(chat, "q", "5").teacher_text.removesuffix("<|begin_of_explanation|>\n\n")
    row = score_row_from_text(prompt, "A<|end_of_explanation|>", question="q", solution="5", chat=chat)
    assert text_of(chat, row.teacher_ids) == prompt + (
        "<|begin_of_explanation|>A<|end_of_explanation|><|end_of_explanation|>"
    )
    assert not row.matched and row.explanation == "A"
    row = score_row_from_text(
        prompt, "B<|begin_of_explanation|>A<|end_of_explanation|>", question="q", solution="5", chat=chat
    )
    assert row.matched and row.explanation == "A"


def test_start_tag_written_by_the_teacher_needs_no_padding(chat):
    prompt = prompt_of(chat, "q", "5").teacher_text.removesuffix("<|begin_of_explanation|>\n\n")
    text = "<|begin_of_explanation|><|end_of_explanation|>"
    row = score_row_from_text(prompt, text, question="q", solution="5", chat=chat)
    assert not row.matched and row.teacher_thought.shape == (0,)


@pytest.fixture(scope="module")
def property_prompt(chat) -> Prompt:
    return prompt_of(replace(chat, teacher_prompt="T", student_prompt="S"), "Why?", "Because of 5.")


TAG_PIECES = [
    "<|end_of_explanation|>",
    "<|end_of_thought|>",
    "<|end_of",
    "<",
    "|>",
    "\n\n",
    ".",
    "<|im_start|>",
    "€",
    "🙂",
]
chunks = st.lists(
    st.one_of(
        st.sampled_from(TAG_PIECES),
        st.text(st.characters(blacklist_categories=["Cs"]), max_size=8),
        st.integers(0, 1003),  # any single token, so that characters are split in all ways, and ids without a token
    ),
    max_size=12,
)


@given(chunks=chunks)
@settings(max_examples=300, deadline=None)
def test_any_sampled_ids(chunks, chat, property_prompt):
    """Both spans hold the same ids, and the student reads exactly what the teacher wrote before the tag."""
    prompt, tokenizer = property_prompt, chat.tokenizer
    parts = [[c] if isinstance(c, int) else encode(tokenizer, c).tolist() for c in chunks]
    sampled = np.array([i for part in parts for i in part if i not in EOS], np.int32)
    short = replace(chat, teacher_prompt="T", student_prompt="S")
    row = score_row_from_ids(prompt, np.append(sampled, EOS), short, EOS)

    written = b"".join(ids_to_bytes(tokenizer, sampled))
    before, tag, _ = written.partition(b"<|end_of_explanation|>")
    count, prefix = len(row.teacher_thought), len(prompt.student_prefix_ids)
    assert row.teacher_ids.tolist() == [*prompt.teacher_ids, *sampled, *EOS]
    assert row.teacher_thought.tolist() == list(range(len(prompt.teacher_ids), len(prompt.teacher_ids) + count))
    assert row.student_thought.tolist() == list(range(prefix, prefix + count))
    assert row.student_ids[prefix : prefix + count].tolist() == sampled[:count].tolist()
    assert row.matched is (bool(tag) and count > 0)
    assert row.explanation == before.decode(errors="replace")

    thought = b"".join(ids_to_bytes(tokenizer, sampled[:count]))
    assert before.startswith(thought)
    lead = before[len(thought) :]
    rest = text_of(chat, row.student_ids[prefix + count :])
    closing = "<|end_of_thought|>\n\n<|begin_of_solution|>Because of 5.<|end_of_solution|><|im_end|>\n"
    assert rest == unicodedata.normalize("NFC", lead.decode(errors="replace") + closing)
    if lead and len(lead) >= len(ids_to_bytes(tokenizer, sampled[count : count + 1])[0]):
        lead.decode()  # more than the straddling token was taken back only to keep a character whole
    assert text_of(chat, row.student_ids[row.solution]) in "Because of 5."
    assert 0.0 <= row.copy_rate <= 1.0


@given(text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=40), closed=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_text(text, closed, chat, property_prompt):
    """The tokens that count are the same ids in both chats, in order, and lie inside the thought."""
    short = replace(chat, teacher_prompt="T", student_prompt="S")
    row = score_row_from_text(
        property_prompt.teacher_text,
        text + "<|end_of_explanation|>" * closed,
        question="Why?",
        solution="Because of 5.",
        chat=short,
    )
    assert row.explanation == text
    assert row.matched is (closed and len(row.teacher_thought) > 0)
    assert row.teacher_ids[row.teacher_thought].tolist() == row.student_ids[row.student_thought].tolist()
    assert np.all(np.diff(row.teacher_thought) > 0) and np.all(np.diff(row.student_thought) > 0)
    if len(row.teacher_thought):
        opening = encode(chat.tokenizer, student_prefix_text("Why?", short).removesuffix(">\n\n"))
        assert row.student_thought[0] >= len(opening)
        counted = text_of(chat, row.teacher_ids[row.teacher_thought])
        assert counted in unicodedata.normalize("NFC", "\n\n" + text)
    if text.isalnum() and text.isascii():  # nothing merges at such a seam
        assert text_of(chat, row.teacher_ids[row.teacher_thought]) == text


# a student that reads the text in tokens of its own


def own_tokens(golden, folder, change):
    """A chat format whose student has the golden tokenizer after a change of its tokenizer.json."""
    shutil.copytree(golden / "student", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    table = json.loads((folder / "tokenizer.json").read_text())
    change(table)
    (folder / "tokenizer.json").write_text(json.dumps(table))
    return ChatFormat(
        load_tokenizer(golden / "teacher"),
        teacher_prompt="Teach.",
        student_prompt="Solve.",
        student_tokenizer=load_tokenizer(folder),
        student_tokens="text",
    )


STUDENTS = {
    "single bytes": lambda table: table["model"].update(merges=[]),
    "half the merges": lambda table: table["model"].update(merges=table["model"]["merges"][::2]),
    "the teacher's": lambda table: None,
    "other ids": lambda table: table["model"].update(
        vocab={token: 996 - i for token, i in table["model"]["vocab"].items()}
    ),
}


@pytest.fixture(scope="module", params=STUDENTS)
def text_chat(request, golden, tmp_path_factory):
    return own_tokens(golden, tmp_path_factory.mktemp("student") / "student", STUDENTS[request.param])


def read_by_both(chat, row):
    """(text, text) of every token of the thought that counts, as teacher and student have it."""
    return [
        (chat.tokenizer.decode([row.teacher_ids[t]]), chat.student.decode([row.student_ids[s]]))
        for t, s in zip(row.teacher_thought, row.student_thought, strict=True)
    ]


@pytest.mark.parametrize(
    "completion", ["So 2 and 3 make 5: a sum.", "Zoë pays 5 € — ✓ 🙂", "\n\n  x = 1\n\ty\n\n", "."]
)
def test_tokens_of_the_same_characters_count(text_chat, completion):
    chat = text_chat
    prompt = prompt_of(chat, "What is 2+3?", "\nfive: 5\n")
    sampled = encode(chat.tokenizer, completion + chat.tags.explanation_end)
    row = score_row_from_ids(prompt, np.append(sampled, EOS[0]), chat, EOS)
    student = chat.student.decode(row.student_ids)
    assert student == (
        "<|im_start|>system\nSolve.<|im_end|>\n<|im_start|>user\nWhat is 2+3?<|im_end|>\n<|im_start|>assistant\n"
        f"<|begin_of_thought|>\n\n{completion}<|end_of_thought|>\n\n<|begin_of_solution|>\nfive: 5\n<|end_of_solution|>"
        "<|im_end|>\n"
    )
    assert row.student_ids.tolist() == encode(chat.student, student).tolist()
    solution = chat.student.decode(row.student_ids[row.solution])
    assert solution and solution in "\nfive: 5\n" and "5" in solution
    pairs = read_by_both(chat, row)
    assert all(ours == theirs for ours, theirs in pairs)
    assert row.matched == bool(pairs)
    assert row.explanation == completion
    assert len(pairs) <= len(encode(chat.tokenizer, completion))


def test_the_students_tokens_of_the_whole_chat_are_those_of_both_entry_points(text_chat):
    chat, completion = text_chat, "So 2 and 3 make 5.\n\n"
    prompt = prompt_of(chat, "q", "five")
    sampled = encode(chat.tokenizer, completion + chat.tags.explanation_end)
    by_ids = score_row_from_ids(prompt, sampled, chat, EOS)
    by_text = score_row_from_text(
        prompt.teacher_text, completion + chat.tags.explanation_end, question="q", solution="five", chat=chat
    )
    assert by_ids.student_ids.tolist() == by_text.student_ids.tolist()
    assert by_ids.solution.tolist() == by_text.solution.tolist()
    shared = set(by_ids.student_thought.tolist()) & set(by_text.student_thought.tolist())
    assert shared and shared >= set(by_text.student_thought.tolist()) - {int(by_text.student_thought[0])}


def test_one_tokenizer_read_as_text_gives_what_its_ids_give(golden, tmp_path):
    chat = own_tokens(golden, tmp_path / "student", STUDENTS["the teacher's"])
    prompt = prompt_of(chat, "q", "five")
    sampled = np.append(encode(chat.tokenizer, "Two and three make five.\n\n<|end_of_explanation|>"), 999)
    by_text = score_row_from_ids(prompt, sampled, chat, EOS)
    by_ids = score_row_from_ids(prompt, sampled, replace(chat, student_tokens="ids"), EOS)
    for field in ("student_ids", "teacher_ids", "student_thought", "teacher_thought", "solution"):
        assert getattr(by_text, field).tolist() == getattr(by_ids, field).tolist(), field


@pytest.mark.parametrize("closed", [True, False])
def test_bytes_that_are_no_text_count_for_nobody(text_chat, closed):
    """A sampler may draw half a character; the student reads the replacement character in its place."""
    chat = text_chat
    prompt = prompt_of(chat, "q", "5")
    half = encode(chat.tokenizer, "€")[:-1]
    ids = [*encode(chat.tokenizer, "It "), *half, *encode(chat.tokenizer, " is so" + "<|end_of_explanation|>" * closed)]
    row = score_row_from_ids(prompt, np.array(ids, np.int32), chat, EOS)
    assert row.matched == closed and row.explanation == "It \ufffd is so"
    assert "It \ufffd is so<|end_of_thought|>" in chat.student.decode(row.student_ids)
    assert all(ours == theirs and "\ufffd" not in ours for ours, theirs in read_by_both(chat, row))


def test_a_tag_that_is_one_token_to_the_teacher_only(golden, tmp_path):
    """As with a teacher whose tokenizer has `<think>` and a student whose does not."""
    chat = own_tokens(golden, tmp_path / "student", lambda table: None)
    teacher = load_tokenizer(golden / "teacher")
    teacher.add_tokens(["<think>", "</think>"])
    chat = replace(chat, tokenizer=teacher, tags=R1)
    prompt = prompt_of(chat, "q", "five")
    sampled = encode(teacher, "A <think> is a tag.\n\n</explanation>")
    row = score_row_from_ids(prompt, sampled, chat, EOS)
    assert max(row.student_ids) < 1000 <= max(row.teacher_ids)  # its own tokens only
    assert "A <think> is a tag." in chat.student.decode(row.student_ids)
    pairs = read_by_both(chat, row)
    assert pairs[-3:] and all(ours == theirs != "<think>" for ours, theirs in pairs)


@pytest.mark.parametrize("solution", ["()", ".", ")"])
def test_rows_whose_solution_merges_with_its_tags_are_skipped(chat, solution):
    rows = [Row(0, "q", "5", None, None), Row(3, "q", solution, None, None)]
    built = build_prompts(rows, chat, max_prompt_length=1000)
    assert [prompt.row.number for prompt in built.prompts] == [0]
    assert built.skipped == (
        (3, f"solution has no token of its own, as all of them hold a piece of a tag ({solution!r})"),
    )
