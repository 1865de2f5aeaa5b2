"""Checksums of arrays and files (XXH3, 128 bits): they find damage, not forgery.

xxhash takes 20 GB/s on one core, so that reading the bytes is what takes the time.
"""

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from rlt_jax.finite import NotFinite

THREADS = 8
_CHUNK = 1 << 18  # bytes at a time: what is hashed is still in the processor's cache when its exponents are looked at

# dtype -> (unsigned integers of its size, the bits of its exponent, which are all set in infinities and NaNs)
_EXPONENTS: dict[str, tuple[Any, int]] = {
    "float16": (np.dtype(np.uint16), 0x7C00),
    "bfloat16": (np.dtype(np.uint16), 0x7F80),
    "float32": (np.dtype(np.uint32), 0x7F80_0000),
    "float64": (np.dtype(np.uint64), 0x7FF0_0000_0000_0000),
}


class FileSum(NamedTuple):
    """Size and checksum of a file."""

    size: int  # bytes
    checksum: str


def checksum(data: bytes) -> str:
    """The checksum of some bytes."""
    return xxhash.xxh3_128(data).hexdigest()


def array_checksum(array: np.ndarray, finite: str | None = None) -> str:
    """The checksum of an array's bytes, in C order; dtype and shape do not enter.

    Args:
      finite: the array's name, if all its numbers must be finite.
    Raises:
      NotFinite: one is not.
    """
    digest = xxhash.xxh3_128()
    flat = np.ascontiguousarray(array).reshape(-1)
    data = flat.view(np.uint8)
    for start in range(0, data.size, _CHUNK):
        chunk = data[start : start + _CHUNK]
        digest.update(chunk.data)
        if finite is not None and not _is_finite(chunk, array.dtype.name):
            raise NotFinite(finite)
    return digest.hexdigest()


def _is_finite(chunk: np.ndarray, dtype: str) -> bool:
    """Whether all of an array's numbers are finite, of which `chunk` holds the bytes."""
    if dtype not in _EXPONENTS:
        return True
    unsigned, exponent = _EXPONENTS[dtype]
    words = chunk.view(unsigned)
    return bool((words & unsigned.type(exponent)).max() != exponent)


def file_sums(files: Iterable[Path], *, sync: bool = False) -> list[FileSum]:
    """Size and checksum of each file, several at a time.

    Args:
      sync: also wait until its bytes are on the disk.
    Raises:
      OSError: one cannot be read, or is no regular file.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda file: file_sum(file, sync=sync), files))


def file_sum(file: Path, *, sync: bool = False) -> FileSum:
    """Size and checksum of a file; see `file_sums`."""
    # without O_NONBLOCK, opening a pipe that stands in a file's place would wait for ever
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file")
        if sync:
            os.fsync(descriptor)
        digest, size, buffer = xxhash.xxh3_128(), 0, memoryview(bytearray(1 << 22))
        while count := opened.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileSum(size, digest.hexdigest())
