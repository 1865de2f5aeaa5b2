"""Which files of a folder are loaded: transformers' own choice for every arrangement, or a refusal naming the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlt_jax.errors import UserError
from rlt_jax.models import checkpoint_shapes, find_weights, load_model, named_tensors, save_model

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)]  # of at most 140 kB
STALE = 0.5  # added to every weight of the save that should not be loaded


def transformers_tensors(folder: Path) -> dict[str, np.ndarray]:
    """What transformers loads from a folder, in float32."""
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}


def assert_loads_as_in_transformers(folder: Path) -> None:
    theirs = transformers_tensors(folder)
    model, params = load_model(folder, dtype="float32")
    ours = dict(named_tensors(model, params))
    assert ours.keys() == theirs.keys() - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
    if model.config.tie_word_embeddings:
        np.testing.assert_array_equal(model.head(params), theirs["lm_head.weight"])


class Saves:
    """Two saves of one model, to be mixed in a folder: a fresh one, and a stale one with other weights."""

    def __init__(self, source: Path, folder: Path):
        self.folder = folder
        self._oracle = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        self._source = source
        self._count = 0
        folder.mkdir()
        shutil.copyfile(source / "config.json", folder / "config.json")

    def add(self, *, stale: bool = False, shard: str = "5GB", rename: Callable[[str], str] = lambda name: name) -> None:
        """Add the weight files that transformers writes."""
        oracle = AutoModelForCausalLM.from_pretrained(self._source, dtype=torch.float32)
        with torch.no_grad():
            for parameter in oracle.parameters():
                parameter.add_(STALE * stale)
        self._count += 1
        saved = self.folder.parent / f"save-{self._count}"
        oracle.save_pretrained(saved, max_shard_size=shard)
        for file in saved.iterdir():
            if "safetensors" in file.name:
                shutil.copyfile(file, self.folder / rename(file.name))

    def add_bin(self, *, stale: bool) -> None:
        torch.save(
            {name: tensor + STALE * stale for name, tensor in self._oracle.state_dict().items()},
            self.folder / "pytorch_model.bin",
        )

    def config(self, **values: object) -> None:
        edit_json(self.folder / "config.json", **values)

    def names(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir())


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def saves(checkpoint, tmp_path) -> Saves:
    return Saves(checkpoint("qwen2"), tmp_path / "qwen2")


def single_beside_an_older_index(saves: Saves) -> None:
    saves.add(stale=True, shard="140KB")
    saves.add()


def single_beside_an_index_without_its_shards(saves: Saves) -> None:
    saves.add(stale=True, shard="140KB")
    for file in saves.folder.glob("*-of-*.safetensors"):
        file.unlink()
    saves.add()


def shards_beside_those_of_another_save(saves: Saves) -> None:
    saves.add(stale=True, shard="60KB")
    (saves.folder / INDEX).unlink()
    saves.add(shard="140KB")


def shards_beside_pickles(saves: Saves) -> None:
    saves.add(shard="140KB")
    saves.add_bin(stale=True)


def single_beside_pickles(saves: Saves) -> None:
    saves.add()
    saves.add_bin(stale=True)


def single_beside_a_variant(saves: Saves) -> None:
    saves.add()
    saves.add(stale=True, rename=lambda name: name.replace("model", "model.fp16"))


def single_beside_other_formats(saves: Saves) -> None:
    saves.add()
    saves.add(stale=True, rename=lambda name: "consolidated.safetensors")
    (saves.folder / "original").mkdir()
    (saves.folder / "original" / SINGLE).write_text("not for us")
    (saves.folder / "training_args.bin").write_text("not weights")


def named_by_config(saves: Saves) -> None:
    saves.add(stale=True)
    saves.add(rename=lambda name: "best.safetensors")
    saves.config(transformers_weights="best.safetensors")


def index_named_by_config(saves: Saves) -> None:
    saves.add(stale=True)
    saves.add(shard="140KB")
    saves.config(transformers_weights=INDEX)


ARRANGEMENTS: dict[str, tuple[Callable[[Saves], None], set[str]]] = {
    "one file": (lambda saves: saves.add(), set()),
    "shards": (lambda saves: saves.add(shard="140KB"), set()),
    "one file beside an older index": (
        single_beside_an_older_index,
        {INDEX, *SHARDS},
    ),
    "one file beside an index without its shards": (single_beside_an_index_without_its_shards, {INDEX}),
    "shards beside those of another save": (
        shards_beside_those_of_another_save,
        {f"model-0000{number}-of-00009.safetensors" for number in range(1, 10)},
    ),
    "shards beside pickles": (shards_beside_pickles, {"pytorch_model.bin"}),
    "one file beside pickles": (single_beside_pickles, {"pytorch_model.bin"}),
    "one file beside a variant": (single_beside_a_variant, {"model.fp16.safetensors"}),
    "one file beside other formats": (single_beside_other_formats, set()),
    "a file that config.json names": (named_by_config, {SINGLE}),
    "an index that config.json names": (index_named_by_config, {SINGLE}),
}


@pytest.mark.parametrize(("arrange", "ignored"), ARRANGEMENTS.values(), ids=ARRANGEMENTS.keys())
def test_the_weights_are_those_that_transformers_takes(saves, logged, arrange, ignored):
    arrange(saves)
    assert_loads_as_in_transformers(saves.folder)
    assert set(find_weights(saves.folder).ignored) == ignored
    warnings = [record.getMessage() for record in logged.records if record.levelname == "WARNING"]
    if not ignored:
        assert warnings == []
        return
    (warning,) = warnings
    assert f"{saves.folder}: loading {find_weights(saves.folder).source}, as transformers does, and ignoring" in warning
    assert sum(name in warning for name in ignored) == min(len(ignored), 5)
    assert len(ignored) <= 5 or f"and {len(ignored) - 5} more: remove what is out of date" in warning


def test_links_into_a_cache_are_followed(saves):
    """The hub's cache holds links to files that lie elsewhere."""
    saves.add(shard="140KB")
    blobs = saves.folder.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(saves.folder.glob("*.safetensors")):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert_loads_as_in_transformers(saves.folder)


