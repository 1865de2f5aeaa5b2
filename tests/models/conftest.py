"""Random checkpoints written by transformers, and transformers itself as the oracle of our numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SMALL = {"vocab_size": 97, "num_hidden_layers": 3, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}
QWEN2 = Qwen2Config(
    **SMALL,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    tie_word_embeddings=False,
)
QWEN25 = Qwen2Config(  # seven query heads to one key head, as Qwen2.5-7B has them
    **SMALL,
    hidden_size=112,
    intermediate_size=80,
    num_attention_heads=14,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    tie_word_embeddings=True,
)
QWEN3 = Qwen3Config(  # head_dim is not hidden_size / heads
    **SMALL,
    hidden_size=48,
    intermediate_size=80,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rope_parameters={"rope_type": "default", "rope_theta": 5e6},
    tie_word_embeddings=False,
)
QWEN3_BIASED = Qwen3Config(
    **SMALL,
    hidden_size=48,
    intermediate_size=80,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    attention_bias=True,
    tie_word_embeddings=True,
)
LLAMA = LlamaConfig(
    **SMALL,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=24,  # not hidden_size / heads
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    tie_word_embeddings=False,
)
LLAMA_TIED = LlamaConfig(  # three query heads to one key head, as SmolLM2-135M has them, and the biases that none has
    **SMALL,
    hidden_size=48,
    intermediate_size=80,
    num_attention_heads=3,
    num_key_value_heads=1,
    attention_bias=True,
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    tie_word_embeddings=True,
)
# Scaled from 32 positions to 128.
SCALED = {**SMALL, "max_position_embeddings": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = LlamaConfig(
    **SCALED,
    hidden_size=64,
    intermediate_size=96,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 5e3,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    tie_word_embeddings=True,
)
YARN_QWEN2 = Qwen2Config(
    **SCALED,
    hidden_size=64,
    intermediate_size=96,
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 1e3,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
)
YARN_QWEN3 = Qwen3Config(  # every key of YaRN, and max_position_embeddings before stretching
    **SCALED | {"max_position_embeddings": 32},
    hidden_size=48,
    intermediate_size=80,
    head_dim=32,
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
)
VALUES = {  # of a small config.json, without what has a default
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
torch.set_num_threads(1)  # the tests already run on every core

CONFIGS = {
    "qwen2": QWEN2,
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
    "qwen3-biased": QWEN3_BIASED,
    "llama": LLAMA,
    "llama-tied": LLAMA_TIED,
    "llama3": LLAMA3,
    "yarn-qwen2": YARN_QWEN2,
    "yarn-qwen3": YARN_QWEN3,
}
SCALED_NAMES = ("llama3", "yarn-qwen2", "yarn-qwen3")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint(name) is a folder that transformers wrote, with weights that leave no term of the model unseen."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("checkpoint") / name
            save_random(CONFIGS[name], folders[name], seed=len(name))
        return folders[name]

    return make


def save_random(config: PreTrainedConfig, folder: Path, *, seed: int = 0) -> PreTrainedModel:
    """Write a random model as transformers does, with weights that leave no term of it unseen, and return it."""
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.15 * noise)
    model.save_pretrained(folder)
    return model


def oracle_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint in transformers."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def save_mistral(folder: Path) -> PreTrainedModel:
    """Write a small random Mistral, a family that the package does not know, and return it."""
    config = MistralConfig(
        **SMALL,
        hidden_size=48,
        intermediate_size=80,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    return save_random(config, folder)


def oracle_logits(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """transformers' logits, f32[B, T, V]."""
    with torch.no_grad():
        logits = model(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(np.int64))).logits
    return logits.float().numpy()
