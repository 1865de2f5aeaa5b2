"""Save a model as a Hugging Face folder: config.json, safetensors (one file, or shards with an index), tokenizer."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import chex
import jax
import numpy as np

from rlt_jax import stops
from rlt_jax.disk import cannot_write, leftovers, to_disk, writing_name
from rlt_jax.errors import UserError
from rlt_jax.models.base import Model, Params
from rlt_jax.models.config import read_json
from rlt_jax.models.finite_weights import check_weights
from rlt_jax.models.hf import resolve_folder
from rlt_jax.models.stored_tensors import STORED
from rlt_jax.models.tensor_names import leaf_of, name_table, named_tensors
from rlt_jax.models.weight_files import INDEX, WEIGHTS

TOKENIZER_FILES = (
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
_ABOUT_FILES = ("rlt_jax.json", "README.md")  # what `about` may hold

log = logging.getLogger("rlt_jax")


def save_model(
    path: str | Path,
    model: Model,
    params: Params,
    *,
    tokenizer_from: str | Path | None = None,
    eos_ids: Sequence[int] = (),
    about: Mapping[str, str] | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write a folder that `load_model` and transformers read, completely or not at all.

    It is written next to `path` and then renamed; an older model at `path` is replaced. A stop gives up what is
    written.

    Args:
      params: any tree of the parameters' shapes (also gradients) in bfloat16, float16 or float32, jax or numpy.
      tokenizer_from: folder (or hub name) whose tokenizer files and generation_config.json are copied byte for byte.
      eos_ids: tokens that end what the model writes; those that the copied files do not name are added to
        generation_config.json, so that other programs stop there, too.
      about: name -> text of files that say what the model is: rlt_jax.json, README.md. An older model's are not kept.
      max_shard_size: bytes; a larger model is split into shards with an index.
    Raises:
      UserError: `path` holds something other than a model or cannot be written, or `tokenizer_from` has no tokenizer.
      NotFinite: a parameter is NaN or infinite; nothing is written.
    """
    chex.assert_trees_all_equal_shapes(params, model.shapes("float32"))
    target = Path(path).resolve()
    check_replaceable(target)
    tokenizer_files = [] if tokenizer_from is None else _tokenizer_files(resolve_folder(tokenizer_from))
    check_weights(model, params, f"the weights to save in {target}")
    fresh, old = writing_name(target), target.parent / f".{target.name}.replaced-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)  # left by a killed process with the same id
    try:
        fresh.mkdir(parents=True)
        _write_weights(fresh, model, params, max_shard_size)
        config = model.config.to_json(_most_common_dtype(params))
        config.pop("transformers_weights", None)  # the name of a file of the folder that was loaded
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for file in tokenizer_files:
            shutil.copyfile(file, fresh / file.name)
        _add_eos_ids(fresh, eos_ids)
        for name, text in (about or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")
        for file in (*fresh.iterdir(), fresh):
            to_disk(file)  # else a power cut after the renaming could leave a model without its weights
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except OSError as error:
        raise cannot_write(f"the model to {target}", error, otherwise="choose another folder") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        with suppress(OSError):
            if old.exists() and not target.exists():
                old.rename(target)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def recover_model(target: Path) -> None:
    """Tidy up after processes that were killed while they saved a model to `target`, which nobody else may write now.

    The model that was being replaced is put back if there is no other. What was being written is removed.
    """
    for left in list(leftovers(target.parent, target.name)):
        replaced = left.name.startswith(f".{target.name}.replaced-") and (left / "config.json").exists()
        if replaced and not target.exists():
            left.rename(target)
            log.warning("%s: put back the model that was being replaced when a process was killed", target)
        elif left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
            log.info("%s: removed, a killed process left it", left)


def check_replaceable(target: Path) -> None:
    """Refuse to replace a file, or a folder that holds anything a model's folder does not.

    Raises:
      UserError: what is in the way.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"expected a folder to save the model in, but {target} is a file: choose another path")
    about = _ABOUT_FILES if (target / "config.json").is_file() else ()  # a README.md alone is somebody's own
    foreign = sorted(
        entry.name
        for entry in target.iterdir()
        if entry.name not in (*TOKENIZER_FILES, *about, "config.json", INDEX) and entry.suffix != ".safetensors"
    )
    if foreign:
        raise UserError(
            f"expected {target} to be new or a saved model, which saving replaces, but it also holds "
            f"{', '.join(foreign)}: choose another folder"
        )


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not any(file.name in ("tokenizer.json", "vocab.json", "tokenizer.model") for file in files):
        raise UserError(f"expected a tokenizer (tokenizer.json) to copy in {folder}, found none: give its folder")
    for file in files:
        target = file.resolve()
        # of the same name, as a person links it, or in the hub's cache; anything else could be a private file
        if file.is_symlink() and target.name != file.name and target.parent.name != "blobs":
            raise UserError(
                f"expected {file} to be a file, or a link to one of that name, but it leads to {file.readlink()}, "
                "which would be copied into the saved model: put the file itself there"
            )
    return files


def _add_eos_ids(folder: Path, eos_ids: Sequence[int]) -> None:
    """Name end tokens in generation_config.json, unless it (or config.json, where there is none) names them already."""
    file = folder / "generation_config.json"
    values = read_json(file) if file.exists() else {}
    named = values.get("eos_token_id") if file.exists() else read_json(folder / "config.json").get("eos_token_id")
    known = named if isinstance(named, list) else [] if named is None else [named]
    if missing := [int(i) for i in eos_ids if i not in known]:
        values["eos_token_id"] = [*known, *missing]
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


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
        dtype = leaf_of(params, leaf.path).dtype
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
        _write_safetensors(folder / WEIGHTS, shards[0], tensors)
        return
    weight_map = {}
    for number, header in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(file, header, tensors)
        weight_map.update(dict.fromkeys(header, file.name))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(
    file: Path,
    header: dict[str, jax.ShapeDtypeStruct],
    tensors: Iterator[tuple[str, jax.Array | np.ndarray]],
) -> None:
    """Write the next len(header) tensors one at a time; the library's own writer needs a whole shard in host memory.

    Format: u64 length of the header, the header as JSON, the tensors' bytes (little-endian, row-major).
    """
    codes = {name: code for code, name in STORED.items()}
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
            stops.check()
            out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
