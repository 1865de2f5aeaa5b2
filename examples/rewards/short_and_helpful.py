"""The paper's reward, less a price for every token of the explanation beyond a number of free ones.

    python -m rlt_jax.train --preset tiny --output-dir runs/short \\
        --reward.fn examples/rewards/short_and_helpful.py:short_and_helpful --reward.options '{price: 0.01, free: 20}'

docs/guide.md explains what a reward function gets and returns.
"""

import numpy as np

from rlt_jax import RewardConfig, RewardInputs, Rewards, rlt_reward


def short_and_helpful(inputs: RewardInputs, *, config: RewardConfig, price: float = 0.01, free: int = 20) -> Rewards:
    """The RLT reward with the run's own settings, minus `price` for each token beyond `free`."""
    base = rlt_reward(config)(inputs)
    tokens = inputs.logprobs.thought_mask.sum(axis=1)  # i64[B] tokens of each explanation
    penalty = -price * np.maximum(tokens - free, 0)
    components, terms = {**base.components, "length_penalty": penalty}, (*base.terms, "length_penalty")
    return Rewards(base.reward + penalty, components, terms)
