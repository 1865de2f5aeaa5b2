r"""What a model answered, and whether it is right: as mathematics, as text, or as the letter of an option.

Mathematics is read and compared by math-verify (LaTeX, fractions, sets, intervals, units, ...): `1/2`, `0.5` and
`$\frac{1}{2}$` are equal.
"""

import logging
import re
from decimal import Decimal
from typing import NamedTuple

import math_verify

from rlt_jax.data import Tags

logging.getLogger("math_verify").setLevel(logging.ERROR)  # its warning that 5 s were not enough shows the whole text

LONGEST_FORMULA = 300  # characters of a bare one; reading a whole page as one takes all of the 5 s
DELIMITERS = ("$", r"\(", r"\[", r"\boxed", r"\begin")  # of LaTeX, without which math-verify sees numbers alone
NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?")  # the minus of 83-57 belongs to no number
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
WRAPPING = r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?\(?\s*([A-Z])\s*\)?\s*\}?"  # B, (B), \text{B}, \mathrm{(B)}
LETTER = [  # where a letter may stand as the answer, the surest first
    re.compile(rf"\\boxed\s*\{{\s*{WRAPPING}\s*(?:[).:][^{{}}]*)?\}}"),
    re.compile(rf"(?i:answer|option|choice)\W*(?:(?i:is)\W+)?(?:(?i:option|choice)\W+)?{WRAPPING}(?![\w'])"),
    re.compile(r"^\W*([A-Z])\W*$"),
    re.compile(r"^\W*([A-Z])[).:]\s"),
    re.compile(r"\(([A-Z])\)"),
]


class Graded(NamedTuple):
    """An answer as it was understood; None: there is none."""

    answer: str | None
    correct: bool


def answer_text(completion: str, tags: Tags) -> str:
    """Where the answer stands: between the last pair of solution tags if there is one, else anywhere."""
    before, end, _ = completion.rpartition(tags.solution_end)
    _, start, solution = before.rpartition(tags.solution_start)
    return solution if start and end else completion


def grade_math(text: str, expected: str) -> Graded:
    """The last mathematical expression of `text`, boxed or after "the answer is" first, against `expected`."""
    found = _parse_answer(text)
    correct = math_verify.verify(_parse_bare(expected), found)
    return Graded(_shown(found), correct)


def grade_text(text: str, expected: str) -> Graded:
    """Where a number is expected, the last number of `text` must be equal; else the words, but for case, blanks and
    punctuation around them. What is boxed counts alone.
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
    r"""The letter that `text` names: boxed, after "the answer is", alone, at the beginning (`B) ...`) or as `(B)`.

    Args:
      expected: the right letter.
      letters: those of all options.
    """
    for pattern in LETTER:
        named = [letter for letter in pattern.findall(text.strip()) if letter in letters]
        if named:
            return Graded(named[-1], named[-1] == expected)
    return Graded(None, False)


def _parse_answer(text: str) -> list:
    """What math-verify finds in an answer. A bare formula (`2x+3`) is read as a whole, prose is searched."""
    if any(delimiter in text for delimiter in DELIMITERS):
        return math_verify.parse(text)
    if len(text) > LONGEST_FORMULA:
        return math_verify.parse(text)
    words = re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", "", text))
    if words or "\n" in text.strip():
        return math_verify.parse(text) or _parse_bare(text)
    return _parse_bare(text) or math_verify.parse(text)


def _parse_bare(text: str) -> list:
    """What math-verify makes of a text that is a formula as a whole."""
    return math_verify.parse(text if any(d in text for d in DELIMITERS) else rf"\boxed{{{text}}}")


def _shown(found: list) -> str | None:
    """The text of what math-verify found, which stands after its value."""
    return str(found[-1]) if found else None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def _normalised(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    return " ".join(text.split()).strip(" .,;:!\"'*$()").casefold()
