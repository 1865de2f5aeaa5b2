"""Questions that fit into the model, and those that do not."""

import time

import pytest

from rlt_jax.configs import PRESETS, EvaluateConfig, QuestionsConfig
from rlt_jax.data import Question, encode
from rlt_jax.errors import UserError
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.questions import fitting_questions, prompt_text

CONFIG = EvaluateConfig(
    model=PRESETS["tiny"].student, data=QuestionsConfig(path="none.jsonl"), out="none", max_completion_length=64
)
SHORT = Question(0, "What is 2+3?", "5", "", None)
POSITIONS = 1024


@pytest.fixture(scope="module")
def chat():
    return chat_format_of(CONFIG)


def test_a_question_fits_up_to_the_last_position(chat):
    long = Question(1, "What is 1" + "+1" * 300 + "?", "301", "", None)
    length = len(encode(chat.tokenizer, prompt_text(long, CONFIG, chat)))
    for most, fits in ((POSITIONS - length, True), (POSITIONS - length + 1, False)):
        config = EvaluateConfig(model=CONFIG.model, data=CONFIG.data, out="none", max_completion_length=most)
        questions, texts, prompts, skipped = fitting_questions([SHORT, long], config, chat)
        assert [question.number for question in questions] == [0, 1][: 1 + fits]
        assert [ids.tolist() for ids in prompts] == [encode(chat.tokenizer, text).tolist() for text in texts]
        reason = f"prompt and answer exceed the model's positions ({length} + {most}, at most {POSITIONS})"
        assert skipped == ([] if fits else [(1, reason)])
        if not fits:
            with pytest.raises(
                UserError, match=f"after prompts of {length} tokens and more: expected at most the 1024"
            ):
                fitting_questions([long], config, chat)


@pytest.mark.parametrize("text", ["1+" * 5_000_000, "漢字 " * 1_500_000], ids=["ascii", "unicode"])
def test_ten_megabytes_in_a_question_are_skipped_at_once(chat, text):
    before = time.process_time()
    questions, _, _, ((number, reason),) = fitting_questions([SHORT, Question(1, text, "5", "", None)], CONFIG, chat)
    assert time.process_time() - before < 2
    assert questions == [SHORT] and number == 1 and "(at least " in reason
