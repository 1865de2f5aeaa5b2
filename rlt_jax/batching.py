"""Static shapes for ragged rows: few bucket lengths and a fixed number of rows, so that programs are reused."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

SMALLEST_BUCKET = 32  # tokens; below this, padding costs nothing


def bucket_length(length: int) -> int:
    """Smallest of 32, 48, 64, 96, 128, 192, ... that is >= length. At most a third is padding."""
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def pad_rows(rows: Sequence[np.ndarray], length: int, *, num_rows: int, value: float = 0) -> np.ndarray:
    """Right-pad 1-D rows into one [num_rows, length] array of their dtype; missing rows hold `value`."""
    padded = np.full((num_rows, length), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut rows into batches of similar length: yields (row indices i64[<= batch_size], bucket length), longest first.

    Longest first, so that a batch that does not fit in memory fails at once.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, bucket_length(lengths[indices[0]])


class Sequences(NamedTuple):
    """The rows of one batch, grouped by sequence."""

    packs: list[list[int]]  # row indices of each sequence, in order
    length: int  # bucket of the longest sequence, tokens
    num_sequences: int  # including empty ones that fill up the batch


def sequence_batches(lengths: Sequence[int], batch_size: int, *, packed_length: int | None = None) -> list[Sequences]:
    """`length_batches` of sequences with one row each, or with several packed so that padding is least.

    Packed sequences are spread evenly over the batches, so that few empty ones are needed to fill them up.

    Args:
      batch_size: sequences per batch, at most.
      packed_length: pack rows into sequences of at most this many tokens, rounded up to a bucket, or as long as the
        longest row if that is longer. Of the buckets in between, the one with the least padding is used. None: one row
        per sequence.
    """
    if packed_length is None or not lengths:
        return _cut([[i] for i in range(len(lengths))], lengths, batch_size)
    capacities = [bucket_length(max(lengths))]
    while (longer := bucket_length(capacities[-1] + 1)) <= bucket_length(packed_length):
        capacities.append(longer)

    def packed_into(capacity: int) -> list[Sequences]:
        packs = pack_rows(lengths, capacity)
        num_batches = -(-len(packs) // batch_size)
        return _cut(packs, lengths, -(-len(packs) // num_batches))

    def num_tokens(batches: list[Sequences]) -> int:
        return sum(batch.num_sequences * batch.length for batch in batches)

    return min(map(packed_into, capacities), key=num_tokens)  # ties: the shortest, as attention is quadratic


def _cut(packs: list[list[int]], lengths: Sequence[int], batch_size: int) -> list[Sequences]:
    batches = length_batches([sum(lengths[i] for i in pack) for pack in packs], batch_size)
    return [Sequences([packs[i] for i in indices], length, batch_size) for indices, length in batches]


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Cut rows into packs of at most `capacity` tokens, first fit, longest first; returns each pack's row indices.

    All packs but one are more than half full.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for i in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        pack = next((pack for pack, free in enumerate(room) if free >= lengths[i]), len(packs))
        if pack == len(packs):
            packs.append([])
            room.append(capacity)
        packs[pack].append(i)
        room[pack] -= lengths[i]
    return packs


def join_rows(rows: Sequence[np.ndarray], sequences: Sequences) -> np.ndarray:
    """[num_sequences, length] of the rows' dtype: the rows of each sequence one after the other, right-padded."""
    joined = [np.concatenate([rows[i] for i in pack]) for pack in sequences.packs]
    return pad_rows(joined, sequences.length, num_rows=sequences.num_sequences)


def segments_of(lengths: Sequence[int], sequences: Sequences) -> np.ndarray:
    """i32[num_sequences, length]: 1 on the tokens of a sequence's first row, 2 on the second's, ...; 0 on padding."""
    numbers = [np.repeat(np.arange(len(pack)) + 1, [lengths[i] for i in pack]) for pack in sequences.packs]
    padded = pad_rows(numbers, sequences.length, num_rows=sequences.num_sequences)
    return padded.astype(np.int32)
