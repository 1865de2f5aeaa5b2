"""The next token against transformers' logits warpers, against the probabilities themselves, and its cost."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rlt_jax.sampling.next_token import BLOCK, mode_and_arrays, next_tokens, process_logits, sample_tokens
from rlt_jax.types import SamplingParams

sample_tokens = jax.jit(sample_tokens)

FILTERS = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "top-k 1": {"top_k": 1},
    "top-k": {"top_k": 40},
    "top-k above the vocabulary": {"top_k": 10**6},
    "top-p": {"top_p": 0.8},
    "top-p of one token": {"top_p": 1e-6},
    "min-p": {"min_p": 0.05},
    "min-p of one token": {"min_p": 1.0},
    "all": {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
}


def processed(logits, **changes):
    mode, params = mode_and_arrays(SamplingParams(max_tokens=1, **changes))
    return jax.jit(process_logits, static_argnames="mode")(jnp.asarray(logits), params, mode=mode)


def warped(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The same by transformers' classes, in vLLM's order."""
    scores = torch.tensor(logits) / temperature
    if min_p > 0:
        scores = MinPLogitsWarper(min_p)(None, scores)
    if top_k > 0:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.numpy()


@pytest.mark.parametrize("vocab", [50, 1000])
@pytest.mark.parametrize("changes", FILTERS.values(), ids=FILTERS)
def test_filters_are_those_of_transformers(changes, vocab):
    logits = 2.5 * np.random.default_rng(vocab).standard_normal((16, vocab)).astype(np.float32)
    ours, theirs = np.asarray(processed(logits, **changes)), warped(logits, **changes)
    assert ((ours > -np.inf) == (theirs > -np.inf)).all()
    ours_logps, theirs_logps = jax.nn.log_softmax(ours), jax.nn.log_softmax(theirs)
    kept = theirs > -np.inf
    np.testing.assert_allclose(np.asarray(ours_logps)[kept], np.asarray(theirs_logps)[kept], rtol=1e-6, atol=2e-6)


def test_top_p_sees_what_top_k_left():
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    assert (np.asarray(processed(logits, top_p=0.6)) > -np.inf).tolist() == [[True, True, False]]
    assert (np.asarray(processed(logits, top_p=0.6, top_k=2)) > -np.inf).tolist() == [[True, False, False]]


def test_temperature_comes_before_min_p():
    logits = np.log(np.array([[0.6, 0.3, 0.1]], np.float32))
    assert (np.asarray(processed(logits, min_p=0.4)) > -np.inf).tolist() == [[True, True, False]]
    assert (np.asarray(processed(logits, min_p=0.4, temperature=0.5)) > -np.inf).tolist() == [[True, False, False]]


def test_tokens_that_tie_with_the_last_one_kept_stay():
    logits = np.array([[2.0, 1.0, 1.0, 0.0]], np.float32)
    assert (np.asarray(processed(logits, top_k=2)) > -np.inf).tolist() == [[True, True, True, False]]
    assert (np.asarray(processed(logits, top_p=0.6)) > -np.inf).tolist() == [[True, True, True, False]]


def test_top_p_off_keeps_a_tail_below_rounding():
    logits = np.concatenate([[20.0], np.full(999, -20.0)]).astype(np.float32)[None]
    assert (np.asarray(processed(logits, top_k=1000)) > -np.inf).all()


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=8, max_size=8),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 10),
    top_p=st.floats(1e-6, 1),
    min_p=st.floats(0, 1),
)
def test_the_likeliest_token_survives_every_filter(logits, temperature, top_k, top_p, min_p):
    logits = np.array([logits], np.float32)
    left = np.asarray(processed(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    assert left[0, logits.argmax()] == left.max() > -np.inf
    assert not np.isnan(left).any()


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "top_k": 60, "top_p": 0.95, "min_p": 0.01}])
def test_frequencies_match_the_processed_probabilities(changes):
    vocab, draws = 2 * BLOCK + 44, 200_000  # three blocks, the last one not full
    logits = jnp.asarray(1.5 * np.random.default_rng(0).standard_normal((1, vocab)).astype(np.float32))
    mode, params = mode_and_arrays(SamplingParams(max_tokens=1, **changes))
    keys = jax.vmap(jax.random.key)(jnp.arange(draws))

    @jax.jit
    def sample_all(logits):
        rows = jnp.broadcast_to(logits, (1000, vocab))
        return jax.lax.map(lambda keys: next_tokens(rows, keys, params, mode=mode), keys.reshape(-1, 1000))

    tokens, logps = jax.tree.map(np.ravel, jax.device_get(sample_all(logits)))
    expected = np.asarray(jax.nn.log_softmax(processed(logits, **changes)))[0].astype(np.float64)
    # Drawn from the filtered distribution, but the log-prob reported is the trainer's: of the whole distribution.
    whole = np.asarray(jax.nn.log_softmax(logits[0] / changes.get("temperature", 1.0)))
    np.testing.assert_allclose(logps, whole[tokens], atol=2e-6)
    counts = np.bincount(tokens, minlength=vocab)
    assert counts[expected == -np.inf].sum() == 0
    probs = np.exp(expected)
    often = probs * draws >= 5  # where the chi-square approximation holds; the rest counts as one outcome
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(probs[often], 1 - probs[often].sum())
    if not counts[~often].any():
        observed, wanted = observed[:-1], probs[often] / probs[often].sum()
    assert len(observed) > 30
    assert chisquare(observed, draws * wanted).pvalue > 1e-3


