r"""Write an answer's text in plain notation: one minus, one kind of blank, LaTeX without layout, no markup around it.

Nothing here changes a value: what is not known stays as it is.
"""

import re

MOST_CHARACTERS = 10_000  # at the end of a text, where its answer stands; bounds the time of every search
MOST_BOX = 2000  # characters of a box's contents; a longer one is no answer

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5"}
_FRACTIONS |= {"⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),  # blanks
        **dict.fromkeys("\u200b\u2060\ufeff\u00ad", None),  # nothing to see
        **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011", "-"),
        **dict.fromkeys("“”„«»", '"'),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("⋅∙", "·"),
        "μ": "µ",  # the Greek letter as the sign of micro
        "º": "°",
        "Ω": "Ω",  # the sign of ohm as the Greek letter
        "＝": "=",
    }
)
_STYLES = "text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|operatorname|mbox|emph|underline"
_STYLE = re.compile(rf"\\(?:{_STYLES})\s*\{{([^{{}}]*)\}}")
_LAYOUT = [  # in this order
    (re.compile(r"\\!\s*"), ""),
    (re.compile(r"\\[,;: ]|~(?!~)|\\q?quad\b|\\(?:displaystyle|textstyle|left|right|[bB]igg?[lr]?)(?![A-Za-z])"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\([%&#])"), r"\1"),
]
_MARKUP = [
    (re.compile(r"~~[^~\n]*~~"), " "),  # struck out
    (re.compile(r"(?<![\w*)}])\*\*(?!\*)([^*\n]{1,500}?)\*\*(?![\w*(])"), r"\1"),
    (re.compile(r"(?<![\w*)}])\*([^*\s][^*\n]{0,500}?)\*(?![\w*(])"), r"\1"),
    (re.compile(r"(?<![\w_])__([^_\n]{1,500}?)__(?![\w_])"), r"\1"),
    (re.compile(r"```[a-z]*\n?|`"), ""),
    (re.compile(r"</?(?:b|i|u|em|strong|code|p|br|span|div)\s*/?>", re.IGNORECASE), ""),
    (re.compile(r"^\s{0,3}#{1,6}[ \t]*(?=\D)", re.MULTILINE), ""),  # headings; `#### 72` is a mark
]
_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ('"', '"'), ("'", "'"))


def plain(text: str) -> str:
    """The end of a text with one character for one thing: minus signs, blanks, quotes, powers, fractions."""
    text = re.sub(r"[ \t]+", " ", text.translate(_CHARACTERS))
    text = re.sub(r" ?[\r\n\f\v](?: ?[\r\n\f\v])+", "\n\n", text.replace("\r\n", "\n")).strip()[-MOST_CHARACTERS:]
    text = re.sub(r"(?<![\w.)}%])–\s?(?=[\d.$€£¥])", "-", text)  # an en dash before a number, but not 3–5
    text = re.sub(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(
        r"(\d?) ?([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", lambda f: f"{f[1]} {_FRACTIONS[f[2]]}" if f[1] else _FRACTIONS[f[2]], text
    )
    return re.sub(r"(?<=[\w)}])\*\*(?=[\w(+-])", "^", text)


def without_markup(text: str) -> str:
    """Without bold, italics, code and HTML marks; what is struck out is gone."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def without_layout(text: str) -> str:
    r"""LaTeX without spacing and sizes; `\frac12` as `\frac{1}{2}`, `^\circ` as °."""
    for pattern, replacement in _LAYOUT:
        text = pattern.sub(replacement, text)
    return text


def without_styles(text: str) -> str:
    r"""`\text{...}` and its like as their contents."""
    for _ in range(3):  # nested
        text = _STYLE.sub(r" \1 ", text)
    return text


def bare(text: str) -> str:
    r"""Without what surrounds a whole answer: blanks, quotes, `$`, `\(`, and the punctuation after it."""
    for _ in range(4):
        before = text
        text = re.sub(r"^#(?=\d)", "", text.strip()).rstrip(",;:").rstrip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for start, end in _PAIRS:
            inner = text[len(start) : -len(end)]
            if len(text) > len(start + end) and text.startswith(start) and text.endswith(end) and end not in inner:
                text = inner
        if text == before:
            break
    return text


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and contents of each closed `\boxed{...}` (or `\fbox`), the outermost, in order."""
    found: list[tuple[int, int, str]] = []
    for box in re.finditer(r"\\f?box(?:ed)?\s*\{", text):
        if found and box.start() < found[-1][1]:
            continue  # inside the one before
        depth = 1
        for brace in re.finditer(r"(?<!\\)[{}]", text[box.end() : box.end() + MOST_BOX]):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                found.append((box.start(), box.end() + brace.end(), text[box.end() : box.end() + brace.start()]))
                break
    return found
