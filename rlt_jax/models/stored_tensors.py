"""The tensors of a model's weight files by their headers, checked against the model before any data is read.

Names may have or lack the prefix "model.", as in transformers, which saves base models without it. Any other
difference is refused, where transformers would invent what is missing and drop what is left over.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from rlt_jax.errors import UserError
from rlt_jax.models.base import Model
from rlt_jax.models.tensor_names import name_table
from rlt_jax.models.weight_files import WeightFiles, find_weights, refuse_placeholder

STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # safetensors' name -> ours
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

_PREFIX = "model."
_MOST_SHOWN = 10  # differences in one message
_QUANTISED_TYPES = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}
_QUANTISED_ENDS = ("qweight", "qzeros", "scales", "g_idx", "_scale", "_scale_inv", "absmax", "quant_map", "SCB")
_HEADS = ("score.", "v_head.", "value_head.", "classifier.", "summary.")


class Stored(NamedTuple):
    """A tensor as a safetensors header describes it."""

    dtype: str  # safetensors' name: "BF16", ...
    shape: tuple[int, ...]


class Checkpoint(NamedTuple):
    """A model's weight files, which hold exactly its parameters."""

    found: WeightFiles
    headers: dict[Path, dict[str, Stored]]  # by file; name in the file -> tensor
    names: dict[str, str]  # name in a file -> name in `name_table`; what it lacks is not loaded

    @property
    def tensors(self) -> dict[str, Stored]:
        """Name in `name_table` -> tensor."""
        return {
            self.names[name]: tensor
            for header in self.headers.values()
            for name, tensor in header.items()
            if name in self.names
        }


def open_checkpoint(folder: Path, model: Model) -> Checkpoint:
    """Read the headers of a folder's weight files.

    Raises:
      UserError: files are missing, damaged or do not belong together, or tensors are not exactly the model's in name,
        shape and kind of number.
    """
    found = find_weights(folder)
    headers = {file: _read_header(file) for file in found.files}
    expected = {name: leaf.shape for leaf in name_table(model) for name in leaf.names}
    places: dict[str, list[str]] = defaultdict(list)  # name in the files -> names of files
    for file, header in headers.items():
        for name in header:
            places[name].append(file.name)
    tied = model.config.tie_word_embeddings
    _check_index(found, places, tied)
    names = _parameter_names(places, expected, tied)
    _check_tensors(folder, headers, names, expected, tied)
    return Checkpoint(found, headers, names)


def _read_header(file: Path) -> dict[str, Stored]:
    """Read names, dtypes and shapes of a safetensors file's tensors, but no data."""
    refuse_placeholder(file)
    try:
        with safe_open(file, framework="numpy") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  not a dict
            return {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: expected a complete safetensors file, but it is damaged ({error}): copy it again"
        ) from error


def _check_index(found: WeightFiles, places: Mapping[str, list[str]], tied: bool) -> None:
    """Refuse an index that does not say where its shards' tensors are: it, or a shard, is of another save."""
    if found.index_file is None:
        return
    problems = []
    for name, file in found.weight_map.items():
        if name not in places and not _ignorable(name, tied):
            problems.append(f"{file} lacks {name}")
        elif name in places and file not in places[name]:
            problems.append(f"{file} lacks {name}, which is in {', '.join(places[name])}")
    for name, files in places.items():
        if name not in found.weight_map and not _ignorable(name, tied):
            problems.append(f"{files[0]} holds {name}, which the index does not name")
    if problems:
        raise UserError(
            f"{found.index_file} does not describe its shards:\n  {_shown(problems)}\n"
            "it or a shard belongs to another save: copy all of them again from one place"
        )


def _ignorable(name: str, tied: bool) -> bool:
    """Whether a checkpoint may hold this tensor besides the parameters: an old RoPE buffer, the copy of a tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (tied and name == HEAD)


def _parameter_names(stored: Collection[str], expected: Collection[str], tied: bool) -> dict[str, str]:
    """Match names in files with those of parameters, with or without the prefix; what matches nothing is left out.

    A tied model's only table may be stored as its head, as transformers allows.
    """
    names = {}
    for name in stored:
        for candidate in (name, _PREFIX + name, name.removeprefix(_PREFIX)):
            if candidate in expected:
                names[name] = candidate
                break
    if tied and HEAD in stored and EMBEDDING not in names.values():
        names[HEAD] = EMBEDDING
    return names


def _check_tensors(
    folder: Path,
    headers: Mapping[Path, Mapping[str, Stored]],
    names: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
    tied: bool,
) -> None:
    """Refuse tensors that are not exactly the model's, naming what differs."""
    holders: dict[str, list[str]] = defaultdict(list)  # parameter -> files that hold it
    wrong, extra, types = [], [], set()
    for file, header in headers.items():
        where = f" in {file.name}" if len(headers) > 1 else ""
        for name, tensor in header.items():
            if name in names:
                holders[names[name]].append(file.name)
                if tensor.shape != (shape := expected[names[name]]):
                    wrong.append(f"misshaped {name}{where}: expected {list(shape)}, got {list(tensor.shape)}")
            elif not _ignorable(name, tied):
                extra.append(name)
                wrong.append(f"extra {name} {list(tensor.shape)}{where}")
                continue
            if tensor.dtype not in STORED:
                types.add(tensor.dtype)
                wrong.append(f"{name} of type {tensor.dtype}{where}: expected one of {', '.join(STORED)}")
    for name, files in holders.items():
        if len(set(files)) > 1:
            wrong.append(f"{name} in {len(files)} files ({', '.join(files)})")
        elif len(files) > 1:
            wrong.append(f"{name} twice in {files[0]}, with and without the prefix {_PREFIX}")
    missing = [name for name in expected if name not in holders]
    problems = [f"missing {name} {list(expected[name])}" for name in missing] + wrong
    if problems:
        source = next(iter(headers)) if len(headers) == 1 else folder
        raise UserError(
            f"the weights in {source} are not those that its config.json describes:\n  {_shown(problems)}\n"
            f"{_advice(extra, missing, types)}"
        )


def _shown(problems: list[str]) -> str:
    more = [f"and {len(problems) - _MOST_SHOWN} more"] if len(problems) > _MOST_SHOWN else []
    return "\n  ".join(problems[:_MOST_SHOWN] + more)


def _advice(extra: Sequence[str], missing: Sequence[str], types: Collection[str]) -> str:
    """What to do about tensors that differ: by what they look like."""
    if any(kind.startswith("F8") or kind in _QUANTISED_TYPES for kind in types) or any(
        name.endswith(_QUANTISED_ENDS) for name in extra
    ):
        return "these are quantised or integer weights: give the checkpoint in bfloat16, float16 or float32"
    for name in extra:
        for wanted in missing[:3]:  # with such a prefix, nearly all are missing
            if name.endswith(f".{wanted}"):
                prefix = name.removesuffix(wanted)
                return (
                    f"the names begin with {prefix!r}, which something around the model left (torch.compile, "
                    "DistributedDataParallel, an adapter, a vision model): save the language model inside it"
                )
    if extra and not missing and all(name.startswith(_HEADS) for name in extra):
        return "it has the head of a reward, value or classification model: give the language model, or remove the head"
    if missing == [HEAD]:
        return (
            "a base model has no head: give the model with its head, or, if the head is the embedding, "
            "set tie_word_embeddings to true in config.json"
        )
    return "correct the config.json, or give the checkpoint that belongs to it"