# Refusals


def move_a_shard_out(saves: Saves, to: Callable[[Path], str]) -> None:
    """Let the index name its first shard in another folder, where the file is."""
    saves.add(shard="140KB")
    first = saves.folder / "model-00001-of-00004.safetensors"
    elsewhere = saves.folder.parent / "elsewhere"
    elsewhere.mkdir()
    first.rename(elsewhere / first.name)
    index = json.loads((saves.folder / INDEX).read_text())
    moved = to(elsewhere / first.name)
    names = {name: moved if file == first.name else file for name, file in index["weight_map"].items()}
    edit_json(saves.folder / INDEX, weight_map=names)


def only(saves: Saves, name: str, content: bytes = b"x" * 64) -> None:
    (saves.folder / name).write_bytes(content)


def spoil(saves: Saves, name: str, change: Callable[[bytes], bytes]) -> None:
    file = saves.folder / name
    file.write_bytes(change(file.read_bytes()))


def sharded(saves: Saves, name: str, change: Callable[[bytes], bytes]) -> None:
    saves.add(shard="140KB")
    spoil(saves, name, change)


def gone_link(saves: Saves) -> None:
    saves.add(stale=True, shard="140KB")
    (saves.folder / SINGLE).symlink_to(saves.folder.parent / "blobs" / "0")


def without_index(saves: Saves) -> None:
    saves.add(shard="140KB")
    (saves.folder / INDEX).unlink()


def adapter_beside_the_model(saves: Saves) -> None:
    saves.add()
    only(saves, "adapter_config.json", b"{}")
    only(saves, "adapter_model.safetensors")


def adapter_alone(saves: Saves) -> None:
    (saves.folder / "config.json").unlink()
    only(saves, "adapter_config.json", b"{}")
    only(saves, "adapter_model.safetensors")


def names_weights(saves: Saves, name: object) -> None:
    saves.add()
    saves.config(transformers_weights=name)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
THIRD = "model-00003-of-00004.safetensors"

