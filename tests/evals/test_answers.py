"""What a model answered: where it stands, how it is read, and what counts as equal."""

import time

import pytest

from rlt_jax.data import BESPOKE, R1
from rlt_jax.evals.answers import answer_text, grade_choice, grade_math, grade_text


def test_the_answer_stands_between_the_last_solution_tags():
    thought = "I could write <|begin_of_solution|>3<|end_of_solution|>, no.<|end_of_thought|>\n\n"
    assert answer_text(thought + "<|begin_of_solution|>5<|end_of_solution|>", BESPOKE) == "5"
    assert answer_text("Hm.</think><solution>5</solution> That is it.", R1) == "5"


@pytest.mark.parametrize("text", ["The answer is 5.", "<|begin_of_solution|>5", "5<|end_of_solution|>", ""])
def test_without_both_tags_it_stands_anywhere(text):
    assert answer_text(text, BESPOKE) == text


EQUAL = [  # answer, what was expected, how it is shown
    ("57", "57", "57"),
    ("First 83-57=26. Then 26+31=57.", "57", "57"),
    ("So 3 and 4 give $\\boxed{7}$, not 8.", "7", "7"),
    ("The final answer is $\\frac{1}{2}$. I hope 3 is wrong.", "0.5", "\\frac{1}{2}"),
    ("\\frac12", "1/2", "\\frac{1}{2}"),
    ("2x+3", "3 + 2x", "2x+3"),
    ("$1,234$", "1234", "1,234"),
    ("\\boxed{033}", "33", "033"),
    ("$\\boxed{(3, \\frac{\\pi}{2})}$", "\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\frac{\\pi}{2})"),
    ("\\boxed{90}", "90^\\circ", "90"),
    ("$x \\in [-2,7]$", "[-2,7]", "x \\in [-2,7]"),
    ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", "\\text{Evelyn}"),
    ("\\boxed{6 - 5i}", "$-5i + 6$", "6 - 5i"),
]
UNEQUAL = [
    ("58", "57"),
    ("2x+3", "2"),  # not the first number of a formula
    ("$\\frac{1}{3}$", "0.3"),
    ("(1,2]", "(1,2)"),
    ("\\boxed{x+1}", "x-1"),
]


@pytest.mark.parametrize(("text", "expected", "shown"), EQUAL)
def test_equal_as_mathematics(text, expected, shown):
    assert grade_math(text, expected) == (shown, True)


@pytest.mark.parametrize(("text", "expected"), UNEQUAL)
def test_unequal_as_mathematics(text, expected):
    answer, correct = grade_math(text, expected)
    assert answer is not None and not correct


@pytest.mark.parametrize("text", ["", "I do not know", "("])
def test_no_mathematics_at_all(text):
    assert grade_math(text, "57").correct is False


def test_a_long_ramble_is_searched_and_not_taken_for_a_formula():
    start = time.monotonic()
    assert grade_math("so we go on and on " * 2000 + "until 35", "35") == ("35", True)
    assert time.monotonic() - start < 4  # math-verify itself gives up after 5 s


@pytest.mark.parametrize(
    ("text", "expected", "answer", "correct"),
    [
        ("He pays $1,234.00 in all", "1234", "1,234.00", True),
        ("83-57=26", "26", "26", True),
        ("83-57", "-57", "57", False),  # that minus belongs to no number
        ("it is -5", "-5", "-5", True),
        ("first 57, then 58", "57", "58", False),
        ("\\boxed{57} and not 58", "57", "57", True),
        ("none", "57", None, False),
        ("  New\n York. ", "new york", "new york", True),
        ("\\boxed{\\text{Paris}}", "Paris", "paris", True),
        ("It is Paris", "Paris", "it is paris", False),
        ("", "Paris", None, False),
    ],
)
def test_answers_as_text(text, expected, answer, correct):
    assert grade_text(text, expected) == (answer, correct)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("The answer is (C).", "C"),
        ("Answer: **C**", "C"),
        ("A is wrong, so the correct option is D. A pity.", "D"),
        ("First I thought the answer is A, but the answer is B.", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("\\boxed{B) 5 apples}", "B"),
        ("The answer is A... no: \\boxed{D}", "D"),
        ("B) because A) is wrong", "B"),
        ("I choose (A)", "A"),
        ("A cat", None),
        ("The answer is Apples", None),
        ("The answer is E", None),  # there are four options
        ("", None),
    ],
)
def test_letters(text, letter):
    assert grade_choice(text, "B", "ABCD") == (letter, letter == "B")