def test_a_row_depends_on_its_own_key_and_logits_only():
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((12, 700)), jnp.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(12))
    tokens, logps = sample_tokens(logits, keys)
    order = np.random.default_rng(2).permutation(12)
    permuted_tokens, permuted_logps = sample_tokens(logits[order], keys[order])
    assert (permuted_tokens == tokens[order]).all()
    assert (permuted_logps == logps[order]).all()
    for i in (0, 7):
        assert sample_tokens(logits[i : i + 1], keys[i : i + 1])[0][0] == tokens[i]


def test_a_single_possible_token_is_sampled_with_every_key():
    keys = jax.vmap(jax.random.key)(jnp.arange(50))
    for only in (0, 130, 299):
        logits = jnp.full((50, 300), -jnp.inf).at[:, only].set(-3.0)
        tokens, logps = sample_tokens(logits, keys)
        assert (tokens == only).all()
        assert (logps == 0).all()


def test_greedy_takes_the_likeliest_and_reports_the_models_own_log_prob():
    logits = jnp.asarray(3 * np.random.default_rng(3).standard_normal((5, 400)), jnp.float32)
    mode, params = mode_and_arrays(SamplingParams(max_tokens=1, temperature=0.0, top_k=3, top_p=0.5))
    tokens, logps = next_tokens(logits, jax.vmap(jax.random.key)(jnp.arange(5)), params, mode=mode)
    assert (tokens == logits.argmax(-1)).all()
    np.testing.assert_allclose(logps, jax.nn.log_softmax(logits).max(-1), atol=2e-6)


NARROW = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "cold": {"temperature": 0.3},
    "top-k": {"top_k": 5},
    "top-k above what is allowed": {"top_k": 290},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.05},
    "all": {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
}


@pytest.mark.parametrize("changes", NARROW.values(), ids=NARROW)
def test_excluded_tokens_are_never_chosen_and_the_log_prob_is_of_the_whole_distribution(changes):
    """The excluded ones are the likeliest, a whole block of them among others."""
    rng = np.random.default_rng(4)
    allowed = rng.random(300) < 0.8
    allowed[BLOCK : 2 * BLOCK] = False
    row = (1.5 * rng.standard_normal(300) + 4.0 * ~allowed).astype(np.float32)
    logits, keys = jnp.broadcast_to(jnp.asarray(row), (2000, 300)), jax.vmap(jax.random.key)(jnp.arange(2000))
    mode, params = mode_and_arrays(SamplingParams(max_tokens=1, **changes))
    choose = jax.jit(next_tokens, static_argnames="mode")
    tokens, logps = choose(logits, keys, params, mode=mode, allowed=jnp.asarray(allowed))
    whole = np.asarray(jax.nn.log_softmax(row / (changes.get("temperature", 1.0) or 1.0)))
    assert allowed[tokens].all()
    np.testing.assert_allclose(logps, whole[tokens], atol=2e-6)
    # What the filters keep is what they keep of a vocabulary without the excluded tokens.
    kept = np.isfinite(np.asarray(processed(row[None][:, allowed], **{**changes, "temperature": 1.0}))[0])
    if "all" not in changes and changes.get("temperature", 1.0) == 1.0:
        assert np.isin(tokens, np.flatnonzero(allowed)[kept]).all()
    assert not allowed[choose(logits, keys, params, mode=mode)[0]].all()  # without the mask they are chosen


@pytest.mark.parametrize("changes", NARROW.values(), ids=NARROW)
def test_a_mask_that_allows_all_tokens_changes_no_choice(changes):
    logits = jnp.asarray(np.random.default_rng(5).standard_normal((64, 300)), jnp.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(64))
    mode, params = mode_and_arrays(SamplingParams(max_tokens=1, **changes))
    tokens, logps = next_tokens(logits, keys, params, mode=mode)
    masked, masked_logps = next_tokens(logits, keys, params, mode=mode, allowed=jnp.ones(300, bool))
    assert (tokens == masked).all()
    np.testing.assert_allclose(logps, masked_logps, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({"temperature": 0.0, "top_k": 5}, "greedy"),
        ({"temperature": 0.7}, "plain"),
        ({"min_p": 0.1}, "min_p"),
        ({"min_p": 0.1, "top_k": 5}, "sorted"),
        ({"top_p": 0.9}, "sorted"),
    ],
)
def test_only_top_k_and_top_p_sort(changes, mode):
    chosen, params = mode_and_arrays(SamplingParams(max_tokens=1, **changes))
    assert chosen == mode
    logits, keys = jnp.zeros((4, 300)), jax.vmap(jax.random.key)(jnp.arange(4))
    program = jax.jit(next_tokens, static_argnames="mode").lower(logits, keys, params, mode=mode).as_text()
    assert ("stablehlo.sort" in program) == (mode == "sorted")


def test_plain_sampling_exponentiates_the_vocabulary_once():
    """Where nothing is cut, the log-prob comes out of sampling; else it takes one more sum over the vocabulary."""

    def passes(allowed=None, **changes):
        mode, params = mode_and_arrays(SamplingParams(max_tokens=1, **changes))
        program = jax.jit(next_tokens, static_argnames="mode").lower(logits, keys, params, mode=mode, allowed=allowed)
        shapes = re.findall(r"stablehlo\.exponential .* : tensor<([\dx]+)xf32>", program.as_text())
        return sum(math.prod(map(int, shape.split("x"))) >= logits.size for shape in shapes)

    logits, keys = jnp.zeros((4, 300)), jax.vmap(jax.random.key)(jnp.arange(4))
    assert passes() == 1
    assert passes(min_p=0.1) == passes(allowed=jnp.ones(300, bool)) == 2
