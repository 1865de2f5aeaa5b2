r"""Extract a model's answer and grade it: as mathematics, as text, or as the letter of an option.

math-verify parses and compares mathematics (LaTeX, fractions, sets, intervals, units, ...): `1/2`, `0.5` and
`$\frac{1}{2}$` are equal.
"""

import logging
import re
from decimal import Decimal
from typing import NamedTuple

import math_verify

from rlt_jax.data import Tags

logging.getLogger("math_verify").setLevel(logging.ERROR)  # its warning after a timeout of 5 s contains the whole text

MAX_FORMULA_LENGTH = 300  # characters, without delimiters; parsing a whole page as a formula takes all of the 5 s
DELIMITERS = ("$", r"\(", r"\[", r"\boxed", r"\begin")  # of LaTeX, without which math-verify finds only numbers
NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?")  # the minus in 83-57 is not a sign
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
ANY_LETTER = r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?\(?\s*([A-Z])\s*\)?\s*\}?"  # B, (B), \text{B}, \mathrm{(B)}
LETTER_PATTERNS = [  # where a letter can be the answer, the most certain first
    re.compile(rf"\\boxed\s*\{{\s*{ANY_LETTER}\s*(?:[).:][^{{}}]*)?\}}"),
    re.compile(rf"(?i:answer|option|choice)\W*(?:(?i:is)\W+)?(?:(?i:option|choice)\W+)?{ANY_LETTER}(?![\w'])"),
    re.compile(r"^\W*([A-Z])\W*$"),
    re.compile(r"^\W*([A-Z])[).:]\s"),
    re.compile(r"\(([A-Z])\)"),
]


class Graded(NamedTuple):
    """The answer that was found (None: none), and whether it is right."""

    answer: str | None
    correct: bool


def answer_text(completion: str, tags: Tags) -> str:
    """The part of a completion to search: between the last pair of solution tags, or all of it if there is none."""
    before, end_tag, _ = completion.rpartition(tags.solution_end)
    _, start_tag, solution = before.rpartition(tags.solution_start)
    return solution if start_tag and end_tag else completion


def grade_math(text: str, expected: str) -> Graded:
    """Compare the expression in `text` that is boxed or after "the answer is", else the last one, with `expected`."""
    found = _parse_answer(text)
    correct = math_verify.verify(_parse_bare(expected), found)
    return Graded(_shown(found), correct)


def grade_text(text: str, expected: str) -> Graded:
    """If a number is expected, compare the last number in `text`; else all words, except for case, blanks and
    punctuation around them. If something is boxed, only that counts.
    """
    boxed = BOXED.findall(text)
    text = boxed[-1] if boxed else text
    number = expected.strip(" $.")
    if NUMBER.fullmatch(number):
        numbers = NUMBER.findall(text)
        return Graded(numbers[-1], _value(numbers[-1]) == _value(number)) if numbers else Graded(None, False)
    words = _normalised(text)
    return Graded(words or None, words == _normalised(expected))


def grade_choice(text: str, expected: str, letters: str) -> Graded:
    r"""Compare the letter in `text`: boxed, after "the answer is", alone, at the beginning (`B) ...`) or as `(B)`.

    Args:
      expected: the right letter.
      letters: the letters of all options.
    """
    for pattern in LETTER_PATTERNS:
        found = [letter for letter in pattern.findall(text.strip()) if letter in letters]
        if found:
            return Graded(found[-1], found[-1] == expected)
    return Graded(None, False)


def _parse_answer(text: str) -> list:
    """What math-verify finds in an answer. A bare formula (`2x+3`) is parsed as a whole, prose is searched."""
    if any(delimiter in text for delimiter in DELIMITERS):
        return math_verify.parse(text)
    if len(text) > MAX_FORMULA_LENGTH:
        return math_verify.parse(text)
    words = re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", "", text))
    if words or "\n" in text.strip():
        return math_verify.parse(text) or _parse_bare(text)
    return _parse_bare(text) or math_verify.parse(text)


def _parse_bare(text: str) -> list:
    """What math-verify finds in a text that is a single formula."""
    return math_verify.parse(text if any(d in text for d in DELIMITERS) else rf"\boxed{{{text}}}")


def _shown(found: list) -> str | None:
    """The text of what math-verify found, which comes after its value."""
    return str(found[-1]) if found else None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def _normalised(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    return " ".join(text.split()).strip(" .,;:!\"'*$()").casefold()
