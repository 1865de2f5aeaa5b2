"""A teacher that vLLM serves on a CPU, for the tests of its engines."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlt_jax
from rlt_jax.models import Model, load_model, placed_tensors
from rlt_jax.rewards.logprobs import sequence_logprobs
from rlt_jax.sampling.weights import Tensor

TINY_TEACHER = Path(rlt_jax.__file__).parent / "assets" / "tiny" / "teacher"

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed: `make vllm` does, where it has a package for this platform",
    ),
]


@pytest.fixture(scope="module")
def spoilt_folder(tmp_path_factory) -> Path:
    """The tiny teacher with a generation_config.json that would ruin its samples, were it obeyed."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    shutil.copytree(TINY_TEACHER, folder)
    own = {"do_sample": True, "temperature": 3.0, "top_k": 2, "top_p": 0.3, "repetition_penalty": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(own))
    return folder


@pytest.fixture(scope="session")
def tiny_teacher():
    return load_model(TINY_TEACHER, dtype="float32")


def perturbed(params, seed: int):
    """Other weights of the same shapes, far enough away to draw other text."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf * (1 + 0.2 * jax.random.normal(key, leaf.shape)) for leaf, key in zip(leaves, keys)]
    )


def tensors_of(model: Model, params) -> list[Tensor]:
    """What an engine needs of a tied model."""
    tensors = [Tensor(*place) for place in placed_tensors(model, params)]
    return [*tensors, Tensor("lm_head.weight", model.head(params), None)]


def logprobs_of(model: Model, params, ids: np.ndarray, temperature: float) -> np.ndarray:
    """f32[T] nats by the trainer's model."""
    return np.asarray(sequence_logprobs(model, params, jnp.asarray(ids)[None], temperature=temperature, chunk=1024)[0])
