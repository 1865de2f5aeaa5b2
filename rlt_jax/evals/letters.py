r"""Find the letter of an option that a text declares as its answer; letters that it only discusses do not count.

A letter is declared in a box, by "the answer is B", "Answer: B", "option B is correct", "I choose B", "so B.", by
standing alone in the last line, or by beginning the text as `B)`. The last declaration counts. One that is denied,
supposed, or followed by "or C" leaves the answer open.
"""

import re
from typing import NamedTuple

from rlt_jax.evals.notation import boxes, plain, without_layout, without_markup, without_styles
from rlt_jax.evals.phrases import BECAUSE, CORRECTION, WITHDRAWS, any_of, is_doubted

OPEN = ""  # declared, but no single option

_ADVERBS = (
    "therefore",
    "thus",
    "clearly",
    "then",
    "hence",
    "definitely",
    "probably",
    "likely",
    "most likely",
    "indeed",
)
_ADVERB = rf"(?:{any_of(*_ADVERBS, 'simply', 'just', 'actually')}\s)?"
_OPTION = r"(?:(?:the\s)?(?:option|choice|letter|answer)\s)?"
_NOUN = any_of("answer", "pick", "option", "choice", "statement", "solution", "conclusion")
_IS = r"(?:is|was|(?:must|would|should|has to|will)(?:\s(?:then|thus|therefore|clearly))?\sbe|equals)"
_SENTENCE = r"(?:^|(?<=[.!?;\n]\s)|(?<=\n))"  # begins here
_LETTER = r"[(\[]?\s?\b(?P<letter>[A-Za-z])\b(?!['’])\s?[)\]]?"
_NEXT = any_of("instead", "rather", "as", "which", "and", "or", "with", "for", "by", "nor", "but", "while", BECAUSE)
_END = rf"(?=\s*(?:$|[.,;:!?)\]\n(<—–/-]|{_NEXT}\b))"  # comes after a letter, or it is a word of the sentence
_GAP = r"[\s,.:;!…—–-]{1,4}"
_RIGHT = rf"(?:the\s)?(?:only\s|most\s)?{any_of('correct', 'right', 'best', 'answer', 'true')}\b"
_RIGHT_ONE = rf"{_RIGHT}(?:\s{any_of('answer', 'choice', 'option', 'one', 'statement', 'letter', 'here')})*"
_I = any_of("i", "we") + r"(?:'d|'ll|\s(?:would|will|must|should))?"
_BEFORE = any_of(
    r"(?<=[.,;:!?\n]\s)", r"(?<=\n)", r"(?<=\bso\s)", r"(?<=\bonly\s)", r"(?<=\boption\s)", r"(?<=\bchoice\s)"
)
_CONCLUDES = any_of(
    *("so", "therefore", "thus", "hence", "it is", "it's", "so it is", "so it's", "that leaves", "this leaves")
)
_ANNOUNCED = [  # a phrase, then the letter
    rf"\b{_NOUN}\b,?(?:\s(?!is\b|was\b)[a-z,]{{1,20}}){{0,8}}\s{_IS}:?\s{{1,3}}{_ADVERB}{_OPTION}{_LETTER}{_END}",
    rf"\b{_NOUN}(?:\s(?:to|for)\s[^\n.:]{{1,30}})?\s?(?:[:=]|\s-\s|is:)\s{{0,4}}{_ADVERB}{_OPTION}{_LETTER}{_END}",
    rf"(?:^|\n)\W{{0,5}}(?:final |correct )?{_NOUN}\s{{0,3}}\n\s{{0,4}}{_OPTION}{_LETTER}{_END}",
    rf"{_SENTENCE}answer\s{_LETTER}(?=\s?(?:[.!]|\n|$))",
    rf"<answer>\s{{0,4}}{_OPTION}{_LETTER}{_END}",
    rf"\b{_I}\s{any_of('choose', 'pick', 'select', 'go with', 'chose', 'answer', 'say')}\s{_OPTION}{_LETTER}{_END}",
    rf"\b(?:corresponds to|matches|agrees with)\s(?:option|choice)\s{_LETTER}{_END}",
    rf"{_SENTENCE}{_CONCLUDES}[,:]?\s{_ADVERB}{_OPTION}{_LETTER}{_END}",
    rf"\b{CORRECTION}\b{_GAP}(?:{CORRECTION}{_GAP})?(?:(?:it|that)(?:'s|\s(?:is|should be|must be))\s)?"
    rf"{_OPTION}{_LETTER}(?=\s?(?:[.!]|\n|$))",
]
_CALLED_RIGHT = rf"(?:^|{_BEFORE}){_LETTER}\s(?:is|must be)\s(?:(?:clearly|indeed|therefore|thus)\s)?{_RIGHT_ONE}{_END}"
_DECLARES = [re.compile(pattern, re.IGNORECASE) for pattern in (*_ANNOUNCED, _CALLED_RIGHT)]
_WHOLE = re.compile(rf"\W*{_OPTION}{_LETTER}\W*", re.IGNORECASE)
_SEVERAL = re.compile(r"\W*[A-Za-z](?:\W{0,4}(?:\s?(?:and|or)\s)?\W{0,4}\b[A-Za-z]\b)+\W*")
_BEGINS = re.compile(  # B) 5 apples; B, because ...; (B) 5 apples
    r"\W{0,4}(?P<letter>[A-Za-z])(?:\)|\](?!\()|[.:](?=\s))(?=\s|$|[.:])"
    rf"|\W{{0,3}}(?P<noted>[A-Z])(?:,?\s{BECAUSE}\b|\s[-–—:]\s)"
    r"|\W{0,3}\((?P<other>[A-Za-z])\)(?=\s)"
)
_OPTIONS = re.compile(r"\n\W{0,4}\(?[A-Za-z][).:]\s")  # the question's options, repeated
_LAST_LINE = re.compile(r".*\n\n\(?(?P<letter>[A-Z])\)\s[^\n]*", re.DOTALL)  # B) 5 apples
_MORE = re.compile(  # another letter beside the first
    r"[)\].]?\s?(?:,?\s?(?:or|and|nor)\s|/|,\s|&\s)(?:(?:rather|maybe|possibly|perhaps)\s)?(?:(?:option|choice)\s)?"
    r"[(\[]?([A-Z])\b(?!['’])",
    re.IGNORECASE,
)
_DENIED = re.compile(  # "the answer is B, but that is wrong"
    r"[^.!?\n]{0,80}?\b(?:but|and|which|that|this)\b[^.!?\n]{0,20}?\b(?:is|was|would be|cannot be)\b[^.!?\n]{0,12}?"
    r"\b(?:wrong|incorrect|impossible|false|not)\b",
    re.IGNORECASE,
)
_NOT_RIGHT = re.compile(r"\b(?:wrong|incorrect|not|false|worst)\b", re.IGNORECASE)


