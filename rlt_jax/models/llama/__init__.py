"""Llama (arXiv 2302.13971, 2407.21783) and what has its layers: Llama 3.x, SmolLM2 (arXiv 2502.02737)."""

from rlt_jax.models.family import Family
from rlt_jax.models.llama.known import LLAMA_MODELS

FAMILIES = (
    Family(
        model_type="llama",
        label="llama (Llama 3.x, SmolLM2)",
        architecture="LlamaForCausalLM",
        qkv_bias=None,
        output_bias=None,
        qk_norm=False,
        defaults={"max_position_embeddings": 2048, "num_key_value_heads": None},
        known=LLAMA_MODELS,
    ),
)
