"""Checksums: those of the bytes, and no array with a number that is not finite has one."""

import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_jax.checkpoints.checksums import array_checksum, file_sum, file_sums
from rlt_jax.finite import NotFinite

FLOATS = ["float16", "bfloat16", "float32", "float64"]


@given(st.sampled_from([*FLOATS, "uint16", "int32", "bool", "uint8"]), st.lists(st.integers(0, 70), max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_checksum_is_that_of_the_bytes(dtype, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    assert array_checksum(array) == array_checksum(array, "w") == xxhash.xxh3_128(array.tobytes()).hexdigest()
    assert array_checksum(array.T) == xxhash.xxh3_128(array.T.tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf"])
@pytest.mark.parametrize("at", [0, 70_000, 299_999])
def test_one_number_that_is_not_finite_is_found(dtype, value, at):
    array = np.zeros((3, 100_000), dtype)
    array.reshape(-1)[at] = float(value)
    with pytest.raises(NotFinite) as refusal:
        array_checksum(array, "the policy's w")
    assert refusal.value.culprit == "the policy's w"
    array_checksum(array)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_and_smallest_numbers_are_finite(dtype):
    limits = ml_dtypes.finfo(dtype)
    numbers = [limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 0.0, -0.0]
    array_checksum(np.array(numbers).astype(dtype), "w")


def test_integers_hold_any_bits():
    """The low halves of the masters are such."""
    array_checksum(np.full(9, 0xFFFF, np.uint16), "w")


def test_files(tmp_path):
    contents = {"a": b"", "b": b"x" * 5_000_000, "c": b"abc"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = file_sums((tmp_path / name for name in contents), sync=True)
    assert found == [(len(content), xxhash.xxh3_128(content).hexdigest()) for content in contents.values()]


def test_what_is_no_regular_file_is_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError):
            file_sum(path)
