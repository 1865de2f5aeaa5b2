"""What of a completion is graded, and how."""

import numpy as np
import pytest

from rlt_jax.configs import EvaluateConfig, QuestionsConfig
from rlt_jax.data import ChatFormat, Question, encode
from rlt_jax.evals.grading import answer_record, opens_thought, outside_of_thought
from rlt_jax.types import Completion
from tests.data.templates import SHAPES, shaped_tokenizer


@pytest.mark.parametrize(
    ("text", "opened", "said"),
    [
        ("The answer is 5.", False, "The answer is 5."),
        ("<think>It could be 4.</think>The answer is 5.", False, "The answer is 5."),
        ("It could be 4.\n</think>\n\n5", True, "\n\n5"),
        ("It could be 4, or", True, ""),  # cut off while thinking: nothing is declared yet
        ("<think>It could be 4, or", False, ""),
        ("<think>4</think> no <think>5</think>6", False, "6"),
        ("<|begin_of_thought|>4<|end_of_thought|>5", False, "5"),
        ("</think>", True, ""),
        ("<thinking>4, no</thinking>5", False, "5"),
        ("[THINK]4, no[/THINK]5", False, "5"),
    ],
)
def test_a_thought_is_not_the_answer(text, opened, said):
    assert outside_of_thought(text, opened=opened) == said


@pytest.mark.parametrize(
    ("prompt", "completion", "correct"),
    [
        ("chat", "It could be 4, no.\n</think>\n\nThe answer is 5.", True),
        ("chat", "The answer is 5, I think, but", False),  # still thinking
        ("student", "It is 5.<|end_of_thought|>\n\n<|begin_of_solution|>5<|end_of_solution|>", True),
        ("student", "The answer is 5.", True),
    ],
)
def test_the_answer_of_a_completion_under_a_template_that_opens_a_thought(golden, prompt, completion, correct):
    chat = ChatFormat(shaped_tokenizer(SHAPES["thinking"], golden / "teacher"))
    ids = np.append(encode(chat.tokenizer, completion), 999).astype(np.int32)
    config = EvaluateConfig(model="m", data=QuestionsConfig(path="p"), out="o", prompt=prompt)
    record = answer_record(
        Question(3, "2+3?", "5", "", None), 0, Completion(ids, np.zeros(len(ids)), True, 0), config, chat
    )
    assert (record["correct"], record["completion"], record["row"]) == (correct, completion, 3)


def test_templates_that_open_a_thought(golden):
    opening = {name for name in SHAPES if opens_thought(ChatFormat(shaped_tokenizer(SHAPES[name], golden / "teacher")))}
    assert opening == {"thinking", "r1-distill"}  # that of no-think is closed again
