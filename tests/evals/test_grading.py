"""What of a completion is graded, and how."""

import pytest

from rlt_jax.data import ChatFormat
from rlt_jax.evals.grading import opens_thought, outside_of_thought
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
    ],
)
def test_a_thought_is_not_the_answer(text, opened, said):
    assert outside_of_thought(text, opened=opened) == said


def test_templates_that_open_a_thought(golden):
    opening = {name for name in SHAPES if opens_thought(ChatFormat(shaped_tokenizer(SHAPES[name], golden / "teacher")))}
    assert opening == {"thinking", "r1-distill"}  # that of no-think is closed again
