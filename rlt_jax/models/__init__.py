"""Qwen2 / Qwen2.5 / Qwen3 in JAX, and their Hugging Face folders."""

from rlt_jax.models.config import ModelConfig
from rlt_jax.models.hf import init_model, load_model, named_tensors, save_model
from rlt_jax.models.qwen import Cache, Context, Model, Params, build_model

__all__ = [
    "Cache",
    "Context",
    "Model",
    "ModelConfig",
    "Params",
    "build_model",
    "init_model",
    "load_model",
    "named_tensors",
    "save_model",
]
