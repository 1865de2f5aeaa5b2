"""How many tokens texts have: bounds without tokenising where they can be proven, counts where they cannot.

A byte-level BPE tokenizer cuts the (normalised) text into tokens of one to `longest` bytes each, so that

    bytes / longest  <=  tokens  <=  bytes

and added tokens (`<|im_end|>`) cut it before anything else: what stands between two of them is tokenised by itself,
wherever it stands. So the pieces that all rows of a data set share are tokenised once, and most rows are known to fit,
or not to fit, by the bytes of the rest. Tokenizers of other kinds, or that may drop or add characters, tokenise it all.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rlt_jax.data.encoding import byte_of_char

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNKNOWN = 2**62  # tokens: more than any text has
MOST_SPLIT = 2**20  # characters of an ASCII text that is searched for added tokens: a longer one is bounded as a whole
MOST_EXACT = 2**16  # characters of a text that is counted although it surely exceeds a limit, to say by how much
MOST_REMEMBERED = 20_000  # pieces whose counts are kept,
LONGEST_REMEMBERED = 1024  # of at most so many characters each
PER_CALL = 2**20  # characters tokenised at once: the tokenizer needs about 100 bytes for each token
UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}  # which leave ASCII as it is
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


class Length(NamedTuple):
    """The number of tokens of a text, or what is known of it: low <= tokens <= high."""

    low: int
    high: int

    @staticmethod
    def exact(count: int) -> "Length":
        """Of a text whose tokens were counted."""
        return Length(count, count)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"at least {self.low}"

    def __add__(self, other: object) -> "Length":
        if not isinstance(other, Length):
            return NotImplemented
        return Length(self.low + other.low, min(self.high + other.high, UNKNOWN))

    def cut(self, most: int) -> "Length":
        """Of the text truncated to at most so many tokens."""
        return Length(min(self.low, most), min(self.high, most))


class TokenCounter:
    """Counts the tokens of texts, and keeps the counts of short pieces that may occur again. Made by `counter_of`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer
        self._bytes = _byte_rules(tokenizer)
        self._known = {"": 0}

    def bounds(self, text: str) -> Length:
        """What is known of a text's length without tokenising it."""
        rules = self._bytes
        if rules is None:
            return Length(0, UNKNOWN)
        if len(text) > MOST_SPLIT and not rules.normalises(text):
            size = len(text.encode())
            return Length(-(-size // rules.longest), size)
        pieces = rules.pieces(text)
        low = high = len(pieces) - 1
        for piece in pieces:
            known = self._known.get(piece)
            if known is None:
                size = rules.size(piece)
                low -= -size // rules.longest
                high += size
            else:
                low += known
                high += known
        return Length(low, high)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""
        if self._bytes is None:
            return self._tokenised(texts)
        pieces = [self._bytes.pieces(text) for text in texts]
        unknown = list(dict.fromkeys(piece for parts in pieces for piece in parts if piece not in self._known))
        counted = dict(zip(unknown, self._tokenised(unknown)))
        totals = [
            len(parts) - 1 + sum(counted[piece] if piece in counted else self._known[piece] for piece in parts)
            for parts in pieces
        ]
        for piece in unknown[: max(MOST_REMEMBERED - len(self._known), 0)]:
            if len(piece) <= LONGEST_REMEMBERED:
                self._known[piece] = counted[piece]
        return totals

    def lengths(self, texts: Sequence[tuple[str, ...]], limits: Sequence[int]) -> list[Length]:
        """The lengths of texts: exact unless they surely keep all limits, or are long and surely exceed the lowest.

        Args:
          texts: each in parts that are tokenised separately.
          limits: of the sum over the parts, tokens.
        """
        found = [sum(map(self.bounds, parts), Length(0, 0)) for parts in texts]
        undecided = [
            i
            for i, (low, high) in enumerate(found)
            if any(low <= limit < high for limit in limits)
            or (any(low > limit for limit in limits) and sum(map(len, texts[i])) <= MOST_EXACT)
        ]
        counts = iter(self.counts([part for i in undecided for part in texts[i]]))
        for i in undecided:
            exact = sum(next(counts) for _ in texts[i])  # of the parts
            found[i] = Length.exact(exact)
        return found

    def has_own_token(self, text: str) -> bool:
        """Whether a token lies entirely in `text` wherever it stands; False if that is not certain without tokenising.

        Of 2 * longest bytes in a row, the token that holds the first ends before the byte `longest`, so the next one
        ends by the byte 2 * longest. A normaliser changes none of these bytes where they are ASCII and one more ASCII
        character follows, so that no accent joins the last.
        """
        rules = self._bytes
        if rules is None or not rules.keeps_ascii or len(text) <= 2 * rules.longest:
            return False
        return any(len(run) > 2 * rules.longest for run in NOT_ASCII.split(text))

    def _tokenised(self, texts: Sequence[str]) -> list[int]:
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()  # what tokenizer.json may ask for, and every call of the tokenizer turns off
        backend.no_padding()
        return [
            len(encoding)
            for batch in batches(texts, PER_CALL)
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)
        ]


@lru_cache(maxsize=8)
def counter_of(tokenizer: "PreTrainedTokenizerFast") -> TokenCounter:
    """The counter of a tokenizer, with what it has counted before."""
    return TokenCounter(tokenizer)


def batches(texts: Sequence[str], most: int) -> Iterator[list[str]]:
    """The texts in order, in lists of at most `most` characters together, or of a single longer text."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > most:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


class _ByteRules:
    """How a byte-level BPE tokenizer cuts a text. Made by `_byte_rules`."""

    def __init__(self, longest: int, added: Sequence[str], normalizer: object, keeps_ascii: bool) -> None:
        self.longest = longest  # bytes of a token
        self.keeps_ascii = keeps_ascii  # whether the normaliser leaves ASCII as it is
        self._normalizer = normalizer
        # As the tokenizer does: the leftmost one, and of those the longest.
        self._added = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True)))) if added else None

    def normalises(self, text: str) -> bool:
        """Whether the normaliser may change the text."""
        return self._normalizer is not None and not (self.keeps_ascii and text.isascii())

    def pieces(self, text: str) -> list[str]:
        """What stands between the added tokens: one more piece than there are of them, some of them empty."""
        return [text] if self._added is None else self._added.split(text)

    def size(self, piece: str) -> int:
        """Bytes of a piece after normalisation."""
        if piece and self.normalises(piece):
            piece = self._normalizer.normalize_str(piece)  # type: ignore[attr-defined]
        return len(piece) if piece.isascii() else len(piece.encode())


def _byte_rules(tokenizer: "PreTrainedTokenizerFast") -> _ByteRules | None:
    """None: the bounds may not hold for this tokenizer."""
    backend = tokenizer.backend_tokenizer
    parts = json.loads(backend.to_str())
    model, added = parts["model"], parts["added_tokens"]
    if backend.encode_special_tokens or any(
        not token["content"] or token["lstrip"] or token["rstrip"] or token["single_word"] for token in added
    ):
        return None
    if model["type"] != "BPE" or not _cuts_into_bytes(parts["pre_tokenizer"]):
        return None
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")):
        return None
    written = {char for char, byte in byte_of_char().items() if byte not in NEVER_IN_UTF8}
    if not written <= model["vocab"].keys():  # a byte without a token is dropped, or unknown
        return None
    normalizer = parts["normalizer"]
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    texts = [token["content"] for token in added]
    if backend.normalizer is not None:
        texts += [backend.normalizer.normalize_str(text) for text in texts]  # some added tokens are found as this
    return _ByteRules(
        longest=max([*map(len, model["vocab"]), *(len(text.encode()) for text in texts)]),
        added=[token["content"] for token in added if not token["normalized"]],
        normalizer=backend.normalizer,
        keeps_ascii=all(step["type"] in UNICODE_FORMS for step in steps),
    )


def _cuts_into_bytes(pre_tokenizer: dict | None) -> bool:
    """Whether it cuts a text into pieces of bytes, and neither drops nor adds any."""
    if pre_tokenizer is None:
        return False
    *steps, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    return all(
        step["type"] == "Digits" or (step["type"] in ("Split", "Punctuation") and step["behavior"] != "Removed")
        for step in steps
    )
