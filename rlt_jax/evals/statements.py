r"""Find what a text states as its answer: in a box, after "the answer is", as the whole text, or as its last formula.

The last declaration counts, unless the text corrects it ("wait, 13") or withdraws it ("that is wrong"). What is denied
("not 7"), supposed ("if the answer is 7") or left open ("7 or 8" is both) is no single answer.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from rlt_jax.evals.notation import bare, boxes, without_styles
from rlt_jax.evals.phrases import (
    CHANGED,
    CORRECTS,
    DECLARES,
    DENIED,
    FILLERS,
    JOINS,
    OPEN,
    SENTENCE_END,
    WITHDRAWS,
    is_doubted,
)
from rlt_jax.evals.quantities import NUMBER, read_quantity
from rlt_jax.evals.units import SCALES, things_of, unit_of

MOST_DECLARATIONS = 40  # the last ones; a text that says "the answer is" more often is a loop
LONGEST = 400  # characters of a declared answer, or of a bare formula

FUNCTIONS = (
    "sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|arcsin|arccos|arctan|sinh|cosh|tanh|infinity|inf|max|min|gcd|lcm"
)
_BRACKETS = r"\\?[(\[{][^()\[\]{}\n,$]{1,40}(?:,[^()\[\]{}\n,$]{1,40}){1,6}[)\]}]"  # a pair, an interval, a set
_FORMULA = re.compile(
    rf"(?<![\w\\]){_BRACKETS}(?:\s?(?:∪|\\cup)\s?{_BRACKETS})*|"
    r"\$\$[^$]+\$\$|\$[^$\n]+\$(?!\d)|\\\[.{1,2000}?\\\]|\\\(.{1,2000}?\\\)",
    re.DOTALL,
)
_ATOM = (
    rf"(?:{NUMBER}(?:[eE][+-]?\d+)?(?!\d)|\\[A-Za-z]+|(?:{FUNCTIONS})(?![A-Za-z])|(?<![A-Za-z])[A-Za-z](?![A-Za-z'])"
    r"|[π∞√°%(){}\[\]|!_θ])"
)
_OPERATOR = r"[-+*/^=<>≤≥≠≈×·÷±∈∪:]"
_RUN = re.compile(
    rf"(?:[-+±=≈√(\[{{|\\]\s?)*+{_ATOM}(?:{_ATOM}|\s?{_OPERATOR}{{1,2}}\s?{_ATOM}|\s?{_OPERATOR}\s?-\s?{_ATOM})*+",
    re.ASCII,
)
_SHORT_WORDS = "is it no to of in an at as by he we so if on be am do go my us up"
_SHORT = frozenset(_SHORT_WORDS.split())


class Piece(NamedTuple):
    """A formula or number in a text, with its unit."""

    start: int
    end: int
    text: str


def words_of(text: str, word: str = r"[A-Za-z]{2,}") -> set[str]:
    """The words of a text outside LaTeX commands and styled text, without names of functions, in lower case."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    text = re.sub(rf"(?<![A-Za-z])(?:{FUNCTIONS})(?![A-Za-z])", " ", text)
    return {found.casefold() for found in re.findall(rf"(?<![A-Za-z]){word}(?![A-Za-z])", text)}


def is_formula(text: str) -> bool:
    """Whether `text` is a bare formula or quantity, or several joined by commas, `and`, `or`."""
    text = text.strip()
    if not text or len(text) > LONGEST or "\n" in text or not re.search(r"[\w∞π√]", text):
        return False
    if read_quantity(text):
        return True
    words = words_of(text) - {"and", "or"}
    return not any(len(word) > 2 or word in _SHORT for word in words)


def stated_value(text: str) -> str | None:
    """The formula or number that `text` states; None if there is none, or it is left open.

    Args:
      text: in `plain` notation without markup.
    """
    text = text.strip()
    value, end, unread = None, 0, None
    for stop, segment, boxed in declarations(text):
        found = segment if boxed else _head(segment)
        if found is None:
            found = _named_at_the_end(segment)
        if found is None:
            unread = text[stop:]
        else:
            value, end = found, stop
    if value is not None:
        return _as_corrected(text[end:], value) or None
    if unread is not None:  # "the answer is not 7": what came before was not the answer either
        return _last_piece(unread)
    start = FILLERS.match(text)
    assert start  # it may be empty
    if is_formula(text[start.end() :]):
        return text[start.end() :]
    return _last_piece(text)


