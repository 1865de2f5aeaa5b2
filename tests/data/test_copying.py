"""Copied and repeated runs of a thought, against definitions written the slow way."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.data import copy_rate, repeat_rate


def by_definition(thought: list[int], solution: list[int], run: int) -> float:
    runs = [solution[i : i + run] for i in range(len(solution) - run + 1)]
    inside = [
        any(thought[s : s + run] in runs for s in range(max(0, t - run + 1), t + 1) if s + run <= len(thought))
        for t in range(len(thought))
    ]
    return sum(inside) / len(inside) if inside else 0.0


def test_values():
    solution = np.arange(20)
    assert copy_rate(np.arange(20), solution) == 1.0
    assert copy_rate(np.arange(7), solution) == 0.0  # shorter than a run
    assert copy_rate(np.concatenate([np.arange(8), [99] * 8]), solution) == 0.5
    assert copy_rate(np.arange(20)[::-1], solution) == 0.0
    assert copy_rate(np.array([], np.int32), solution) == 0.0
    assert copy_rate(np.arange(8), np.arange(7)) == 0.0


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30), st.integers(1, 5))
def test_equals_the_definition(thought, solution, run):
    rate = copy_rate(np.array(thought, np.int32), np.array(solution, np.int32), run)
    assert abs(rate - by_definition(thought, solution, run)) < 1e-12


def repeats_by_definition(thought: list[int], run: int) -> float:
    def repeated(start: int) -> bool:
        text = thought[start : start + run]
        return any(thought[s : s + run] == text for s in range(start - run + 1))

    inside = [
        any(repeated(s) for s in range(max(0, t - run + 1), t + 1) if s + run <= len(thought))
        for t in range(len(thought))
    ]
    return sum(inside) / len(inside) if inside else 0.0


def test_repeated_text():
    sentence = np.arange(10)
    assert repeat_rate(sentence) == repeat_rate(np.arange(0)) == 0.0
    assert repeat_rate(np.tile(sentence, 2)) == 0.5
    assert repeat_rate(np.tile(sentence, 5)) == 0.8
    assert repeat_rate(np.concatenate([sentence, [99], sentence[:7]])) == 0.0  # shorter than a run
    assert repeat_rate(np.zeros(16, int)) == 0.5  # eight of the same, and eight more
    assert repeat_rate(np.zeros(15, int)) == 0.0


@given(st.lists(st.integers(0, 1), max_size=30), st.integers(1, 5))
def test_repeats_equal_the_definition(thought, run):
    assert abs(repeat_rate(np.array(thought, np.int32), run) - repeats_by_definition(thought, run)) < 1e-12
