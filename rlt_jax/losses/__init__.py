"""Objectives and rewards as pure functions of arrays, independent of models, tokenizers and configs.

Log-probs are natural logs (nats). Arrays of log-probs are aligned with their tokens: slot t holds the log-prob of
token t. Values in masked-out slots change nothing, even if they are NaN.
"""

from rlt_jax.losses.component_names import ORIGINAL_NAMES
from rlt_jax.losses.grpo import completion_mask, group_advantages, grpo_loss
from rlt_jax.losses.importance import importance_weights
from rlt_jax.losses.kl import KLKind, kl_estimate
from rlt_jax.losses.logprobs import Targets, linear_token_logprobs, targets_of, token_logprobs, wanted_logprobs
from rlt_jax.losses.reference import mix_reference
from rlt_jax.losses.sft import sft_loss
from rlt_jax.losses.teacher_reward import TeacherReward, teacher_reward
from rlt_jax.types import Normalization, Reduction

__all__ = [
    "ORIGINAL_NAMES",
    "KLKind",
    "Normalization",
    "Reduction",
    "Targets",
    "TeacherReward",
    "completion_mask",
    "group_advantages",
    "grpo_loss",
    "importance_weights",
    "kl_estimate",
    "linear_token_logprobs",
    "mix_reference",
    "sft_loss",
    "targets_of",
    "teacher_reward",
    "token_logprobs",
    "wanted_logprobs",
]
