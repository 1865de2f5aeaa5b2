"""Dense decoder models in JAX (`Model`), their families (Qwen, Llama) and their Hugging Face folders."""

from rlt_jax.models.attention import batches_for, kernel_name, tokens_before
from rlt_jax.models.base import Cache, Context, Model, Params, build_model, dtype_of
from rlt_jax.models.config import ModelConfig, read_config
from rlt_jax.models.finite_weights import bad_tensors, describe_tensors
from rlt_jax.models.hf import checkpoint_shapes, ignored_files, init_model, load_model, resolve_folder
from rlt_jax.models.saving import TOKENIZER_FILES, check_replaceable, recover_model, save_model
from rlt_jax.models.tensor_names import named_tensors, placed_tensors
from rlt_jax.models.weight_files import find_weights
from rlt_jax.models.work import UPDATE_PASSES, Work, forward_flops, work_of

__all__ = [
    "TOKENIZER_FILES",
    "UPDATE_PASSES",
    "Cache",
    "Context",
    "Model",
    "ModelConfig",
    "Params",
    "Work",
    "bad_tensors",
    "batches_for",
    "build_model",
    "check_replaceable",
    "checkpoint_shapes",
    "describe_tensors",
    "dtype_of",
    "find_weights",
    "forward_flops",
    "ignored_files",
    "init_model",
    "kernel_name",
    "load_model",
    "named_tensors",
    "placed_tensors",
    "read_config",
    "recover_model",
    "resolve_folder",
    "save_model",
    "tokens_before",
    "work_of",
]
