"""Which questions a step takes: the recorded sampler, and the stateless one that resumes."""

import json

import numpy as np
import pytest

from rlt_jax.data import chunked_order, questions_of_step
from rlt_jax.errors import UserError


def test_golden_orders(golden):
    cases = json.loads((golden / "sampler_cases.json").read_text())["cases"]
    assert len(cases) == 4
    for case in cases:
        args = case["args"]
        for permutations, expected in zip(case["permutations_per_iteration"], case["order_per_iteration"], strict=True):
            assert len(permutations) == args["artificial_epochs"]
            order = chunked_order(
                permutations,
                batch_size=args["batch_size"],
                mini_repeat_count=args["mini_repeat_count"],
                repeat_count=args["repeat_count"],
            )
            assert order.tolist() == expected and len(order) == case["true_len"]


def test_an_epoch_has_every_row_once_and_drops_the_rest():
    steps = [questions_of_step(s, num_rows=11, questions_per_step=3, seed=0) for s in range(6)]
    assert all(step.dtype == np.int64 and step.shape == (3,) for step in steps)
    for epoch in (steps[:3], steps[3:]):
        rows = np.concatenate(epoch)
        assert len(set(rows.tolist())) == 9 and set(rows.tolist()) <= set(range(11))
    assert np.concatenate(steps[:3]).tolist() != np.concatenate(steps[3:]).tolist()


def test_a_step_depends_on_its_arguments_alone():
    first = [questions_of_step(s, num_rows=10, questions_per_step=4, seed=7).tolist() for s in range(8)]
    again = [questions_of_step(s, num_rows=10, questions_per_step=4, seed=7).tolist() for s in reversed(range(8))]
    assert first == again[::-1]
    assert first != [questions_of_step(s, num_rows=10, questions_per_step=4, seed=8).tolist() for s in range(8)]
    assert first[0] == np.random.default_rng((7, 0)).permutation(10)[:4].tolist()
    assert first[2] == np.random.default_rng((7, 1)).permutation(10)[:4].tolist()


def test_artificial_epochs_join_permutations_before_chunking():
    joined = np.concatenate([np.random.default_rng((3, n)).permutation(5) for n in range(3)])
    steps = [questions_of_step(s, num_rows=5, questions_per_step=4, seed=3, artificial_epochs=3) for s in range(4)]
    assert np.concatenate(steps[:3]).tolist() == joined[:12].tolist()
    assert steps[3].tolist()[:4] == np.random.default_rng((3, 3)).permutation(5)[:4].tolist()


def test_too_few_rows_say_what_to_do():
    with pytest.raises(
        UserError,
        match=r"expected at least 8 rows for one step, but there are 3 x 2 .* at most 6, set artificial_epochs to 3",
    ):
        questions_of_step(0, num_rows=3, questions_per_step=8, seed=0, artificial_epochs=2)
