"""Architectures of public models by hub name, so that a run can be planned before anything is downloaded.

The sizes are those of each model's config.json on the hub; once that file is available locally, it is read instead.
"""

from typing import Any

_SMOLLM2 = {  # hidden, inner, layers, heads, key-value heads, rope theta; head_dim is 64
    "135M": (576, 1536, 30, 9, 3, 1e5),
    "360M": (960, 2560, 32, 15, 5, 1e5),
    "1.7B": (2048, 8192, 24, 32, 32, 1.3e5),
}
_LLAMA3 = {  # hidden, inner, layers, heads, key-value heads, head_dim, tied, factor of the rotary scaling
    "3.1-8B": (4096, 14336, 32, 32, 8, 128, False, 8.0),
    "3.2-1B": (2048, 8192, 16, 32, 8, 64, True, 32.0),
    "3.2-3B": (3072, 8192, 28, 24, 8, 128, True, 32.0),
}


def _smollm2(sizes: tuple) -> dict[str, Any]:
    return {
        **_sizes(sizes),
        "head_dim": 64,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
        "rope_theta": sizes[5],
    }


def _llama3(sizes: tuple) -> dict[str, Any]:
    head_dim, tied, factor = sizes[5:]
    return {
        **_sizes(sizes),
        "head_dim": head_dim,
        "vocab_size": 128256,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 131072,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }


def _sizes(sizes: tuple) -> dict[str, Any]:
    hidden, inner, layers, heads, kv_heads = sizes[:5]
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
    }


LLAMA_MODELS = {
    f"{name}{tail}".lower(): values
    for name, values in (
        *((f"HuggingFaceTB/SmolLM2-{size}", _smollm2(sizes)) for size, sizes in _SMOLLM2.items()),
        *((f"meta-llama/Llama-{size}", _llama3(sizes)) for size, sizes in _LLAMA3.items()),
    )
    for tail in ("", "-Instruct")
} | {"deepseek-ai/deepseek-r1-distill-llama-8b": _llama3(_LLAMA3["3.1-8B"])}
