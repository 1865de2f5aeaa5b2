"""The reward's components, and the names under which the original system logs them.

The `*_score/*` components exist only for the reductions in use.
"""

from typing import get_args

from rlt_jax.types import Reduction

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)

# Component of `teacher_reward` -> the original's name for it.
ORIGINAL_NAMES: dict[str, str] = {
    **{f"solution_logp/{r}": f"unprocessed_answer_log_prob/_{r}" for r in REDUCTIONS},
    **{f"solution_logp_score/{r}": f"answer_log_prob_{r}" for r in REDUCTIONS},
    "solution_logp_reward": "solution_log_prob_reward",
    **{f"thought_kl/{r}": f"unprocessed_thought_kl/_{r}" for r in REDUCTIONS},
    **{f"thought_kl_score/{r}": f"reasoning_kl_{r}" for r in REDUCTIONS},
    "thought_kl_token_mean": "thought_processed_kl",
    "thought_kl_score_mean": "thought_kl_scores",
    "kl_reward": "kl_reward",
    "total_with_kl": "total_teacher_likelihood_reward",
    **{f"thought_surprisal/{r}": f"no_entropy_unprocessed_thought_kl/_{r}" for r in REDUCTIONS},
    **{f"thought_surprisal_score/{r}": f"no_entropy_reasoning_kl_{r}" for r in REDUCTIONS},
    "thought_surprisal_token_mean": "processed_kl_no_entropy",
    "thought_surprisal_score_mean": "kl_scores_no_entropy",
    "surprisal_reward": "kl_reward_no_entropy",
    "total_with_surprisal": "total_tl_reward_no_entropy",
    "match_reward": "match_reward",
}
