"""Static shapes: few bucket lengths, little padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.batching import bucket_length, bucket_within, pad_rows, power_of_two


def test_buckets_by_hand():
    assert [bucket_length(n) for n in (0, 1, 32, 33, 48, 49, 64, 65, 97, 129, 193)] == [
        *(32, 32, 32, 48, 48, 64, 64, 96, 128, 192, 256)
    ]


def test_few_buckets_with_little_padding():
    buckets = {bucket_length(n) for n in range(1, 16385)}
    assert len(buckets) == 19  # so many programs at most, for rows of up to 16384 tokens
    for n in range(33, 16385):
        assert n <= bucket_length(n) < 1.5 * n  # at most a third is padding
        assert bucket_length(bucket_length(n)) == bucket_length(n)


def test_rows_are_padded_on_the_right_and_missing_rows_are_all_padding():
    rows = [np.array([1, 2, 3], np.int32), np.array([], np.int32), np.array([4], np.int32)]
    padded = pad_rows(rows, 4, num_rows=4, value=9)
    assert padded.dtype == np.int32
    assert padded.tolist() == [[1, 2, 3, 9], [9, 9, 9, 9], [4, 9, 9, 9], [9, 9, 9, 9]]


def test_masks_are_padded_with_false():
    assert pad_rows([np.ones(2, bool)], 3, num_rows=2).tolist() == [[True, True, False], [False] * 3]


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="broadcast"):
        pad_rows([np.arange(5)], 4, num_rows=1)


@given(st.integers(0, 20000))
def test_the_bucket_within_is_the_last_that_fits(length):
    within = bucket_within(length)
    assert within == bucket_length(within)
    assert within <= length < bucket_length(within + 1) or within == 32 > length


def test_powers_of_two_by_hand():
    assert [power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 1000)] == [1, 1, 2, 4, 4, 8, 8, 16, 1024]
