"""Qwen2, Qwen2.5 (arXiv 2407.10671) and Qwen3 (arXiv 2505.09388)."""

from rlt_jax.models.family import Family
from rlt_jax.models.qwen.known import QWEN2_MODELS, QWEN3_MODELS

_DEFAULTS = {
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES = (
    Family(
        model_type="qwen2",
        label="qwen2 (Qwen2 and Qwen2.5)",
        architecture="Qwen2ForCausalLM",
        qkv_bias=True,
        output_bias=False,
        qk_norm=False,
        defaults=_DEFAULTS,
        known=QWEN2_MODELS,
    ),
    Family(
        model_type="qwen3",
        label="qwen3",
        architecture="Qwen3ForCausalLM",
        qkv_bias=None,
        output_bias=None,
        qk_norm=True,
        defaults=_DEFAULTS | {"head_dim": 128},
        known=QWEN3_MODELS,
    ),
)
