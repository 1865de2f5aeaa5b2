"""Dense decoder models in JAX (`Model`), their families (Qwen, Llama) and their Hugging Face folders."""

from rlt_jax.models.attention import segment_starts
from rlt_jax.models.base import Cache, Context, Model, Params, build_model
from rlt_jax.models.config import ModelConfig, read_config
from rlt_jax.models.finite_weights import bad_tensors, describe_tensors
from rlt_jax.models.hf import checkpoint_shapes, ignored_files, init_model, load_model, resolve_folder
from rlt_jax.models.saving import TOKENIZER_FILES, check_replaceable, recover_model, save_model
from rlt_jax.models.tensor_names import named_tensors, placed_tensors
from rlt_jax.models.weight_files import find_weights

__all__ = [
    "TOKENIZER_FILES",
    "Cache",
    "Context",
    "Model",
    "ModelConfig",
    "Params",
    "bad_tensors",
    "build_model",
    "check_replaceable",
    "checkpoint_shapes",
    "describe_tensors",
    "find_weights",
    "ignored_files",
    "init_model",
    "load_model",
    "named_tensors",
    "placed_tensors",
    "read_config",
    "recover_model",
    "resolve_folder",
    "save_model",
    "segment_starts",
]
