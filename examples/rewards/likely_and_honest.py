"""The probability of the solution after the explanation, less what the explanation copies from the solution.

    python -m rlt_jax.train --preset tiny --output-dir runs/likely \\
        --reward.fn examples/rewards/likely_and_honest.py:likely_and_honest --reward.options '{honesty: 0.5}'

It reads the student's log-probs alone, so that the teacher does not score.
"""

from typing import Literal

import numpy as np

from rlt_jax import RewardInputs, Rewards, reads
from rlt_jax.losses.reward_terms import copy_penalty, likelihood


@reads("student")
def likely_and_honest(
    inputs: RewardInputs,
    *,
    honesty: float = 1.0,
    kind: Literal["logp", "logp_per_token", "prob", "prob_per_token"] = "prob",
) -> Rewards:
    """p(solution) - honesty * copy rate, for each explanation."""
    logprobs = inputs.logprobs
    likely = likelihood(logprobs.solution_logps, logprobs.solution_mask, kind=kind)
    honest = honesty * copy_penalty(np.array([row.copy_rate for row in inputs.rows]))
    return Rewards(likely + honest, {"likely": likely, "honest": honest})
