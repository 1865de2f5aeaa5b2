"""Static shapes: few bucket lengths, little padding, every row once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.batching import (
    Sequences,
    bucket_length,
    join_rows,
    length_batches,
    pack_rows,
    pad_rows,
    segments_of,
    sequence_batches,
)


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


@given(st.lists(st.integers(1, 700), max_size=40), st.integers(1, 7))
def test_every_row_comes_once_with_rows_of_like_length(lengths, batch_size):
    batches = list(length_batches(lengths, batch_size))
    assert sorted(int(i) for indices, _ in batches for i in indices) == list(range(len(lengths)))
    assert all(len(indices) == batch_size for indices, _ in batches[:-1])
    in_order = [lengths[i] for indices, _ in batches for i in indices]
    assert in_order == sorted(lengths, reverse=True)  # longest first
    for indices, bucket in batches:
        assert bucket == bucket_length(max(lengths[i] for i in indices))


def test_rows_of_equal_length_keep_their_order():
    assert [indices.tolist() for indices, _ in length_batches([5, 9, 5, 9, 5], 2)] == [[1, 3], [0, 2], [4]]


def test_packs_by_hand():
    """60 leaves room for 4; 40 for 20, which 33 has none for; ..."""
    assert pack_rows([30, 60, 4, 20, 40, 30, 33], 64) == [[1, 2], [4, 3], [6, 0], [5]]
    assert pack_rows([64, 1], 64) == [[0], [1]]  # a full sequence takes nothing more
    assert pack_rows([3, 3, 3], 64) == [[0, 1, 2]]
    assert pack_rows([3, 70], 64) == [[1], [0]]
    assert pack_rows([], 64) == []


@given(st.lists(st.integers(1, 700), max_size=60), st.integers(700, 4096))
def test_packs_hold_every_row_once_and_are_more_than_half_full(lengths, capacity):
    packs = pack_rows(lengths, capacity)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    tokens = sorted(sum(lengths[i] for i in pack) for pack in packs)
    assert all(count <= capacity for count in tokens)
    assert all(2 * count > capacity for count in tokens[1:])  # two that are not would have been one


def test_sequences_by_hand():
    lengths, rows = [5, 3, 31, 8], [np.full(n, n, np.int32) for n in (5, 3, 31, 8)]
    (packed,) = sequence_batches(lengths, 9, packed_length=32)
    assert packed == Sequences([[2], [3, 0, 1]], length=32, num_sequences=2)  # nothing is filled up to 9
    ids, segments = join_rows(rows, packed), segments_of(lengths, packed)
    assert ids.tolist() == [[31] * 31 + [0], [8] * 8 + [5] * 5 + [3] * 3 + [0] * 16]
    assert segments.tolist() == [[1] * 31 + [0], [1] * 8 + [2] * 5 + [3] * 3 + [0] * 16]
    assert ids.dtype == segments.dtype == np.int32


def test_without_packing_sequences_are_single_rows_of_full_batches():
    (single,) = sequence_batches([5, 3, 31, 8], 9)
    assert single == Sequences([[2], [3], [0], [1]], length=32, num_sequences=9)


@pytest.mark.parametrize(
    ("packed_length", "expected"),
    [
        (1, [64, 48, 48, 48]),  # the longest row needs 64: one row each
        (96, [64, 48, 48, 48]),  # two rows in 96, one in 64, one in 48 are as many tokens
        (100, [64, 48, 48, 48]),  # up to 128, where they would be 128 + 96
        (129, [192]),  # all four
        (5000, [192]),
    ],
)
def test_the_length_of_sequences_is_that_of_least_padding(packed_length, expected):
    batches = sequence_batches([60, 40, 45, 42], 1, packed_length=packed_length)
    assert [batch.length for batch in batches] == expected


def test_a_row_longer_than_packed_sequences_stands_alone_and_others_may_be_as_long():
    batches = sequence_batches([300, 20, 20, 350], 1, packed_length=64)
    assert [batch.packs for batch in batches] == [[[3, 1]], [[0, 2]]]
    assert [batch.length for batch in batches] == [384, 384]


@pytest.mark.parametrize(("batch_size", "expected"), [(1, [1] * 9), (4, [3, 3, 3]), (8, [5, 5]), (9, [9]), (50, [9])])
def test_batches_of_packed_sequences_are_of_like_size(batch_size, expected):
    batches = sequence_batches([40] * 9, batch_size, packed_length=48)  # two of 40 do not fit into 48
    assert [batch.num_sequences for batch in batches] == expected
    assert sum(len(batch.packs) for batch in batches) == 9


@given(st.lists(st.integers(1, 700), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 3000))
def test_packed_batches_hold_every_row_once_within_their_limits(lengths, batch_size, packed_length):
    batches = sequence_batches(lengths, batch_size, packed_length=packed_length)
    assert sorted(i for batch in batches for pack in batch.packs for i in pack) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.packs) <= batch.num_sequences <= batch_size
        assert batch.length == bucket_length(max(sum(lengths[i] for i in pack) for pack in batch.packs))
        assert batch.length <= bucket_length(max(packed_length, *lengths))


@pytest.mark.parametrize("packed_length", [None, 64])
def test_no_rows_give_no_batches(packed_length):
    assert sequence_batches([], 4, packed_length=packed_length) == []
