"""Architectures of public models by hub name, so that a run can be planned before anything is downloaded.

The sizes are those of each model's config.json on the hub; once that file is available locally, it is read instead.
"""

from typing import Any

_QWEN25 = {  # hidden, inner, layers, heads, key-value heads, vocabulary, tied
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
}
_LONG_BASE = ("1.5B", "7B", "14B", "32B")  # base models with 131,072 positions; all others have 32,768

_QWEN3 = {  # same columns; head_dim is 128
    "0.6B": (1024, 3072, 28, 16, 8, 151936, True),
    "1.7B": (2048, 6144, 28, 16, 8, 151936, True),
    "4B": (2560, 9728, 36, 32, 8, 151936, True),
    "8B": (4096, 12288, 36, 32, 8, 151936, False),
    "14B": (5120, 17408, 40, 40, 8, 151936, False),
}


def _values(model_type: str, sizes: tuple, positions: int, theta: float = 1e6) -> dict[str, Any]:
    hidden, inner, layers, heads, kv_heads, vocab, tied = sizes
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128 if model_type == "qwen3" else hidden // heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": positions,
        "rope_theta": theta,
    }


QWEN2_MODELS = {
    **{f"qwen/qwen2.5-{size}-instruct".lower(): _values("qwen2", v, 32768) for size, v in _QWEN25.items()},
    **{
        f"qwen/qwen2.5-{size}".lower(): _values("qwen2", v, 131072 if size in _LONG_BASE else 32768)
        for size, v in _QWEN25.items()
    },
    "bespokelabs/bespoke-stratos-7b": _values("qwen2", _QWEN25["7B"], 32768),
    "qwen/qwq-32b": _values("qwen2", _QWEN25["32B"], 40960),
    "deepseek-ai/deepseek-r1-distill-qwen-1.5b": _values("qwen2", (*_QWEN25["1.5B"][:-1], False), 131072, 1e4),
    "deepseek-ai/deepseek-r1-distill-qwen-7b": _values("qwen2", _QWEN25["7B"], 131072, 1e4),
    "deepseek-ai/deepseek-r1-distill-qwen-14b": _values("qwen2", _QWEN25["14B"], 131072),
}

QWEN3_MODELS = {
    **{f"qwen/qwen3-{size}".lower(): _values("qwen3", v, 40960) for size, v in _QWEN3.items()},
    **{f"qwen/qwen3-{size}-base".lower(): _values("qwen3", v, 32768) for size, v in _QWEN3.items()},
    **{f"qwen/qwen3-4b-{kind}-2507": _values("qwen3", _QWEN3["4B"], 262144, 5e6) for kind in ("instruct", "thinking")},
}
