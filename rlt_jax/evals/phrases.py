"""The words by which a text declares, denies, supposes, corrects or withdraws an answer."""

import re

from rlt_jax.evals.units import CHANGERS


def any_of(*phrases: str) -> str:
    """A pattern of any of these, each a pattern itself, without a group; the longest first."""
    return f"(?:{'|'.join(sorted(phrases, key=len, reverse=True))})"


_CORRECTION_WORDS = ("no", "wait", "actually", "sorry", "oops", "correction", "hold on", "hmm", "rather", "or rather")
CORRECTION = any_of(*_CORRECTION_WORDS, "scratch that", "i meant?")
BECAUSE = any_of("because", "since")
_MONTHS = "January February March April May June July August September October November December"
_MONTH = any_of(*_MONTHS.split())

DOUBT = re.compile(  # in the clause before a declaration
    rf"\b{any_of('not', 'cannot', 'never', 'neither', 'nor', 'none', 'wrong', 'incorrect', 'doubt')}\b"
    rf"|\b{any_of('if', 'suppose', 'supposing', 'assume', 'assuming', 'whether', 'unless', 'is the')}\b"
    rf"|\b{any_of('would', 'might', 'could')} say\b|n't\b",
    re.IGNORECASE,
)
CLAUSE_END = re.compile(r"[.,;:!?\n]\s|\bbut\b")
SENTENCE_END = re.compile(r"\n|(?<=[.!?])\s")

_IS = any_of("is", "are", "was", "be", "equals", "becomes")
DECLARES = re.compile(  # what comes next is a value
    rf"\b{any_of('answer', 'result', 'solution')}\b[*\"]{{0,3}}"
    rf"(?:(?: [A-Za-z$'()-]{{1,20}}){{0,6}}? {_IS}\b ?:?| ?(?::|=|-(?=\s))|\s{{0,3}}\n)[*]{{0,3}}\s{{0,4}}"
    r"|(?:^|(?<=\n)) {0,3}####\s{0,4}|<answer>\s{0,4}",
    re.IGNORECASE,
)
_ADVERBS = "exactly just simply therefore thus then hence now clearly indeed about approximately only roughly around"
FILLERS = re.compile(  # between "the answer is" and the value
    rf"(?:{any_of(*_ADVERBS.split(), 'also', 'still', 'equal to', 'given by', 'found to be', 'will be')}(?!\w)\s*"
    rf"|{any_of('the number', 'the value', 'a total of', 'the final answer is')}(?!\w)\s*"
    r"|(?:ca|approx)\.\s*|[≈=:]\s*|\\approx\s*|\\boxed\s*)*",
    re.IGNORECASE,
)
_BOUND = any_of("more than", "less than", "fewer than", "greater than", "larger than", "smaller than", "up to")
_OPERATION = any_of("minus", "negative", "plus", "times", "over", "divided by", "root of", "log of", "logarithm of")
_SHARE = any_of("none", "neither", "some", "most", "all", "each", "any", "one", "two", "three", "[0-9]") + " of"
OPEN = re.compile(  # before a number that is no value by itself
    rf"\b(?:between|either|at least|at most|{_BOUND}|{_OPERATION}|out of|(?:half|third|quarter) of|twice|thrice|double"
    rf"|mod(?:ulo)?|e\.g\.|such as|for (?:example|instance),?|{_MONTH}"
    rf"|{_SHARE}(?: (?:the|these|those|his|her|their))?)\s*\W{{0,3}}$",
    re.IGNORECASE,
)
CHANGED = re.compile(  # after such a number
    rf"[ -]?(?:{any_of(*CHANGERS)}|and an? (?:half|third|quarter)|out of|to the|(?:more|less|fewer) than)(?![A-Za-z])"
    rf"|(?:st|nd|rd|th) of [A-Z]|-[A-Za-z]| {_MONTH}\b",
    re.IGNORECASE,
)
DENIED = re.compile(  # before a value
    rf"(?:\b{any_of('not', 'never', 'cannot be', 'rather than', 'instead of', 'no longer')}|n't|≠)\s*"
    r"(?:be\s+|equal to\s+|equals?\s+)?[^\w\s]{0,3}$",
    re.IGNORECASE,
)
CORRECTS = re.compile(  # the rest of the line is another value
    rf"(?:^|(?<=[.!?…—\n]))[\s*\"]*(?:{CORRECTION}\b[\s,.:;!…—–-]*)+"
    rf"(?:{any_of('it', 'that', 'this', 'the answer', 'the result')}(?:'s|\s(?:is|(?:should|must|would) be))\s+"
    r"|make (?:that|it)\s+)?(?P<rest>[^\n]{1,200})",
    re.IGNORECASE,
)
_WRONG = any_of("wrong", "incorrect", "not right", "not correct")
WITHDRAWS = re.compile(  # after a declaration
    rf"\b(?:that|this|it|which|answer)(?:'s|\s(?:is|was|must be|seems))\s+(?:\w+\s+)?"
    rf"(?:{_WRONG}|a mistake|mistaken|impossible)\b|^\W{{0,4}}(?:is|was)\s(?:{_WRONG}|not the)\b",
    re.IGNORECASE,
)
JOINS = re.compile(  # between two values that stand side by side
    r"\s*(?:,?\s*(?:or|and|to|through)|,|;|–)\s*(?:either\s+)?(?:\\?\$)?", re.IGNORECASE
)


def is_doubted(text: str, position: int) -> bool:
    """Whether the clause before `position` denies or only supposes what follows it."""
    before = text[max(0, position - 100) : position]
    return bool(DOUBT.search(CLAUSE_END.split(before)[-1]))