def stated_words(text: str) -> str:
    """The words that `text` states: what is declared up to the end of its clause, else all."""
    found = [(end, words) for end, words, _ in declarations(text)]
    if not found:
        return text
    end, words = found[-1]
    if corrected := CORRECTS.search(text[end:]):
        words = corrected["rest"]
    return re.split(r",\s(?=not|because|since|as|which|so)|\s(?=because|since)|\s\(", words, maxsplit=1)[0]


def declarations(text: str) -> Iterator[tuple[int, str, bool]]:
    """Where each declaration ends, what it declares, and whether in a box; doubtful ones are left out."""
    found = [(start, end, words, True) for start, end, words in _joined_boxes(text)]
    for phrase in list(DECLARES.finditer(text))[-MOST_DECLARATIONS:]:
        start = phrase.end()
        end = _segment_end(text, start)
        if end > start and not any(start <= box < end for box, *_ in found) and not is_doubted(text, phrase.start()):
            found.append((phrase.start(), end, text[start:end], False))
    first, blank, rest = text.strip().partition("\n\n")
    if not found and blank and read_quantity(first) and re.match(r"\W*[A-Z][a-z]", rest):
        found.append((0, len(first), first, True))  # alone in the first paragraph
    for _, end, words, boxed in sorted(found):
        yield end, words, boxed


def _joined_boxes(text: str) -> list[tuple[int, int, str]]:
    """The boxes, those that only `and`, `or` or a comma separates as one."""
    joined: list[tuple[int, int, str]] = []
    for start, end, words in boxes(text):
        if joined and re.fullmatch(r"[\s$,;]*(?:and|or|,|;)[\s$]*", text[joined[-1][1] : start]):
            first, _, before = joined.pop()
            start, words = first, f"{before}, {words}"
        joined.append((start, end, words))
    return joined


def _segment_end(text: str, start: int) -> int:
    for opening, closing in (("$$", "$$"), (r"\[", r"\]")):
        if text.startswith(opening, start):
            inner = text.find(closing, start + 2, start + 2000)
            start = inner + 2 if inner >= 0 else start
    end = SENTENCE_END.search(text, start, start + LONGEST)
    return end.start() if end else min(len(text), start + LONGEST)


def _head(segment: str) -> str | None:
    """The value at the head of a declared segment; "" if it is left open; None if it declares no value."""
    segment = segment.strip()
    segment = re.sub(r"</answer>.*", "", segment)
    if OPEN.search(segment[:12].split(" ")[0] + " ") or re.match(r"(?:at least|at most|more than|less than)", segment):
        return ""
    start = FILLERS.match(segment)
    assert start  # it may be empty
    segment = segment[start.end() :]
    if re.match(r"(?:not|neither|never|unknown)\b", segment, re.IGNORECASE):
        return None
    if is_formula(segment):
        return segment
    found = _joined(segment, pieces(segment))
    if not found or re.search(r"\w", segment[: found[0].start]):
        return None
    return "" if CHANGED.match(segment, found[0].end) else found[0].text


def _named_at_the_end(segment: str) -> str | None:
    """The value of a declaration such as "the sum of 3 and 4, which is 7"."""
    found = _joined(segment, pieces(segment))
    if not found or not re.search(r"(?:\bis|\bequals|\bnamely|[=:])\s*$", segment[: found[-1].start]):
        return None
    return found[-1].text


def _as_corrected(after: str, value: str) -> str:
    """The value after what the rest of the text says of it; "" if that withdraws it."""
    for correction in CORRECTS.finditer(after[:2000]):
        rest = SENTENCE_END.split(correction["rest"])[0]
        if (found := _head(rest)) is not None and not re.search(r"[=:]", rest):
            return found
    return "" if WITHDRAWS.search(after[:2000]) else value


