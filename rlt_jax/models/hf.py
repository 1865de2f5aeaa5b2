"""Load and save Hugging Face folders: config.json, safetensors (one file, or shards with an index), tokenizer files.

One table (`name_table`) maps the parameter tree to the checkpoint's tensor names; loading, saving and weight sync use
it. Nothing is transposed, and no random weights are allocated.
"""

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy learns bfloat16 from it
import numpy as np
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from rlt_jax.errors import UserError
from rlt_jax.models.base import Model, Params, build_model, random_params
from rlt_jax.models.config import ModelConfig, read_config, read_json

# The hub's client logs every retry twice; the error that it finally raises says more.
logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)

_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # safetensors' name -> ours
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",  # not the tokenizer's, but it has the EOS ids
)


class Leaf(NamedTuple):
    """One array of the parameter tree and the checkpoint tensors it holds."""

    path: tuple[str, ...]  # keys into the tree
    names: tuple[str, ...]  # Hugging Face names: one per layer below "layers", else a single one
    shape: tuple[int, ...]  # of one tensor
    stacked: bool  # whether the array stacks the layers on axis 0


def name_table(model: Model) -> tuple[Leaf, ...]:
    """The mapping between the parameter tree and Hugging Face tensor names."""
    table = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(model.shapes("float32")):
        path = tuple(key.key for key in keys)
        if path[0] == "layers":
            tail = ".".join(path[1:])
            names = tuple(f"model.layers.{index}.{tail}" for index in range(model.config.num_hidden_layers))
            table.append(Leaf(path, names, leaf.shape[1:], stacked=True))
        else:
            name = ".".join(path)
            table.append(Leaf(path, (name if path[0] == "lm_head" else f"model.{name}",), leaf.shape, stacked=False))
    return tuple(table)


def named_tensors(model: Model, params: Params) -> Iterator[tuple[str, jax.Array | np.ndarray]]:
    """Every tensor with its Hugging Face name, [out, in] as in a checkpoint; layers are sliced lazily.

    Args:
      params: any tree of the parameters' shapes, with jax or numpy arrays.
    """
    for name, array, index in placed_tensors(model, params):
        yield name, array if index is None else _slice(array, index)


def placed_tensors(model: Model, params: Params) -> Iterator[tuple[str, jax.Array | np.ndarray, int | None]]:
    """Every tensor as (Hugging Face name, the leaf that holds it, its index on axis 0 or None for the whole leaf)."""
    for leaf in name_table(model):
        array = _get(params, leaf.path)
        for index, name in enumerate(leaf.names):
            yield name, array, index if leaf.stacked else None


def checkpoint_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Read name -> shape of the parameters in a model folder (or hub model) from its safetensors files.

    Raises:
      UserError: there is no such folder or model, or files are damaged.
    """
    folder = resolve_folder(path)
    config = read_config(folder)
    return {
        name: tensor.shape
        for file in _weight_files(folder)
        for name, tensor in _read_header(file).items()
        if not _ignorable(config, name)
    }


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
        misshaped or damaged.
    """
    folder = resolve_folder(path)
    model = build_model(read_config(folder))
    shards = {file: _read_header(file) for file in _weight_files(folder)}
    _check_tensors(model, folder, shards)
    params = _read_tensors(model, shards, _loaded_dtype(dtype, shards))
    return model, params


