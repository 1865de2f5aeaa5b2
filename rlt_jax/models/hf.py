"""Load Hugging Face folders, local or from the hub: config.json and safetensors (one file, or shards with an index).

`weight_files.py` says which files are loaded, `stored_tensors.py` what they must hold, `saving.py` writes such folders.
No random weights are allocated for a model that is loaded.
"""

import json
import logging
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy learns bfloat16 from it
import numpy as np
from safetensors import safe_open

from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite
from rlt_jax.hub import fetch, local_folder
from rlt_jax.models.base import Model, Params, build_model, random_params
from rlt_jax.models.config import ModelConfig, read_config
from rlt_jax.models.finite_weights import bad_tensors, describe_tensors
from rlt_jax.models.stored_tensors import HEAD, STORED, Checkpoint, open_checkpoint
from rlt_jax.models.tensor_names import leaf_of, name_table
from rlt_jax.models.weight_files import WeightFiles, refuse_adapter

log = logging.getLogger("rlt_jax")


def checkpoint_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Read name -> shape of the parameters in a model folder (or hub model) from the files that `load_model` reads.

    Raises:
      UserError: as `load_model`, but for what only the data shows.
    """
    folder = resolve_folder(path)
    checkpoint = open_checkpoint(folder, build_model(read_config(folder)))
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


def load_model(path: str | Path, *, dtype: str = "auto") -> tuple[Model, Params]:
    """Load a Hugging Face folder, or a hub model by name, straight into device arrays.

    Besides the parameters, it takes host memory for one shard's pages and one tensor.

    Args:
      path: a local folder, or a name such as "Qwen/Qwen2.5-7B-Instruct" to fetch.
      dtype: "float32", "bfloat16", or "auto" for the dtype of most stored weights.
    Returns:
      The model and its parameters, a nested dict (see `base.py`).
    Raises:
      UserError: there is no such folder or model; its config is broken or unsupported; weights are missing, extra,
        misshaped, of another type or damaged; files do not belong together (see `weight_files.py`).
      NotFinite: a weight is NaN or infinite, as stored or in `dtype`.
    """
    folder = resolve_folder(path)
    model = build_model(read_config(folder))
    checkpoint = open_checkpoint(folder, model)
    if checkpoint.found.ignored:
        log.warning(ignored_files(folder, checkpoint.found))
    loaded = _loaded_dtype(dtype, checkpoint)
    configured = _configured_dtype(model.config)
    if dtype == "auto" and configured not in (None, loaded.name):
        log.warning(
            f"{folder}: config.json has dtype {configured}, but the weights are stored as {loaded.name}: they are "
            f"loaded as stored, where transformers would load {configured}"
        )
    return model, _read_tensors(model, checkpoint, loaded)


def ignored_files(folder: Path, found: WeightFiles) -> str:
    """What to tell about weights in a folder that are not loaded."""
    more = len(found.ignored) - 5
    listed = ", ".join(found.ignored[:5]) + (f" and {more} more" if more > 0 else "")
    return f"{folder}: loading {found.source}, as transformers does, and ignoring {listed}: remove what is out of date"


def init_model(config: ModelConfig | str | Path, seed: int, *, dtype: str = "float32") -> tuple[Model, Params]:
    """Make a model with random weights: normal(0, initializer_range) matrices, zero biases, norms of one.

    Args:
      config: a ModelConfig, or a folder (or hub name) with a config.json.
      seed: of the random weights.
      dtype: "float32" or "bfloat16".
    """
    if not isinstance(config, ModelConfig):
        config = read_config(resolve_folder(config))
    return build_model(config), random_params(config, seed, _dtype(dtype))


def resolve_folder(path: str | Path) -> Path:
    """Find a local folder for `path`: itself if it is one, else the hub's model of that name, downloaded or cached.

    Raises:
      UserError: neither exists, the hub cannot be reached, or the folder holds a LoRA adapter.
    """
    folder = local_folder(path)
    if folder is None:
        files = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]
        folder = fetch(str(path), files=files, without=["*/*"])
    refuse_adapter(folder)
    return folder


# Loading


def _read_tensors(model: Model, checkpoint: Checkpoint, dtype: jnp.dtype) -> Params:
    """Fill the parameter tree shard by shard, mapping one shard and copying one tensor at a time."""
    params = jax.tree.map(lambda _: None, model.shapes(dtype))
    leaves = {name: (leaf, index) for leaf in name_table(model) for index, name in enumerate(leaf.names)}
    for file, header in checkpoint.headers.items():
        with safe_open(file, framework="numpy") as handle:
            for name in header:
                if name not in checkpoint.names:
                    continue
                leaf, index = leaves[checkpoint.names[name]]
                parent = leaf_of(params, leaf.path[:-1])
                tensor, array = handle.get_tensor(name), parent[leaf.path[-1]]
                if not leaf.stacked:
                    array = _cast(tensor, dtype)
                else:
                    if array is None:
                        array = jnp.zeros((len(leaf.names), *leaf.shape), dtype)
                    array = _put(array, tensor, index)
                # Wait, because queued copies would keep their tensors in host memory.
                parent[leaf.path[-1]] = array.block_until_ready()
    _check_finite(model, params, checkpoint)
    if HEAD not in checkpoint.names:
        _check_tied_head(model, params, checkpoint)
    return params


def _check_finite(model: Model, params: Params, checkpoint: Checkpoint) -> None:
    """Refuse weights that are not finite, by file and tensor; those that were when they were stored overflow."""
    found = bad_tensors(model, params)
    for file, header in checkpoint.headers.items():
        for name, stored in header.items():
            count = found.get(checkpoint.names.get(name, ""))
            if count is None:
                continue
            with safe_open(file, framework="numpy") as handle:
                overflows = bool(np.isfinite(handle.get_tensor(name)).all())
            dtype = jax.tree.leaves(params)[0].dtype.name
            if overflows:
                raise NotFinite(
                    f"{file}: {name} is stored as {STORED[stored.dtype]} with {count} "
                    f"{'value' if count == 1 else 'values'} too large for {dtype}, where they would be infinite: load "
                    "it with --dtype float32, or give another model"
                )
            more = f" ({len(found) - 1} other tensors have some, too)" if len(found) > 1 else ""
            raise NotFinite(
                f"{file}: expected finite weights, but {describe_tensors({name: count})}{more}: copy the file again, "
                "or give an earlier checkpoint of the model"
            )


def _check_tied_head(model: Model, params: Params, checkpoint: Checkpoint) -> None:
    """Refuse a head that differs from the embedding under a config that ties them: one of the two must be wrong."""
    for file, header in checkpoint.headers.items():
        if HEAD in header:
            with safe_open(file, framework="numpy") as handle:
                head, embedding = handle.get_tensor(HEAD), model.head(params)
            if head.shape != embedding.shape or not jnp.array_equal(_cast(head, embedding.dtype), embedding):
                raise UserError(
                    f"{file}: expected lm_head.weight to equal model.embed_tokens.weight, since config.json has "
                    "tie_word_embeddings=true, but it differs: set tie_word_embeddings to false or remove the tensor"
                )


@partial(jax.jit, donate_argnums=0)
def _put(stacked: jax.Array, tensor: jax.Array, index: jax.Array) -> jax.Array:
    """Write one layer's tensor to its index of the stacked array, in place."""
    return jax.lax.dynamic_update_index_in_dim(stacked, tensor.astype(stacked.dtype), index, 0)


@partial(jax.jit, static_argnums=1)
def _cast(tensor: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Copy to a new device array (on a CPU, it could otherwise be a view of the host array)."""
    return jnp.copy(tensor.astype(dtype))


def _loaded_dtype(dtype: str, checkpoint: Checkpoint) -> jnp.dtype:
    if dtype != "auto":
        return _dtype(dtype)
    elements: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        elements[tensor.dtype] += int(np.prod(tensor.shape))
    return jnp.dtype(STORED[elements.most_common(1)[0][0]])


def _configured_dtype(config: ModelConfig) -> str | None:
    """The dtype that config.json asks for, as transformers reads it; None if it does not say."""
    values = json.loads(config.source)
    dtype = values.get("dtype") or values.get("torch_dtype")
    return dtype.removeprefix("torch.") if isinstance(dtype, str) else None


def _dtype(dtype: str) -> jnp.dtype:
    try:
        parsed = jnp.dtype(dtype)
    except TypeError:
        parsed = None
    if parsed is None or parsed.name not in STORED.values():
        raise UserError(f"expected dtype float32, bfloat16 or (to load) auto, got {dtype!r}: choose one of them")
    return parsed
