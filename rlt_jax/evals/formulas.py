r"""Compare two stated values: item by item where they are lists, exactly where they are quantities, else as formulas.

A name before `=` matters only where both sides have one; after a chain `a = b = 5`, the last part counts.
"""

import re
from typing import NamedTuple

from rlt_jax.evals.mathematics import are_equal
from rlt_jax.evals.notation import bare, plain, without_layout, without_markup
from rlt_jax.evals.quantities import read_quantity, same_quantity, split_unit
from rlt_jax.evals.statements import FUNCTIONS

MOST_ITEMS = 20

_NAME = re.compile(
    r"\s*((?:\\(?:angle|triangle|measuredangle)\s*)?\\?[A-Za-z]+(?:_\{?\w+\}?)?'?|[A-Za-z]+\([^()=]{1,20}\)|\|[^|=]{1,20}\|)\s*(?:=|\\approx(?![A-Za-z])|≈)\s*(?!=)"
)
_AND = re.compile(r"\\(?:text|mbox|textrm)\s*\{\s*,?\s*(and|or)\s*\}")
_EQUALS = re.compile(r"(?<![<>!=\\])=(?!=)|\\approx(?![A-Za-z])|≈")
_LINEAR = re.compile(r"-?\d*\.?\d*\s?[A-Za-z](?:\s?[+-]\s?\d*\s?[A-Za-z]?)*+")
_MEMBER = re.compile(r"\s*\\?[A-Za-z]\w?\s*(?:\\in(?![A-Za-z])|∈)\s*")
_SPLIT = re.compile(r"\s*(?:,\s*(?:and|or)\b|,(?!\d{3}(?!\d))|;|\b(?:and|or|to|through)\b)\s*")
_LATEX = [
    (re.compile(r"√\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*(\d+|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(rf"(?<![\\A-Za-z])({FUNCTIONS})(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:infinity|inf)(?![A-Za-z])|∞"), r"\\infty "),
    (re.compile(r"π"), r"\\pi "),
    (re.compile(r"θ"), r"\\theta "),
    (re.compile(r"≤"), r"\\le "),
    (re.compile(r"≥"), r"\\ge "),
    (re.compile(r"≠"), r"\\neq "),
    (re.compile(r"±"), r"\\pm "),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"×"), r"\\times "),
    (re.compile(r"÷"), r"\\div "),
    (re.compile(r"·"), r"\\cdot "),
    (re.compile(r"\^\s*([+-]?\d+)"), r"^{\1}"),
    (re.compile(r"^\{(.*)\}$"), r"\\{\1\\}"),
]


class Item(NamedTuple):
    """One value, and the unknown it is said to be."""

    name: str | None
    value: str


def tidy(text: str) -> str:
    """A formula as it is compared and shown: plain notation, nothing around it."""
    return bare(without_layout(bare(without_markup(plain(text)))))


def same_value(expected: str, given: str) -> bool:
    """Whether two stated values are equal; both are `tidy`."""
    if not given or not expected:
        return False
    if re.search(r"\\neq?(?![A-Za-z])|≠", given) and not re.search(r"\\neq?(?![A-Za-z])|≠", expected):
        return False
    right, found = (_items(_MEMBER.sub("", text, count=1)) for text in (expected, given))
    if len(right) != len(found):
        return False
    left = list(found)
    for item in right:
        match = next((other for other in left if _same_item(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def single_value(text: str) -> str:
    """The value of a stated equation without the name of the unknown; other texts as they are."""
    items = _items(text)
    return items[0].value if len(items) == 1 else text


def _items(text: str) -> list[Item]:
    """The values that a text lists; one if it is no list. The order of a list or a set does not matter."""
    text = _AND.sub(r" \1 ", text)
    if inner := re.fullmatch(r"\\\{(.*)\\\}|\{(.*)\}", text):
        text = inner[1] or inner[2] or ""
    if read_quantity(text):
        return [Item(None, text)]
    parts = [part for part in _split(text) if part.strip()]
    return [_item(part) for part in parts] if 1 <= len(parts) <= MOST_ITEMS else [_item(text)]


def _split(text: str) -> list[str]:
    """Cut at commas, semicolons, `and` and `or`, but not inside brackets."""
    depth, depths = 0, []
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        depths.append(depth)
    parts, start = [], 0
    for cut in _SPLIT.finditer(text):
        if cut.start() >= start and cut.start() < len(depths) and depths[cut.start()] == 0:
            parts.append(text[start : cut.start()])
            start = cut.end()
    return [*parts, text[start:]]


def _item(text: str) -> Item:
    text = bare(text.strip())
    name = _NAME.match(text)
    if name:
        return Item(name[1].lstrip("\\"), bare(_EQUALS.split(text)[-1]))
    sides = _EQUALS.split(text)
    if len(sides) == 2 and re.fullmatch(r"\s*[A-Za-z]\s*", sides[1]) and re.search(r"\d", sides[0]):
        return Item(sides[1].strip(), bare(sides[0]))  # 7 = x
    if len(sides) > 2 and not _LINEAR.fullmatch(sides[0].strip()):
        return Item(None, bare(sides[-1]))  # a chain, but not 2x = 10 + 4 = 14
    left = re.sub(rf"\\[A-Za-z]+|(?<![A-Za-z])(?:{FUNCTIONS})(?![A-Za-z])", "", sides[-2] if len(sides) > 1 else "x1")
    if not re.search(r"\d", left) or not re.search(r"[A-Za-z]", left):  # a + b = 7, 3 + 4 = 7, but not 2x = 14
        return Item(None, bare(sides[-1]))  # = 7, 3 + 4 = 7
    return Item(None, text)


def _same_item(expected: Item, given: Item) -> bool:
    if expected.name and given.name and expected.name != given.name:
        return False
    if expected.value == given.value:
        return True
    right, found = read_quantity(expected.value), read_quantity(given.value)
    if right and found:
        return same_quantity(right, found)
    if _EQUALS.search(given.value) and not _EQUALS.search(expected.value):
        return False  # an equation of several unknowns has no value
    if any(re.search(r"\d\}?\s?_", value) for value in (expected.value, given.value)):  # 101_2: bases are not converted
        return re.sub(r"[\s{}]", "", expected.value) == re.sub(r"[\s{}]", "", given.value)
    (right_formula, right_unit), (found_formula, found_unit) = split_unit(expected.value), split_unit(given.value)
    if right_unit and found_unit and right_unit != found_unit:
        return False
    return are_equal(latex(right_formula), latex(found_formula))


def latex(formula: str) -> str:
    """A formula with LaTeX's names, for math-verify; a quantity without its unit."""
    for pattern, replacement in _LATEX:
        formula = pattern.sub(replacement, formula)
    return formula.strip()
