"""Text to token ids, with or without character offsets, and token ids to bytes.

Nothing here adds special tokens: the chat template has already written all of them into the text.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> np.ndarray:
    """Token ids of `text`, i32[T]."""
    return encode_batch(tokenizer, [text])[0]


def encode_batch(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, i32[T_i]; a single call of the tokenizer, which uses all cores."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]


def encode_with_offsets(tokenizer: "PreTrainedTokenizerFast", text: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids i32[T] and the characters [start, end) each token touches, i64[T, 2].

    If a character is split over several tokens, each of them has the range of the whole character.
    """
    return encode_batch_with_offsets(tokenizer, [text])[0]


def encode_batch_with_offsets(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`encode_with_offsets` of each text; a single call of the tokenizer, which uses all cores."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    return [
        (np.asarray(ids, np.int32), np.asarray(offsets, np.int64).reshape(-1, 2))
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"])
    ]


def ids_to_bytes(tokenizer: "PreTrainedTokenizerFast", ids: Iterable[int]) -> list[bytes]:
    """The UTF-8 bytes of each token; an id outside the vocabulary (a padded embedding row) has no bytes.

    Raises:
      UserError: the vocabulary is not byte-level BPE.
    """
    table = _token_bytes(tokenizer)
    return [table[i] if i < len(table) else b"" for i in map(int, ids)]


@lru_cache(maxsize=8)
def _token_bytes(tokenizer: "PreTrainedTokenizerFast") -> tuple[bytes, ...]:
    """Bytes of every id in the vocabulary. Added tokens are plain text, all others are byte-level."""
    byte_of = byte_of_char()
    added = {i: token.content.encode() for i, token in tokenizer.added_tokens_decoder.items()}
    vocab = tokenizer.get_vocab()
    table = [b""] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
        if i in added:
            table[i] = added[i]
            continue
        try:
            table[i] = bytes(byte_of[char] for char in token)
        except KeyError:
            raise UserError(
                f"expected a byte-level BPE tokenizer (as Qwen's), but its token {i} is {token!r}: "
                "use a model with such a tokenizer"
            ) from None
    return tuple(table)


def byte_of_char() -> dict[str, int]:
    """Inverse of GPT-2's alphabet for bytes: printable bytes as they are, the 68 others as U+0100 and up, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(unprintable)}
