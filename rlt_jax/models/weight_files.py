"""Which files of a model folder hold the weights: the rule of transformers' `from_pretrained`.

The first of these that exists is loaded, whole, and no other file:
1. the file that config.json names as `transformers_weights`, which is a safetensors file or an index;
2. model.safetensors;
3. model.safetensors.index.json with the shards that it names.

What else looks like weights is ignored, as transformers ignores it, but named (`WeightFiles.ignored`): a left-over of
another save beside the loaded one is the user's business to notice.

Departures, which refuse what transformers would load: pytorch_model.bin (its pickles can run code), a distributed
checkpoint, a LoRA adapter in the folder, and shards that lie outside it.
"""

import re
from pathlib import Path
from typing import NamedTuple

from rlt_jax.errors import UserError
from rlt_jax.models.config import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_ADAPTER = "adapter_config.json"
_POINTER = b"version https://git-lfs"  # how a Git LFS pointer begins
_OTHER_WEIGHTS = re.compile(
    r"(?!consolidated).*\.(safetensors|safetensors\.index\.json|gguf|pth)|pytorch_model.*\.bin(\.index\.json)?"
)
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


class WeightFiles(NamedTuple):
    """The files that hold a model's weights."""

    files: tuple[Path, ...]  # safetensors files, sorted by name; all lie in the folder
    index_file: Path | None  # that names them; None: there is one file
    weight_map: dict[str, str]  # the index's: name of a tensor -> name of its file; empty without an index
    ignored: tuple[str, ...]  # names of other files in the folder that look like weights

    @property
    def source(self) -> str:
        """The name of the file that decides what is loaded."""
        return (self.index_file or self.files[0]).name


def find_weights(folder: Path) -> WeightFiles:
    """Find a folder's weights by the rule above; of their contents, only an index is read.

    Raises:
      UserError: there are none that can be loaded, or the index is broken, lacks shards or names files elsewhere.
    """
    refuse_adapter(folder)
    present = sorted(entry.name for entry in folder.iterdir())
    if distributed := [name for name in present if _DISTRIBUTED.fullmatch(name)]:
        raise UserError(
            f"expected {WEIGHTS} or shards with {INDEX} in {folder}, found the distributed checkpoint "
            f"{distributed[0]}: load it with transformers and save it with save_pretrained into another folder"
        )
    chosen = _named_by_config(folder) or _standard(folder)
    if chosen is None:
        raise UserError(
            f"expected weights in {folder} ({WEIGHTS}, or shards with {INDEX}), found "
            f"{', '.join(present) or 'nothing'}: {_how_to_get_them(present)}"
        )
    refuse_placeholder(chosen)
    index_file = chosen if chosen.suffix == ".json" else None
    weight_map = _read_weight_map(index_file) if index_file else {}
    files = tuple(folder / name for name in sorted(set(weight_map.values()))) if index_file else (chosen,)
    loaded = {chosen.name, *(file.name for file in files)}
    ignored = tuple(name for name in present if name not in loaded and _OTHER_WEIGHTS.fullmatch(name))
    return WeightFiles(files, index_file, weight_map, ignored)


def refuse_adapter(folder: Path) -> None:
    """Refuse a LoRA adapter, in a folder of its own or beside a model, to which transformers would add it (with peft).

    Raises:
      UserError: the folder has an adapter's configuration.
    """
    if (folder / _ADAPTER).exists():
        raise UserError(
            f"expected a whole model in {folder}, found the adapter (LoRA) of {_ADAPTER}: merge it into its model "
            "(peft's merge_and_unload, then save_pretrained) and give that folder, or remove the adapter's files if it "
            "is merged already"
        )


def refuse_placeholder(file: Path) -> None:
    """Refuse a file that stands for another one: a Git LFS pointer, or one that nothing was written to.

    Raises:
      UserError: it is a pointer or empty, or cannot be read.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(len(_POINTER))
    except OSError as error:
        raise UserError(f"{file}: expected weights, but it cannot be read ({error}): make it readable") from error
    if start == _POINTER:
        raise UserError(f"{file}: expected weights, got a Git LFS pointer to them: run `git lfs pull` in that folder")
    if not start:
        raise UserError(f"{file}: expected weights, but the file is empty: copy it again")


def _standard(folder: Path) -> Path | None:
    for file in (folder / WEIGHTS, folder / INDEX):
        if file.is_symlink() and not file.exists():  # the next in order might hold older weights
            raise UserError(f"{file}: expected weights, got a link to {file.readlink()}, which is gone: copy it again")
        if file.is_file():
            return file
    return None


def _named_by_config(folder: Path) -> Path | None:
    config = folder / "config.json"
    name = read_json(config).get("transformers_weights")
    if name is None:
        return None
    if not isinstance(name, str) or not (_is_plain(name, ".safetensors") or _is_plain(name, ".safetensors.index.json")):
        raise UserError(
            f"{config}: expected transformers_weights to name a safetensors file or its index in this folder, "
            f"got {name!r}: correct it, or remove it to load {WEIGHTS}"
        )
    if not (folder / name).is_file():
        raise UserError(f"{config} names transformers_weights {name}, which {folder} lacks: copy it or remove the key")
    return folder / name


def _is_plain(name: str, suffix: str) -> bool:
    """Whether a name is that of a file right in the folder (which may be a link, as in the hub's cache)."""
    return name.endswith(suffix) and not re.search(r"[/\\]", name)


def _read_weight_map(index: Path) -> dict[str, str]:
    """An index's map, tensor -> shard, whose shards are all there."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: expected a weight_map of tensor names to file names, got none: copy the file again")
    names = sorted(set(weight_map.values()))
    if elsewhere := [name for name in names if not _is_plain(name, ".safetensors")]:
        raise UserError(
            f"{index}: expected the names of safetensors files in its folder, got {', '.join(elsewhere)}: "
            "move the shards there and correct the index"
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        lacking = ", ".join(missing) or "none at all"
        raise UserError(f"{index} names shards that {index.parent} lacks: {lacking}: copy them")
    return weight_map


def _how_to_get_them(present: list[str]) -> str:
    """Advice for a folder with these files, but no weights that can be loaded."""
    if any(_SHARD.fullmatch(name) for name in present):
        return f"copy {INDEX}, without which shards of two saves cannot be told apart"
    if others := [name for name in present if name.endswith(".safetensors")]:
        return f"if {others[0]} is the whole model, rename it to {WEIGHTS}; else copy the missing files"
    if any(name.endswith((".bin", ".pth", ".pt")) for name in present):
        return (
            "convert other formats to safetensors (transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER))"
        )
    if any(name.endswith(".gguf") for name in present):
        return "GGUF files are not read: give the model's safetensors, of which the GGUF file was made"
    return "copy the missing files, or convert other formats to safetensors"