def save_model(
    path: str | Path,
    model: Model,
    params: Params,
    *,
    tokenizer_from: str | Path | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write a folder that `load_model` and transformers read, completely or not at all.

    It is written next to `path` and then renamed; an older model at `path` is replaced.

    Args:
      params: any tree of the parameters' shapes (also gradients) in bfloat16, float16 or float32, jax or numpy.
      tokenizer_from: folder (or hub name) whose tokenizer files and generation_config.json are copied byte for byte.
      max_shard_size: bytes; a larger model is split into shards with an index.
    Raises:
      UserError: `path` holds something other than a model or cannot be written, or `tokenizer_from` has no tokenizer.
    """
    chex.assert_trees_all_equal_shapes(params, model.shapes("float32"))
    target = Path(path).resolve()
    _check_replaceable(target)
    tokenizer_files = [] if tokenizer_from is None else _tokenizer_files(resolve_folder(tokenizer_from))
    fresh, old = (target.parent / f".{target.name}.{word}-{os.getpid()}" for word in ("writing", "replaced"))
    shutil.rmtree(fresh, ignore_errors=True)  # left by a killed process with the same id
    try:
        fresh.mkdir(parents=True)
        _write_weights(fresh, model, params, max_shard_size)
        config = model.config.to_json(_most_common_dtype(params))
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for file in tokenizer_files:
            shutil.copyfile(file, fresh / file.name)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except OSError as error:
        raise UserError(
            f"cannot write the model to {target} ({error}): free the space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


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
      UserError: neither exists, or the hub cannot be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"expected a model's folder, got the file {folder}: give the folder that holds config.json")
    if isinstance(path, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise UserError(f"expected a model's folder, but {folder} does not exist: check the path")
    try:
        fetched = huggingface_hub.snapshot_download(
            path,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"],
            ignore_patterns=["*/*"],
        )
    except (OSError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"expected a local folder or a model on the Hugging Face hub, but there is no folder {path!r} here "
            f"and the hub gave none of that name ({reason}): check the name and the network, or give a folder"
        ) from error
    return Path(fetched)


# Loading


class _Stored(NamedTuple):
    """A tensor as a safetensors header describes it."""

    dtype: str  # safetensors' name: "BF16", ...
    shape: tuple[int, ...]


def _weight_files(folder: Path) -> list[Path]:
    """A folder's safetensors files: those its index names, if there is one."""
    index = folder / _INDEX
    if not index.exists():
        if (folder / _WEIGHTS).exists():
            return [folder / _WEIGHTS]
        present = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise UserError(
            f"expected weights in {folder} ({_WEIGHTS}, or shards with {_INDEX}), found {present}: "
            "copy the missing files, or convert other formats to safetensors"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: expected a weight_map of tensor names to file names, got none: copy the file again")
    files = sorted(set(weight_map.values()))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing or not files:
        raise UserError(f"{index} names shards that {folder} lacks: {', '.join(missing) or 'none at all'}: copy them")
    return [folder / name for name in files]


def _read_header(file: Path) -> dict[str, _Stored]:
    """Read names, dtypes and shapes of a safetensors file's tensors, but no data."""
    try:
        with safe_open(file, framework="numpy") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  not a dict
            return {name: _Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: expected a complete safetensors file, but it is damaged ({error}): copy it again"
        ) from error


def _check_tensors(model: Model, folder: Path, shards: dict[Path, dict[str, _Stored]]) -> None:
    """Refuse a checkpoint whose tensors are not exactly the model's, naming all that differ."""
    count = Counter(name for header in shards.values() for name in header)
    stored = {name: tensor for header in shards.values() for name, tensor in header.items()}
    expected = {name: leaf.shape for leaf in name_table(model) for name in leaf.names}
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in stored]
    for name, tensor in stored.items():
        if name not in expected:
            if not _ignorable(model.config, name):
                problems.append(f"extra {name} {list(tensor.shape)}")
            continue
        if tensor.shape != expected[name]:
            problems.append(f"misshaped {name}: expected {list(expected[name])}, got {list(tensor.shape)}")
        if tensor.dtype not in _STORED:
            problems.append(f"{name} of type {tensor.dtype}: expected one of {', '.join(_STORED)}")
        if count[name] > 1:
            problems.append(f"{name} in {count[name]} files")
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(
            f"the weights in {folder} are not those that its config.json describes:\n  {listed}\n"
            "correct the config.json, or give the checkpoint that belongs to it"
        )


def _ignorable(config: ModelConfig, name: str) -> bool:
    """Whether a checkpoint may hold this tensor besides the parameters: an old RoPE buffer, the copy of a tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")


def _read_tensors(model: Model, shards: dict[Path, dict[str, _Stored]], dtype: jnp.dtype) -> Params:
    """Fill the parameter tree shard by shard, mapping one shard and copying one tensor at a time."""
    params = jax.tree.map(lambda _: None, model.shapes(dtype))
    leaves = {name: (leaf, index) for leaf in name_table(model) for index, name in enumerate(leaf.names)}
    for file, header in shards.items():
        with safe_open(file, framework="numpy") as handle:
            for name in header:
                if name not in leaves:
                    continue
                leaf, index = leaves[name]
                parent = _get(params, leaf.path[:-1])
                tensor, array = handle.get_tensor(name), parent[leaf.path[-1]]
                if not leaf.stacked:
                    array = _cast(tensor, dtype)
                else:
                    if array is None:
                        array = jnp.zeros((len(leaf.names), *leaf.shape), dtype)
                    array = _put(array, tensor, index)
                # Wait, because queued copies would keep their tensors in host memory.
                parent[leaf.path[-1]] = array.block_until_ready()
    if model.config.tie_word_embeddings:
        _check_tied_head(model, params, shards)
    return params


def _check_tied_head(model: Model, params: Params, shards: dict[Path, dict[str, _Stored]]) -> None:
    """Refuse a head that differs from the embedding under a config that ties them: one of the two must be wrong."""
    for file, header in shards.items():
        if "lm_head.weight" in header:
            with safe_open(file, framework="numpy") as handle:
                head, embedding = handle.get_tensor("lm_head.weight"), model.head(params)
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


def _loaded_dtype(dtype: str, shards: dict[Path, dict[str, _Stored]]) -> jnp.dtype:
    if dtype != "auto":
        return _dtype(dtype)
    elements: Counter[str] = Counter()
    for header in shards.values():
        for tensor in header.values():
            elements[tensor.dtype] += int(np.prod(tensor.shape))
    return jnp.dtype(_STORED[elements.most_common(1)[0][0]])


def _dtype(dtype: str) -> jnp.dtype:
    try:
        parsed = jnp.dtype(dtype)
    except TypeError:
        parsed = None
    if parsed is None or parsed.name not in _STORED.values():
        raise UserError(f"expected dtype float32, bfloat16 or (to load) auto, got {dtype!r}: choose one of them")
    return parsed


# Saving


def _check_replaceable(target: Path) -> None:
    """Refuse to replace a file, or a folder that holds anything a model's folder does not."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"expected a folder to save the model in, but {target} is a file: choose another path")
    foreign = sorted(
        entry.name
        for entry in target.iterdir()
        if entry.name not in (*_TOKENIZER_FILES, "config.json", _INDEX) and entry.suffix != ".safetensors"
    )
    if foreign:
        raise UserError(
            f"expected {target} to be new or a saved model, which saving replaces, but it also holds "
            f"{', '.join(foreign)}: choose another folder"
        )


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not any(file.name in ("tokenizer.json", "vocab.json", "tokenizer.model") for file in files):
        raise UserError(f"expected a tokenizer (tokenizer.json) to copy in {folder}, found none: give its folder")
    return files


def _most_common_dtype(params: Params) -> str:
    elements: Counter[str] = Counter()
    for leaf in jax.tree.leaves(params):
        elements[leaf.dtype.name] += leaf.size
    return elements.most_common(1)[0][0]


def _write_weights(folder: Path, model: Model, params: Params, max_shard_size: int) -> None:
    """Write model.safetensors, or shards of at most max_shard_size bytes (one tensor may exceed it) and their index."""
    shards: list[dict[str, jax.ShapeDtypeStruct]] = [{}]
    total = filled = 0
    for leaf in name_table(model):
        dtype = _get(params, leaf.path).dtype
        size = int(np.prod(leaf.shape)) * dtype.itemsize
        for name in leaf.names:
            if shards[-1] and filled + size > max_shard_size:
                shards.append({})
                filled = 0
            shards[-1][name] = jax.ShapeDtypeStruct(leaf.shape, dtype)
            filled += size
            total += size
    tensors = named_tensors(model, params)
    if len(shards) == 1:
        _write_safetensors(folder / _WEIGHTS, shards[0], tensors)
        return
    weight_map = {}
    for number, header in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(file, header, tensors)
        weight_map.update(dict.fromkeys(header, file.name))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(
    file: Path,
    header: dict[str, jax.ShapeDtypeStruct],
    tensors: Iterator[tuple[str, jax.Array | np.ndarray]],
) -> None:
    """Write the next len(header) tensors one at a time; the library's own writer needs a whole shard in host memory.

    Format: u64 length of the header, the header as JSON, the tensors' bytes (little-endian, row-major).
    """
    codes = {name: code for code, name in _STORED.items()}
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # required by transformers
    offset = 0
    for name, tensor in header.items():
        end = offset + int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        entries[name] = {"dtype": codes[tensor.dtype.name], "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for _, (_, array) in zip(header, tensors):  # header first: zip must not take the next shard's tensor
            out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _get(tree: Params, path: tuple[str, ...]):
    for key in path:
        tree = tree[key]
    return tree


def _slice(array: jax.Array | np.ndarray, index: int) -> jax.Array | np.ndarray:
    if isinstance(array, np.ndarray):
        return array[index]
    return jax.lax.dynamic_index_in_dim(array, index, keepdims=False)  # array[index] would compile for every index