REFUSALS: dict[str, tuple[Callable[[Saves], None], str, tuple[str, ...]]] = {
    "a shard above the folder": (
        lambda saves: move_a_shard_out(saves, lambda file: f"../elsewhere/{file.name}"),
        INDEX,
        ("expected the names of safetensors files in its folder, got ../elsewhere/model-00001-of-00004.safetensors",),
    ),
    "a shard at an absolute path": (lambda saves: move_a_shard_out(saves, str), INDEX, ("elsewhere/model-00001",)),
    "a shard that is a pickle": (
        lambda saves: move_a_shard_out(saves, lambda file: "pytorch_model-00001-of-00004.bin"),
        INDEX,
        ("expected the names of safetensors files", "got pytorch_model-00001-of-00004.bin"),
    ),
    "a shard cut short": (
        lambda saves: sharded(saves, THIRD, lambda content: content[:-100]),
        THIRD,
        ("expected a complete safetensors file, but it is damaged", "copy it again"),
    ),
    "a shard that goes on": (
        lambda saves: sharded(saves, THIRD, lambda content: content + b"more"),
        THIRD,
        ("expected a complete safetensors file, but it is damaged",),
    ),
    "an empty shard": (
        lambda saves: sharded(saves, THIRD, lambda content: b""),
        THIRD,
        ("expected weights, but the file is empty: copy it again",),
    ),
    "a shard that is a pointer": (
        lambda saves: sharded(saves, THIRD, lambda content: POINTER),
        THIRD,
        ("expected weights, got a Git LFS pointer to them: run `git lfs pull`",),
    ),
    "an index that is a pointer": (
        lambda saves: sharded(saves, INDEX, lambda content: POINTER),
        INDEX,
        ("got a Git LFS pointer to them",),
    ),
    "a file that is a pointer": (lambda saves: only(saves, SINGLE, POINTER), SINGLE, ("got a Git LFS pointer",)),
    "an empty file": (lambda saves: only(saves, SINGLE, b""), SINGLE, ("the file is empty",)),
    "a link to nothing beside older shards": (gone_link, SINGLE, ("got a link to", "which is gone: copy it again")),
    "an index without a map": (
        lambda saves: sharded(saves, INDEX, lambda content: b'{"metadata": {}}'),
        INDEX,
        ("expected a weight_map of tensor names to file names, got none",),
    ),
    "an index of nothing": (
        lambda saves: sharded(saves, INDEX, lambda content: b'{"weight_map": {}}'),
        INDEX,
        ("names shards that", "lacks: none at all"),
    ),
    "shards without an index": (
        without_index,
        "model-00001-of-00004.safetensors",
        ("expected weights in", f"copy {INDEX}, without which shards of two saves cannot be told apart"),
    ),
    "a variant alone": (
        lambda saves: saves.add(rename=lambda name: "model.fp16.safetensors"),
        "model.fp16.safetensors",
        ("if model.fp16.safetensors is the whole model, rename it to model.safetensors",),
    ),
    "a name in other case": (
        lambda saves: saves.add(rename=lambda name: "Model.safetensors"),
        "Model.safetensors",
        ("expected weights in", "rename it to model.safetensors"),
    ),
    "pickles alone": (
        lambda saves: saves.add_bin(stale=False),
        "pytorch_model.bin",
        ("expected weights in", "from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"),
    ),
    "llama.cpp's format": (
        lambda saves: only(saves, "model-q4_k_m.gguf"),
        "model-q4_k_m.gguf",
        ("GGUF files are not read: give the model's safetensors",),
    ),
    "no weights at all": (lambda saves: None, "config.json", ("found config.json: copy the missing files",)),
    "an adapter": (adapter_alone, "adapter_config.json", ("expected a whole model in", "merge it into its model")),
    "an adapter beside its model": (adapter_beside_the_model, "adapter_config.json", ("merge it into its model",)),
    "a distributed checkpoint": (
        lambda saves: saves.add(rename=lambda name: "shard-00001-model-00001-of-00001.safetensors"),
        "shard-00001-model-00001-of-00001.safetensors",
        ("found the distributed checkpoint", "save it with save_pretrained into another folder"),
    ),
    "a named file that is not there": (
        lambda saves: names_weights(saves, "best.safetensors"),
        "best.safetensors",
        ("names transformers_weights best.safetensors, which", "copy it or remove the key"),
    ),
    "a named file elsewhere": (
        lambda saves: names_weights(saves, "../best.safetensors"),
        "config.json",
        ("expected transformers_weights to name a safetensors file or its index", "got '../best.safetensors'"),
    ),
    "a named file that is no name": (lambda saves: names_weights(saves, 3), "config.json", ("got 3: correct it",)),
}


@pytest.mark.parametrize(("spoil", "file", "parts"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_loaded_is_named(saves, spoil, file, parts):
    spoil(saves)
    before = saves.names()
    for read in (load_model, checkpoint_shapes):
        with pytest.raises(UserError) as refusal:
            read(saves.folder)
        assert file in str(refusal.value)
        assert [part for part in parts if part not in str(refusal.value)] == []
    assert saves.names() == before


def test_a_folder_that_replaces_another_keeps_none_of_its_weights(saves):
    """Nor a name in config.json of a file that is gone."""
    named_by_config(saves)
    model, params = load_model(saves.folder, dtype="float32")
    before = transformers_tensors(saves.folder)
    for max_shard_size, weights in ((10**9, {SINGLE}), (140_000, {INDEX, *SHARDS}), (10**9, {SINGLE})):
        save_model(saves.folder, model, params, max_shard_size=max_shard_size)
        assert set(saves.names()) == {"config.json", *weights}
        assert find_weights(saves.folder).ignored == ()
        after = transformers_tensors(saves.folder)
        assert all((after[name] == tensor).all() for name, tensor in before.items())
