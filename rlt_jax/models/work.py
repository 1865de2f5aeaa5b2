"""What the passes of a model over a step's rows compute: tokens, and the FLOPs that a utilisation (MFU) counts.

A multiply-add is 2 FLOPs. Let D be the hidden size, P the multiplied parameters of all L layers, V the vocabulary, and
H·hd the width of a token's queries. A forward pass over `tokens`, with log-probs at `logits` of them, and `pairs` of a
query and a key that attention looks at, has

    2 · tokens · P  +  2 · logits · D · V  +  4 · pairs · L · H · hd

A backward pass has twice as many: a forward pass is 1 pass, an update 3. Activations that are computed again in the
backward pass are not counted, nor are norms, biases and rotations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlt_jax.models.config import ModelConfig
from rlt_jax.segments import MicroBatch, Tree

UPDATE_PASSES = 3  # forward, and backward twice


@dataclass(frozen=True)
class Work:
    """Tokens and FLOPs of passes. real - shared + padding = computed."""

    real: int = 0  # tokens of the rows
    computed: int = 0  # tokens that were computed, with padding
    shared: int = 0  # real tokens that were not computed again, as another row has the same first tokens
    flops: int = 0  # of what must be computed: shared tokens once, causal attention, logits where they are asked for
    unshared_flops: int = 0  # the same with each row alone
    full_flops: int = 0  # each row alone, attention between all its tokens, logits at each of them

    @property
    def padding(self) -> int:
        """Computed tokens that belong to no row."""
        return self.computed - (self.real - self.shared)

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.real + other.real,
            self.computed + other.computed,
            self.shared + other.shared,
            self.flops + other.flops,
            self.unshared_flops + other.unshared_flops,
            self.full_flops + other.full_flops,
        )


def forward_flops(config: ModelConfig, *, tokens: int, logits: int, pairs: float) -> int:
    """FLOPs of a forward pass, as in the module's header.

    Args:
      logits: tokens whose log-probs are asked for.
      pairs: that attention looks at. Causal, a row of T tokens has T²/2, as if its diagonal counted half.
    """
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    layers = config.num_hidden_layers
    products = 2 * tokens * layers * layer + 2 * logits * config.hidden_size * config.vocab_size
    return products + int(4 * pairs) * layers * queries


def work_of(
    config: ModelConfig,
    batches: Sequence[MicroBatch],
    lengths: Sequence[int],
    wanted: Sequence[np.ndarray],
    *,
    passes: int = 1,
) -> Work:
    """The work of passes over micro-batches.

    Args:
      batches: of rows of the given lengths.
      wanted: positions in each row whose log-probs are asked for.
      passes: forward passes that it takes as long as; UPDATE_PASSES for an update.
    """
    trees = [tree for batch in batches for tree in batch.trees]
    rows = [row for tree in trees for row in tree.rows]
    real, distinct = sum(lengths[row] for row in rows), sum(tree.length for tree in trees)
    logits = sum(len(wanted[row]) for row in rows)
    squares = sum(lengths[row] ** 2 for row in rows)
    once = forward_flops(
        config,
        tokens=distinct,
        logits=sum(_distinct_wanted(tree, wanted) for tree in trees),
        pairs=sum(_pairs(tree, lengths) for tree in trees),
    )
    return Work(
        real=real,
        computed=sum(batch.computed for batch in batches),
        shared=real - distinct,
        flops=passes * once,
        unshared_flops=passes * forward_flops(config, tokens=real, logits=logits, pairs=squares / 2),
        full_flops=passes * forward_flops(config, tokens=real, logits=real, pairs=squares),
    )


def _pairs(tree: Tree, lengths: Sequence[int]) -> float:
    """Causal pairs: of what is shared, and of each row's own tokens with these and with each other."""
    own = [lengths[row] - tree.shared for row in tree.rows]
    return tree.shared**2 / 2 + sum(size * tree.shared + size**2 / 2 for size in own)


def _distinct_wanted(tree: Tree, wanted: Sequence[np.ndarray]) -> int:
    """Tokens that some row asks for, shared ones once."""
    positions = [wanted[row] for row in tree.rows]
    shared = np.unique(np.concatenate([of_row[of_row < tree.shared] for of_row in positions]))
    return len(shared) + sum(int((of_row >= tree.shared).sum()) for of_row in positions)
