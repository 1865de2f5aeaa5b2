"""Static shapes for ragged rows: a few bucket lengths, a fixed number of rows, so that compiled programs are reused."""

from collections.abc import Iterator, Sequence

import numpy as np

SMALLEST_BUCKET = 32  # below this a longer row costs nothing


def bucket_length(length: int) -> int:
    """Smallest of 32, 48, 64, 96, 128, 192, ... that is >= length. At most a third is padding."""
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def pad_rows(rows: Sequence[np.ndarray], length: int, *, num_rows: int, value: float = 0) -> np.ndarray:
    """Right-pad 1-D rows into one [num_rows, length] array of their dtype; rows that are not there are all `value`."""
    padded = np.full((num_rows, length), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut rows into batches of like length: yields (row indices i64[<= batch_size], bucket length), longest first.

    Longest first, so that a batch that does not fit in memory shows at once.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, bucket_length(lengths[indices[0]])
