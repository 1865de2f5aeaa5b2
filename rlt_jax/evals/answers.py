r"""Extract a model's answer and grade it: as mathematics, as text, or as the letter of an option.

Precision before recall: an answer that can be read in two ways is not right. docs/evaluate.md states the rules.
"""

import re
from typing import NamedTuple

from rlt_jax.data import Tags
from rlt_jax.evals.formulas import same_value, single_value, tidy
from rlt_jax.evals.letters import declared_letter
from rlt_jax.evals.notation import plain, without_layout, without_markup, without_styles
from rlt_jax.evals.quantities import NUMBER, read_quantity, same_quantity
from rlt_jax.evals.statements import stated_value, stated_words, words_of


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
    r"""Compare the value that `text` states with `expected` as mathematics: `1/2`, `0.5`, `$\frac{1}{2}$` are equal.

    The value is the last that is boxed or declared ("the answer is"), else the whole text if it is a formula, else the
    last formula in it. Where words are expected (`\text{no solution}`), words are compared.
    """
    right = tidy(expected)
    found = stated_value(without_markup(plain(text)))
    if found is not None and same_value(right, tidy(found)):
        return Graded(single_value(tidy(found)), True)
    if words_of(without_styles(right)) or not read_quantity(right):
        words = _normalised(stated_words(text))
        if words and words == _normalised(expected):
            return Graded(tidy(found or words), True)
    return Graded(single_value(tidy(found)) or None if found else None, False)


def grade_text(text: str, expected: str) -> Graded:
    """If a number is expected, compare the number that `text` states; else all words, except for case, blanks and
    punctuation around them. What is boxed or declared ("the answer is") counts, else the whole text or its last number.
    """
    right = read_quantity(tidy(expected))
    if right is None:
        words = _normalised(stated_words(without_markup(plain(text))))
        return Graded(words or None, words == _normalised(expected))
    stated = stated_value(without_markup(plain(text)))
    if stated is None:
        return Graded(None, False)
    value = single_value(tidy(stated))
    found = read_quantity(value)
    numbers = re.findall(rf"(?:(?<![\w)])-)?{NUMBER}", value)
    shown = numbers[-1] if numbers else value
    return Graded(shown, found is not None and same_quantity(right, found))


def grade_choice(text: str, expected: str, letters: str) -> Graded:
    """Compare the letter that `text` declares; None is found if it declares none, or several at once.

    Args:
      expected: the right letter.
      letters: the letters of all options.
    """
    letter = declared_letter(text, letters)
    return Graded(letter, letter is not None and letter == expected)


def _normalised(text: str) -> str:
    text = without_styles(without_layout(without_markup(plain(text))))
    return " ".join(text.split()).strip(" .,;:!\"'*$()").casefold()
