r"""Read one number exactly, with its unit: `1,234.5`, `-3 1/2`, `\frac{2}{3}`, `1.5 × 10^3`, `2^10`, `$7`, `7 km/h`.

English notation: a point before decimals, and thousands grouped by three with commas, apostrophes or blanks. What can
be read in two ways (`1,5`, `1.234,5`) is not read.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from rlt_jax.evals.notation import bare, without_layout, without_styles
from rlt_jax.evals.units import CURRENCIES, SCALES, measure_of, things_of, unit_of

MOST_DIGITS = 2000  # of a number written out; longer ones are not read

_GROUPED = r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+|(?:'\d{3})+)(?![\d,'])"
NUMBER = rf"(?:{_GROUPED}(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"  # without a sign
_INTEGER = r"(?:\{\s*([+-]?\d+)\s*\}|\(\s*([+-]?\d+)\s*\)|([+-]?\d+))"
_TIMES = r"(?:×|·|\*|x|\\times|\\cdot)"
_SIGNED = re.compile(rf"([+-]?)\s?({NUMBER})", re.ASCII)
_LEADING = re.compile(rf"([+-]?)((?:\\?\$|[{''.join(CURRENCIES)[1:]}]|(?:USD|EUR|GBP)\s)?)\s?([+-]?)")
_PATTERNS = [  # the longer ones first
    ("repeating", r"(\d*)\.(\d*)\\overline\s*\{\s*(\d+)\s*\}"),
    ("mixed", r"(\d+) ?\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"),
    ("mixed", r"(\d+) (\d+)/(\d+)(?![\d/.])"),
    ("fraction", rf"\\frac\s*\{{\s*([+-]?{NUMBER})\s*\}}\s*\{{\s*([+-]?{NUMBER})\s*\}}"),
    ("fraction", rf"({NUMBER}) ?/ ?({NUMBER})(?![\d/.,^])"),
    ("scientific", rf"({NUMBER})(?:\s?{_TIMES}\s?10\s?\^\s?{_INTEGER})"),
    ("scientific", rf"({NUMBER})[eE]([+-]?\d+)"),
    ("power", rf"({NUMBER})\s?\^\s?{_INTEGER}"),
    ("number", rf"({NUMBER})(?!\d)(?![.,']\d)"),
]
_FORMS = [(form, re.compile(pattern, re.ASCII)) for form, pattern in _PATTERNS]


class Quantity(NamedTuple):
    """A number as written, and its unit."""

    value: Fraction
    unit: str  # canonical; "" if there is none, "%" for percent


def read_quantity(text: str) -> Quantity | None:
    """The quantity that `text` is, in whole; None if it is anything else.

    Args:
      text: in `plain` notation.
    """
    if len(text) > MOST_DIGITS:
        return None
    text = " ".join(bare(without_layout(text)).split())
    if text.startswith("(") and text.endswith(")") and _SIGNED.fullmatch(text[1:-1]):
        if "," in text:
            return None  # (1,234) is a pair
        text = text[1:-1]
    leading = _LEADING.match(text)
    assert leading  # it may be empty
    if leading[1] and (leading[3] or (leading[0].endswith(" ") and not leading[2])):
        return None  # two signs, or "- 5": a minus, or an item of a list
    number = text[leading.end() :]
    matches = ((form, pattern.match(number)) for form, pattern in _FORMS)
    form, found = next(((form, match) for form, match in matches if match), ("", None))
    if not found:
        return None
    value = _value(form, [group for group in found.groups() if group is not None])
    rest = number[found.end() :]
    currency = CURRENCIES.get(leading[2].strip().lstrip("\\"), unit_of(leading[2].strip()) or "")
    return (
        _with_unit(-value if "-" in (leading[1], leading[3]) else value, rest, currency) if value is not None else None
    )


def split_unit(formula: str) -> tuple[str, str]:
    r"""A formula and the unit in words after it: `9\pi \text{ cm}^2` is `9\pi` and `cm^2`."""
    words = without_styles(formula).split()
    for count in range(1, len(words)):
        after = " ".join(words[count:])
        if len(words[count]) > 1 and (unit := unit_of(after)):
            return " ".join(words[:count]), unit
    return formula, ""


def same_quantity(expected: Quantity, given: Quantity) -> bool:
    """Exactly equal, where a unit may be left out on either side, but not be another; 7 % is 7 percent, or 0.07."""
    if expected.unit and given.unit and expected.unit != given.unit:
        return False
    if expected.unit != given.unit and "%" in (expected.unit, given.unit):
        percent, other = (expected, given) if expected.unit == "%" else (given, expected)
        return other.value in (percent.value, percent.value / 100)
    return expected.value == given.value


def _with_unit(value: Fraction, rest: str, currency: str) -> Quantity | None:
    rest = without_styles(rest)
    glued = rest[:1].isalpha()
    words = rest.replace("$", " $ ").split() if "\\$" not in rest else rest.replace("\\$", " $ ").split()
    while words and words[0].casefold() in SCALES:
        value *= SCALES[words.pop(0).casefold()]
    after = " ".join(words)
    unit = unit_of(after)
    if unit is None or (glued and re.match(r"[A-Za-z](?![A-Za-z])", rest)):
        return None  # 7x and 7m are products
    if currency and unit not in ("", currency) and (measure_of(after) or not things_of(after)):
        return None  # but "$7 left"
    return Quantity(value, currency or unit)


def _value(form: str, parts: list[str]) -> Fraction | None:
    """The number; None if it is undefined or too large to be written out."""
    if form == "repeating":
        whole, fixed, repeated = parts
        shift = 10 ** len(fixed)
        return Fraction(int(whole + fixed or "0"), shift) + Fraction(int(repeated), shift * (10 ** len(repeated) - 1))
    first = read_number(parts[0])
    match form:
        case "mixed":
            above, below = read_number(parts[1]), read_number(parts[2])
            return first + above / below if below else None
        case "fraction":
            below = read_number(parts[1])
            return first / below if below else None
        case "scientific" | "power":
            exponent = parts[1]
            if len(exponent) > 6 or abs(int(exponent)) * len(parts[0]) > MOST_DIGITS:
                return None
            if form == "scientific":
                return first * Fraction(10) ** int(exponent)
            return first ** int(exponent) if first or int(exponent) > 0 else None
    return first


def read_number(text: str) -> Fraction:
    """A `NUMBER` with an optional sign, exactly."""
    return Fraction(re.sub(r"[,' ]", "", text).replace("+", ""))
