"""Objectives and rewards as pure functions of arrays, independent of models, tokenizers and configs.

Log-probs are natural logs (nats). Arrays of log-probs are aligned with their tokens: slot t holds the log-prob of
token t. Values in masked-out slots change nothing, even if they are NaN.
"""

from rlt_jax.losses.advantages import component_advantages, group_advantages, weighted_rewards, zero_spread
from rlt_jax.losses.component_names import ORIGINAL_NAMES
from rlt_jax.losses.importance import importance_weights, row_weights
from rlt_jax.losses.kl import KLKind, kl_estimate
from rlt_jax.losses.logprobs import (
    Targets,
    entropy_of,
    linear_token_logprobs,
    targets_of,
    token_logprobs,
    wanted_entropies,
    wanted_logprobs,
)
from rlt_jax.losses.masks import (
    completion_mask,
    entropy_at_least,
    off_policy_keep,
    top_entropy_keep,
    top_entropy_threshold,
)
from rlt_jax.losses.policy import IGNORED, Totals, policy_loss, totals_of
from rlt_jax.losses.reference import mix_reference
from rlt_jax.losses.sft import sft_loss
from rlt_jax.losses.teacher_reward import TeacherReward, teacher_reward
from rlt_jax.types import Normalization, Reduction

__all__ = [
    "IGNORED",
    "ORIGINAL_NAMES",
    "KLKind",
    "Normalization",
    "Reduction",
    "Targets",
    "TeacherReward",
    "Totals",
    "completion_mask",
    "component_advantages",
    "entropy_at_least",
    "entropy_of",
    "group_advantages",
    "importance_weights",
    "kl_estimate",
    "linear_token_logprobs",
    "mix_reference",
    "off_policy_keep",
    "policy_loss",
    "row_weights",
    "sft_loss",
    "targets_of",
    "teacher_reward",
    "token_logprobs",
    "top_entropy_keep",
    "top_entropy_threshold",
    "totals_of",
    "wanted_entropies",
    "wanted_logprobs",
    "weighted_rewards",
    "zero_spread",
]
