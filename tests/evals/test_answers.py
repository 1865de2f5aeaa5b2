"""What a model answered: where it stands, how it is read, and what counts as equal."""

import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from rlt_jax.data import BESPOKE, R1
from rlt_jax.evals.answers import Graded, answer_text, grade_choice, grade_math, grade_text


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


TABLE = [
    json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8").splitlines()
]
MISSES = {  # right answers of the table that count as wrong
    "There were 1,200 at first, 300 left, and 900 stayed.": "two numbers joined by `and` are two answers",
}


def graded(case: dict) -> Graded:
    match case["kind"]:
        case "math":
            return grade_math(case["text"], case["expected"])
        case "text":
            return grade_text(case["text"], case["expected"])
        case "choice":
            return grade_choice(case["text"], case["expected"], "ABCD")
    raise AssertionError(case)


def test_the_table_of_labelled_answers():
    """At least 99 % as labelled, no wrong answer taken for right, and no miss that is not known."""
    wrong = [(case, found) for case in TABLE if (found := graded(case)).correct != case["right"]]
    assert [(case, found) for case, found in wrong if found.correct] == []
    assert {case["text"] for case, _ in wrong} == set(MISSES)
    assert len(wrong) <= 0.01 * len(TABLE)


def test_the_table_is_a_measure():
    """Both labels in every kind, a reason for each line, and no line twice."""
    assert len(TABLE) >= 300
    assert all(case.keys() == {"kind", "group", "part", "text", "expected", "right", "why"} for case in TABLE)
    assert all(case["why"].strip() for case in TABLE)
    assert max(Counter((case["kind"], case["text"], case["expected"]) for case in TABLE).values()) == 1
    for kind in ("math", "text", "choice"):
        labels = [case["right"] for case in TABLE if case["kind"] == kind]
        assert 0.35 < sum(labels) / len(labels) < 0.65


HARD = {  # each takes minutes, or all memory, where nothing bounds it
    "a tower": "9**9**9**9",
    "a tower in LaTeX": "$9^{9^{9}}$",
    "a factorial": "(10^9)!",
    "a huge power": "10^1000000",
    "a huge exponent": "1e999999999",
    "digits": "1" * 100_000,
    "braces": "{" * 100_000,
    "boxes": r"\boxed{" * 14_000,
    "a sum of 50,000": "1+" * 50_000 + "1",
    "brackets": "(" * 100_000,
    "blanks": "7" + " " * 100_000 + "7",
    "lines": "\n" * 100_000 + "7",
    "stars": "**a" * 30_000,
    "signs": "-" * 100_000,
    "declarations": "the answer is 7 " * 6_000,
    "labels": "answer:" * 14_000,
    "corrections": "the answer is B. " + "no wait " * 12_000,
    "letters": "A is " * 20_000,
    "formulas": "$1$, " * 20_000,
    "quotes": '"' * 100_000,
    "repeating": r"0.\overline{" + "3" * 90_000 + "}",
    "half a pair": "\ud800 7",
}


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_any_text_takes_at_most_five_seconds(text):
    grades = [
        lambda: grade_math(text, "x^2+1"),
        lambda: grade_math("x^2+1", text),
        lambda: grade_text(text, "8"),
        lambda: grade_text("8", text),
        lambda: grade_choice(text, "C", "ABCD"),
    ]
    for grade in grades:
        start = time.monotonic()
        assert grade().correct is False
        assert time.monotonic() - start < 5


def test_after_a_formula_that_was_given_up_the_next_is_compared():
    assert not grade_math("$9^{9^{9}}$", "x^2+1").correct
    assert grade_math("(x+1)^2", "x^2+2x+1").correct


def test_other_threads_can_grade():
    """math-verify's own limit of time needs the main thread."""
    found = {}

    def run(number: int) -> None:
        start = time.monotonic()
        tower = grade_math("$9^{9^{9}}$", "x^2+1").correct if number == 0 else False
        found[number] = (tower, grade_math(f"x+{number}", f"{number}+x").correct, time.monotonic() - start)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number][:2] for number in range(3)] == [(False, True)] * 3
    assert max(seconds for *_, seconds in found.values()) < 10
