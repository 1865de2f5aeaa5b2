"""Static shapes for ragged rows: few bucket lengths and a fixed number of rows, so that programs are reused."""

from collections.abc import Sequence

import numpy as np

SMALLEST_BUCKET = 32  # tokens; below this, padding costs nothing


def bucket_length(length: int) -> int:
    """Smallest of 32, 48, 64, 96, 128, 192, ... that is >= length. At most a third is padding."""
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def bucket_within(length: int) -> int:
    """Largest of the same that is <= length, and at least 32."""
    size = SMALLEST_BUCKET
    while (longer := bucket_length(size + 1)) <= length:
        size = longer
    return size


def pad_rows(rows: Sequence[np.ndarray], length: int, *, num_rows: int, value: float = 0) -> np.ndarray:
    """Right-pad 1-D rows into one [num_rows, length] array of their dtype; missing rows hold `value`."""
    padded = np.full((num_rows, length), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def power_of_two(count: int) -> int:
    """Smallest power of two that is >= count."""
    return 1 << max(count - 1, 0).bit_length()
