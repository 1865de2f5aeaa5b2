"""What every sampler refuses, with the messages."""

import numpy as np
import pytest

from rlt_jax.errors import UserError
from rlt_jax.sampling.base import check_params, check_requests, excluded_ids
from rlt_jax.types import Request, SamplingParams


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0: expected at least 1 token per completion"),
        ({"temperature": -0.1}, "temperature=-0.1: expected a finite number >= 0 (0 is greedy)"),
        ({"temperature": float("nan")}, "temperature=nan: expected a finite number >= 0 (0 is greedy)"),
        ({"temperature": float("inf")}, "temperature=inf: expected a finite number >= 0 (0 is greedy)"),
        ({"top_k": -1}, "top_k=-1: expected a number of tokens to keep, or 0 for all"),
        ({"top_p": 0.0}, "top_p=0.0: expected 0 < top_p <= 1 (1 keeps all)"),
        ({"top_p": 1.5}, "top_p=1.5: expected 0 < top_p <= 1 (1 keeps all)"),
        ({"min_p": -0.1}, "min_p=-0.1: expected 0 <= min_p <= 1 (0 keeps all)"),
        ({"min_p": 1.1}, "min_p=1.1: expected 0 <= min_p <= 1 (0 keeps all)"),
    ],
)
def test_params_out_of_range(changes, message):
    with pytest.raises(UserError) as error:
        check_params(SamplingParams(**{"max_tokens": 4, **changes}))
    assert str(error.value) == message


def test_params_at_the_ends_of_their_ranges():
    check_params(SamplingParams(max_tokens=1, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0))
    check_params(SamplingParams(max_tokens=1, temperature=1e-3, top_k=10**6, top_p=1e-6, min_p=1.0))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "request 1 has an empty prompt: give it at least one token"),
        (
            [5] * 7,
            "request 1 has a prompt of 7 tokens, with max_tokens=4 that is 11, but the model has 10 positions: "
            "shorten the prompt to 6 tokens or lower max_tokens",
        ),
        (
            [5, 100, 7],
            "request 1 has token id 100, but the model knows 0 to 99: use the tokenizer that belongs to the model",
        ),
        (
            [-1, 7],
            "request 1 has token id -1, but the model knows 0 to 99: use the tokenizer that belongs to the model",
        ),
    ],
)
def test_prompts_without_a_continuation(prompt, message):
    good = Request(np.arange(6, dtype=np.int32), (0,))
    bad = Request(np.array(prompt, np.int32), (0,))
    with pytest.raises(UserError) as error:
        check_requests([good, bad], 4, vocab_size=100, max_positions=10)
    assert str(error.value) == message
    check_requests([good], 4, vocab_size=100, max_positions=10)


def test_what_is_excluded_is_neither_known_nor_an_end():
    assert excluded_ids(None, (3,), vocab_size=5).tolist() == []
    assert excluded_ids(np.array([0, 1, 2, 3, 4]), (), vocab_size=5).tolist() == []
    assert excluded_ids(np.array([0, 1, 7]), (3, 9), vocab_size=5).tolist() == [2, 4]  # 7 and 9 have no row
    assert excluded_ids(np.array([], np.int32), (3,), vocab_size=5).tolist() == [0, 1, 2, 4]


def test_a_model_that_has_none_of_the_ids_is_refused():
    with pytest.raises(ValueError, match="token_ids and eos_ids have no id below 5"):
        excluded_ids(np.array([5, 6]), (7,), vocab_size=5)


@pytest.mark.parametrize(
    ("changes", "filtered"),
    [
        ({}, False),
        ({"temperature": 0.3}, False),
        ({"top_k": 5}, True),
        ({"top_p": 0.9}, True),
        ({"min_p": 0.1}, True),
        ({"min_p": 0.1, "temperature": 0.0}, False),  # greedy: no filter changes anything
    ],
)
def test_which_params_filter(changes, filtered):
    assert SamplingParams(max_tokens=1, **changes).filtered is filtered
