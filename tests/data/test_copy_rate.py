"""Copied runs of a thought, against a definition written the slow way."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.data import copy_rate


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
