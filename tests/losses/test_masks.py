"""Which tokens are trained: golden masks of the original; and which the policy term keeps: worked examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.losses import (
    completion_mask,
    entropy_at_least,
    off_policy_keep,
    top_entropy_keep,
    top_entropy_threshold,
)

# ---- completion mask


def test_golden_masks(golden):
    z = np.load(golden / "grpo_cases.npz")
    np.testing.assert_array_equal(completion_mask(z["masks/completion_ids"], 999), z["masks/completion_mask"] == 1)
    np.testing.assert_array_equal(completion_mask(z["batch/completion_ids"], 999), z["batch/completion_mask"] == 1)
    e = np.load(golden / "end_to_end.npz")
    np.testing.assert_array_equal(completion_mask(e["completion_ids"], 999), e["completion_mask"] == 1)


def test_lengths_keep_pads_of_unfinished_rows_out(golden):
    # Departure: without EOS (rows 2 and 6) the original trains on the padding (id 997); lengths mend that.
    z = np.load(golden / "grpo_cases.npz")
    ids, original = z["masks/completion_ids"], z["masks/completion_mask"] == 1
    lengths = np.array([1, 2, 3, 5, 6, 6, 1])
    mask = np.asarray(completion_mask(ids, 999, lengths=lengths))
    unfinished = [2, 6]
    np.testing.assert_array_equal(np.delete(mask, unfinished, 0), np.delete(original, unfinished, 0))
    np.testing.assert_array_equal(mask[unfinished], [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    assert original[unfinished].all()
    assert not completion_mask(ids, 999, lengths=np.zeros(7, int)).any()


@pytest.mark.parametrize("eos", [(7, 9), [9, 7], np.array([7, 9])])
def test_several_eos_ids(eos):
    ids = jnp.asarray([[1, 9, 7, 2], [7, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(completion_mask(ids, eos), [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def test_mask_under_jit_where_pad_is_eos():
    mask = jax.jit(completion_mask, static_argnums=1)(jnp.asarray([[3, 9, 9, 9]]), 9, lengths=jnp.asarray([2]))
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0]])


# ---- off-policy sequences

# rows whose tokens have become less likely by 0.2 nats on average, more likely by 0.2, and (last) by nothing known
LOGPS = jnp.asarray([[-1.1, -1.3, 9.0], [-0.9, -0.7, -0.8], [-5.0, 9.0, 9.0]])
BEHAVIOUR = jnp.asarray([[-1.0, -1.0, jnp.inf], [-1.0, -1.0, -1.0], [jnp.nan, -1.0, -1.0]])
MASK = jnp.asarray([[1, 1, 0], [1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("advantage", "threshold", "kept"),
    [
        (-1.0, 0.19, [False, True, True]),
        (-1.0, 0.21, [True, True, True]),
        (-1.0, -0.1, [False, True, False]),
        (-1.0, -0.3, [False, False, False]),
        (0.0, -9.0, [True, True, True]),
        (1.0, -9.0, [True, True, True]),
    ],
)
def test_bad_sequences_that_have_become_unlikely_are_dropped(advantage, threshold, kept):
    keep = off_policy_keep(LOGPS, BEHAVIOUR, jnp.full(3, advantage), MASK, threshold=threshold)
    np.testing.assert_array_equal(keep, np.array(kept)[:, None])


# ---- tokens of high entropy

ENTROPIES = np.asarray([[0.1, 0.5, np.nan], [0.4, 0.2, 0.3]], np.float32)
COUNTED = np.asarray([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("quantile", "kept"),
    [
        (0.0, [[0, 1, 0], [0, 0, 0]]),
        (0.2, [[0, 1, 0], [0, 0, 0]]),
        (0.25, [[0, 1, 0], [1, 0, 0]]),  # the (1 - 0.25) quantile is the second largest of five
        (0.6, [[0, 1, 0], [1, 0, 1]]),
        (1.0, COUNTED),
    ],
)
def test_top_entropies(quantile, kept):
    np.testing.assert_array_equal(top_entropy_keep(ENTROPIES, COUNTED, quantile=quantile), np.asarray(kept) == 1)


@pytest.mark.parametrize("quantile", [0.0, 0.2, 1 / 3, 0.5, 0.9])
def test_micro_batches_keep_the_tokens_of_the_step(quantile):
    rng = np.random.default_rng(0)
    entropies = rng.exponential(size=(6, 7)).astype(np.float32)
    mask = np.arange(7) < rng.integers(0, 8, 6)[:, None]
    ragged = [row[taken] for row, taken in zip(entropies, mask)]
    threshold = top_entropy_threshold(ragged, quantile=quantile)
    parts = [entropy_at_least(entropies[rows], mask[rows], threshold) for rows in (slice(0, 1), slice(1, 6))]
    np.testing.assert_array_equal(np.concatenate(parts), top_entropy_keep(entropies, mask, quantile=quantile))


def test_a_step_without_tokens_has_no_threshold():
    assert top_entropy_threshold([], quantile=0.2) == -np.inf
    assert not top_entropy_keep(ENTROPIES, np.zeros_like(COUNTED), quantile=0.2).any()


@pytest.mark.parametrize("quantile", [-0.1, 1.1, np.nan])
def test_a_quantile_is_a_share(quantile):
    with pytest.raises(ValueError, match="expected the share of tokens to keep, from 0 to 1"):
        top_entropy_threshold([ENTROPIES], quantile=quantile)
