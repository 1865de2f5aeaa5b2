"""Two sets of explanations made equally long."""

from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.studies.matching import balanced_questions


def test_equal_enough_sets_keep_all_common_questions():
    assert balanced_questions({1: 50, 2: 50, 3: 9}, {2: 51, 1: 50, 7: 9}, tolerance=0.01) == [1, 2]


def test_the_largest_excess_is_left_out_first():
    first, second = {1: 90, 2: 60, 3: 50, 4: 40}, {1: 50, 2: 50, 3: 50, 4: 50}
    assert balanced_questions(first, second, tolerance=0.02) == [2, 3, 4]  # 150 and 150 tokens
    assert balanced_questions(second, first, tolerance=0.02) == [2, 3, 4]
    assert balanced_questions(first, second, tolerance=0.2) == [1, 2, 3, 4]  # 240 and 200


def test_at_least_half_stays():
    assert balanced_questions({q: 90 + q for q in range(4)}, dict.fromkeys(range(4), 10), tolerance=0.0) == [0, 1]
    assert balanced_questions({1: 5}, {2: 5}, tolerance=0.1) == []


lengths = st.dictionaries(st.integers(0, 30), st.integers(1, 300), max_size=20)


@given(lengths, lengths, st.floats(0, 0.5))
def test_what_is_left_is_balanced_or_half(first, second, tolerance):
    kept, common = balanced_questions(first, second, tolerance=tolerance), sorted(first.keys() & second.keys())
    assert kept == sorted(set(kept)) and set(kept) <= set(common)
    ours, theirs = sum(first[q] for q in kept), sum(second[q] for q in kept)
    longer_before = sum(first[q] - second[q] for q in common) > 0
    excess = ours - theirs if longer_before else theirs - ours
    assert excess <= tolerance * min(ours, theirs) or len(kept) == max(1, round(len(common) / 2))
