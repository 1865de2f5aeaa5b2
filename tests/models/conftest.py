"""Random checkpoints written by transformers, and transformers itself as the oracle of our numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
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
torch.set_num_threads(1)  # the tests already run on every core

CONFIGS = {"qwen2": QWEN2, "qwen2.5": QWEN25, "qwen3": QWEN3, "qwen3-biased": QWEN3_BIASED}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint(name) is a folder that transformers wrote, with weights that leave no term of the model unseen."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("checkpoint") / name
            config = CONFIGS[name]
            oracle = (Qwen2ForCausalLM if config.model_type == "qwen2" else Qwen3ForCausalLM)(config)
            generator = torch.Generator().manual_seed(len(name))
            with torch.no_grad():
                for parameter_name, parameter in oracle.named_parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(1 + 0.3 * noise if "norm" in parameter_name else 0.15 * noise)
            oracle.save_pretrained(folders[name])
        return folders[name]

    return make


def oracle_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint in transformers."""
    model_class = Qwen3ForCausalLM if "qwen3" in folder.name else Qwen2ForCausalLM
    return model_class.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def save_llama(folder: Path) -> PreTrainedModel:
    """Write a small random Llama, a family that the package does not know, and return it."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def oracle_logits(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """transformers' logits, f32[B, T, V]."""
    with torch.no_grad():
        logits = model(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(np.int64))).logits
    return logits.float().numpy()