def _last_piece(text: str) -> str | None:
    """The last formula or number that is neither denied nor left open."""
    found = _joined(text, pieces(text))
    for piece in reversed(found):
        before = text[max(0, piece.start - 25) : piece.start]
        if DENIED.search(before):
            continue
        return None if OPEN.search(before) or CHANGED.match(text, piece.end) else piece.text
    return None


def pieces(text: str) -> list[Piece]:
    """All formulas and numbers of a text, in order, with the units after them."""
    found, position = [], 0
    formulas = [match for match in _FORMULA.finditer(text) if _is_mathematics(match[0])]
    for match in [*formulas, None]:
        until = match.start() if match else len(text)
        for run in _RUN.finditer(text, position, until):
            if piece := _piece(text, run.start(), run.end(), until):
                found.append(piece)
        if match:
            piece = _with_tail(text, match.start(), match.end())
            inner = bare(match[0]) if match[0][0] in "$\\" else match[0]
            unit = text[match.end() : piece.end]
            found.append(Piece(piece.start, piece.end, inner if things_of(unit.strip()) else inner + unit))
            position = match.end()
    return found


def _is_mathematics(formula: str) -> bool:
    """Whether text between dollars is a formula, and no prose between two prices."""
    words = words_of(formula, r"[a-z]{2,}")
    return not any(len(word) > 2 or word in _SHORT | {"or"} for word in words - {"and"})


def _piece(text: str, start: int, end: int, until: int) -> Piece | None:
    run = text[start:end]
    before, after = text[start - 1 : start], text[end : end + 1]
    if before.isalnum() or (after.isalnum() and not run[-1:].isdigit()) or not re.search(r"\d|[=√π∞]", run):
        return None
    if before in ("$", "€", "£", "¥"):
        start -= 1
        if text[start - 1 : start] == "-":
            start -= 1
    if (
        re.fullmatch(r"\d+:\d+.*|\d{4}-\d\d?-\d\d?", run)
        or before in tuple(".:,^_")
        or (run[0] == "-" and before == ")")
    ):
        return None  # a time, a date, a part of an address
    unbalanced = run.count("(") - run.count(")")
    while unbalanced < 0 and text[end - 1] == ")":
        end, unbalanced = end - 1, unbalanced + 1
    while unbalanced > 0 and text[start] == "(":
        start, unbalanced = start + 1, unbalanced - 1
    end = _without_last_mark(text, start, end)
    return _with_tail(text, start, min(end, until))


def _without_last_mark(text: str, start: int, end: int) -> int:
    while end > start and text[end - 1] in " :|_":
        end -= 1
    return end


def _with_tail(text: str, start: int, end: int) -> Piece:
    """The piece with the longest run of words after it that is a unit or scales the number."""
    tail = re.match(r"\s?(?:[^\s.,;:!?()]+(?:\s(?!\s)|$|(?=[.,;:!?()]))){1,3}", text[end : end + 60])
    if tail:
        words = tail[0].rstrip().split(" ")
        for count in range(len(words), 0, -1):
            unit = " ".join(words[:count])
            bare_words = without_styles(unit).split()
            while bare_words and bare_words[0].casefold() in SCALES:
                bare_words = bare_words[1:]
            if words[count - 1] == "in" and text[end + len(unit) :][:1] == " ":
                continue  # $5 in all
            if unit.strip() and unit_of(" ".join(bare_words)) is not None:
                return Piece(start, end + len(unit), text[start : end + len(unit)])
    return Piece(start, end, text[start:end])


def _joined(text: str, found: list[Piece]) -> list[Piece]:
    """Pieces with only `or`, `and`, `to` or a comma between them as one."""
    joined: list[Piece] = []
    for piece in found:
        between = text[joined[-1].end : piece.start] if joined else ""
        if joined and JOINS.fullmatch(between) and _are_alike(joined[-1].text, piece.text):
            first = joined.pop()
            piece = Piece(first.start, piece.end, f"{first.text} or {piece.text}")
        joined.append(piece)
    return joined


def _are_alike(first: str, second: str) -> bool:
    """Whether two formulas can be answers side by side: `2x = 14 and x = 7` is one step after another."""
    named = [bool(re.match(r"\W*\w\s*=", text)) for text in (first.rsplit(" or ", 1)[-1], second)]
    return "=" not in first + second or all(named)