class _Declared(NamedTuple):
    start: int
    end: int
    letter: str  # upper case, or OPEN


def declared_letter(text: str, letters: str) -> str | None:
    """The option's letter that `text` declares; None if it declares none, several, or one that is no option."""
    text = _simple(text)
    found = sorted(_declarations(text))
    if found:
        last = found[-1]
        after = text[last.end :]
        if last.letter != OPEN and (_is_called_wrong(after, last.letter) or WITHDRAWS.search(after)):
            return None
        return last.letter if last.letter and last.letter in letters else None
    whole = _WHOLE.fullmatch(text)
    begins = None if whole else _BEGINS.match(text)
    if begins and _OPTIONS.search(text):
        return None
    if not begins and len(_OPTIONS.findall(text)) == 1:
        begins = _LAST_LINE.fullmatch(text)
    letter = whole["letter"] if whole else _first_group(begins) if begins else None
    return letter.upper() if letter and letter.upper() in letters else None


def _simple(text: str) -> str:
    """Without markup, dollars and LaTeX around letters; boxes are kept."""
    text = without_styles(without_layout(without_markup(plain(text))))
    text = re.sub(r"\*\*|\$|\"|\\[()\[\]]", "", text)
    return re.sub(r"[ \t]+", " ", text).strip()


def _declarations(text: str) -> list[_Declared]:
    found = []
    taken: list[tuple[int, int]] = []
    for start, end, contents in boxes(text):
        taken.append((start, end))
        if letter := (_WHOLE.fullmatch(contents) or _BEGINS.match(contents)):
            found.append(_Declared(start, end, _first_group(letter).upper()))
        elif _SEVERAL.fullmatch(contents):
            found.append(_Declared(start, end, OPEN))
    for pattern in _DECLARES:
        for match in pattern.finditer(text):
            start, end = match.span("letter")
            if any(a <= start < b for a, b in taken) or not _counts(text, match, called_right=pattern is _DECLARES[-1]):
                continue
            more = _MORE.match(text, end)
            is_open = more and (more[1].isupper() or match["letter"].islower())
            found.append(_Declared(start, end, OPEN if is_open else match["letter"].upper()))
    line = text.rsplit("\n", 1)
    first, blank, _ = text.partition("\n\n")
    if not found and blank and (alone := _WHOLE.fullmatch(first)):
        found.append(_Declared(0, len(first), alone["letter"].upper()))
    if len(line) == 2 and (alone := _WHOLE.fullmatch(line[1])):
        found.append(_Declared(len(line[0]) + 1, len(text), alone["letter"].upper()))
    return found


def _first_group(match: re.Match) -> str:
    return next(group for group in match.groups() if group)


def _counts(text: str, match: re.Match, *, called_right: bool) -> bool:
    """Whether a declaration stands: not denied, supposed or asked."""
    letter, end = match["letter"], match.end("letter")
    if letter.islower() and (
        called_right or not re.match(r"\s?[)\]]?\s?(?:[.,;:!)\n<]|$|because\b|since\b)", text[end : end + 12])
    ):
        return False
    if is_doubted(text, match.start()) or _NOT_RIGHT.search(match[0]):
        return False
    sentence = re.match(r"[^.!?\n]*([.!?]?)", text[end : end + 300])
    if sentence and sentence[1] == "?":
        return False
    return not _DENIED.match(text, end) or bool(re.match(r"[)\].,;]*\s?(?:because|since|as)\b", text[end:]))


def _is_called_wrong(after: str, letter: str) -> bool:
    """Whether the text goes on to say that this option is wrong."""
    return bool(
        re.search(rf"\b{letter}\b\)?\s(?:is|must be|cannot be)\s(?:wrong|incorrect|not|right out|impossible)", after)
    )
