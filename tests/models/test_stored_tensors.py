"""The tensors in a model's files: names and types that transformers would load alike, or a refusal that names them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from rlt_jax.errors import UserError
from rlt_jax.models import checkpoint_shapes, load_model, named_tensors, save_model
from rlt_jax.segments import MicroBatch, Tree
from tests.models.test_weight_files import assert_loads_as_in_transformers, edit_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Tensors = dict[str, np.ndarray]


@pytest.fixture
def copy(checkpoint, tmp_path) -> Callable[[str], Path]:
    """copy(name): a checkpoint to be spoiled."""
    return lambda name: Path(shutil.copytree(checkpoint(name), tmp_path / name))


@pytest.fixture
def shards(checkpoint, tmp_path) -> Path:
    """An untied checkpoint in four shards."""
    folder = tmp_path / "qwen2"
    save_model(folder, *load_model(checkpoint("qwen2"), dtype="float32"), max_shard_size=140_000)
    return folder


def rewrite(folder: Path, change: Callable[[Tensors], Tensors], file: str = SINGLE) -> Path:
    save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})
    return folder


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def refusal(folder: Path) -> str:
    """What loading a folder and reading its shapes say alike."""
    messages = set()
    for read in (load_model, checkpoint_shapes):
        with pytest.raises(UserError) as refused:
            read(folder)
        messages.add(str(refused.value))
    (message,) = messages
    return message


# Names


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3-biased"])
def test_a_tied_base_model_that_transformers_saved(checkpoint, tmp_path, name):
    folder = tmp_path / name
    AutoModel.from_pretrained(checkpoint(name), dtype=torch.float32).save_pretrained(folder)
    assert "embed_tokens.weight" in load_file(folder / SINGLE)
    assert_loads_as_in_transformers(folder)
    assert checkpoint_shapes(folder) == checkpoint_shapes(checkpoint(name))


NAMES: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "no prefix": ("qwen2", renamed(lambda name: name.removeprefix("model."))),
    "a prefix for all": ("qwen2", renamed(lambda name: name if name.startswith("model.") else f"model.{name}")),
    "a prefix for some": ("qwen3", renamed(lambda name: name.replace("model.layers.1", "layers.1"))),
    "tied, with an equal head": ("qwen2.5", lambda tensors: tensors | {HEAD: tensors[EMBEDDING].copy()}),
    "tied, with only the head": (
        "qwen2.5",
        lambda tensors: {HEAD if name == EMBEDDING else name: tensor for name, tensor in tensors.items()},
    ),
}


@pytest.mark.parametrize(("name", "change"), NAMES.values(), ids=NAMES.keys())
def test_other_names_load_as_in_transformers(copy, checkpoint, name, change):
    folder = rewrite(copy(name), change)
    assert_loads_as_in_transformers(folder)
    assert checkpoint_shapes(folder) == checkpoint_shapes(checkpoint(name))


def test_an_untied_base_model_lacks_its_head(checkpoint, tmp_path):
    """transformers would make up a random one."""
    AutoModel.from_pretrained(checkpoint("qwen2"), dtype=torch.float32).save_pretrained(tmp_path / "qwen2")
    message = refusal(tmp_path / "qwen2")
    assert "missing lm_head.weight [97, 64]" in message and "a base model has no head: give the model with" in message


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "language_model.", "module._orig_mod."]
)
def test_names_that_a_wrapper_left_are_refused_with_its_prefix(copy, prefix):
    folder = rewrite(copy("qwen2"), renamed(lambda name: prefix + name))
    message = refusal(folder)
    assert f"the names begin with '{prefix}', which something around the model left" in message
    assert str(folder / SINGLE) in message and re.search(r"\n  and \d\d more\n", message)


def test_a_tensor_under_both_names_is_refused(copy):
    folder = rewrite(copy("qwen2"), lambda t: t | {"norm.weight": t["model.norm.weight"] + 1})
    assert "model.norm.weight twice in model.safetensors, with and without the prefix model." in refusal(folder)


@pytest.mark.parametrize("head", ["score.weight", "v_head.summary.weight"])
def test_the_head_of_a_reward_model_is_refused(copy, head):
    message = refusal(rewrite(copy("qwen2.5"), lambda t: t | {head: np.zeros((1, 112), np.float32)}))
    assert f"extra {head} [1, 112]" in message
    assert message.endswith("model: give the language model, or remove the head")


# Index and shards


def first_of(shards: Path, number: int) -> tuple[str, str]:
    """A shard's file name, and its first tensor."""
    file = f"model-0000{number}-of-00004.safetensors"
    return file, min(load_file(shards / file))


def weight_map(shards: Path) -> dict[str, str]:
    return json.loads((shards / INDEX).read_text())["weight_map"]


def test_an_index_that_names_the_wrong_shard(shards):
    (file, name), (other, _) = first_of(shards, 2), first_of(shards, 3)
    edit_json(shards / INDEX, weight_map=weight_map(shards) | {name: other})
    message = refusal(shards)
    assert f"{shards / INDEX} does not describe its shards:\n  {other} lacks {name}, which is in {file}\n" in message
    assert message.endswith("it or a shard belongs to another save: copy all of them again from one place")


def test_an_index_that_names_a_tensor_which_is_nowhere(shards):
    file, name = first_of(shards, 2)
    rewrite(shards, without(name), file)
    assert f"  {file} lacks {name}\n" in refusal(shards)


def test_an_index_that_names_tensors_of_another_model(shards):
    file, _ = first_of(shards, 1)
    edit_json(shards / INDEX, weight_map=weight_map(shards) | {"model.layers.3.mlp.up_proj.weight": file})
    assert f"  {file} lacks model.layers.3.mlp.up_proj.weight\n" in refusal(shards)


def test_an_index_that_omits_a_tensor(shards):
    file, name = first_of(shards, 4)
    edit_json(shards / INDEX, weight_map={key: value for key, value in weight_map(shards).items() if key != name})
    assert f"  {file} holds {name}, which the index does not name\n" in refusal(shards)


def test_a_shard_of_another_save(shards, checkpoint, tmp_path):
    """Cut elsewhere, it repeats a neighbour's tensors or leaves some out."""
    save_model(tmp_path / "other", *load_model(checkpoint("qwen2"), dtype="float32"), max_shard_size=60_000)
    shutil.copyfile(sorted((tmp_path / "other").glob("*.safetensors"))[2], shards / first_of(shards, 2)[0])
    assert "does not describe its shards" in refusal(shards)


@pytest.mark.parametrize("difference", [0, 1])
def test_a_tensor_in_two_shards(shards, difference):
    (file, name), (other, _) = first_of(shards, 2), first_of(shards, 3)
    tensor = load_file(shards / file)[name] + difference
    rewrite(shards, lambda tensors: tensors | {name: tensor}, other)
    assert f"  {name} in 2 files ({file}, {other})\n" in refusal(shards)


def test_buffers_need_not_be_in_the_index(shards):
    file, _ = first_of(shards, 1)
    rewrite(shards, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}, file)
    assert_loads_as_in_transformers(shards)


# Types


STORED = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("loaded", ["bfloat16", "float32"])
def test_types_are_converted_as_in_transformers(copy, stored, loaded):
    """Exactly into float32, rounded to the nearest into bfloat16."""
    folder = rewrite(copy("qwen2"), lambda t: {name: tensor.astype(STORED[stored]) for name, tensor in t.items()})
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, loaded)).state_dict()
    for name, tensor in named_tensors(*load_model(folder, dtype=loaded)):
        assert tensor.dtype == loaded
        np.testing.assert_array_equal(tensor.astype(np.float32), theirs[name].float().numpy(), err_msg=name)


@pytest.mark.parametrize("stored", STORED)
def test_auto_keeps_what_is_stored_and_says_if_config_json_disagrees(copy, logged, stored):
    folder = rewrite(copy("qwen2"), lambda t: {name: tensor.astype(STORED[stored]) for name, tensor in t.items()})
    edit_json(folder / "config.json", dtype="float32")
    _, params = load_model(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {stored}
    warnings = [record.getMessage() for record in logged.records if record.levelname == "WARNING"]
    assert warnings == [] if stored == "float32" else "config.json has dtype float32, but the weights" in warnings[0]


def test_float16_weights_run_padded_and_packed(copy):
    """As those weights do in float32: nothing overflows where a pad or another text is masked."""
    folder = rewrite(copy("qwen2"), lambda t: {name: tensor.astype(np.float16) for name, tensor in t.items()})
    model, half = load_model(folder)
    _, exact = load_model(folder, dtype="float32")
    ids = np.arange(24, dtype=np.int32).reshape(2, 12)
    mask = np.arange(12) < np.array([[12], [7]])
    packed = MicroBatch([[Tree([0], 0, 4), Tree([1], 0, 4)], [Tree([2], 0, 12)]], 2, 12, "masked")
    padding = np.arange(12) < np.array([[8], [12]])
    for real, keywords in ((mask, {"attention_mask": mask}), (padding, {"layout": packed.layout([4, 4, 12])})):
        assert half["norm"]["weight"].dtype == jnp.float16
        ours = np.asarray(model.unembed(half, model.hidden(half, ids, **keywords)))[real]
        theirs = np.asarray(model.unembed(exact, model.hidden(exact, ids, **keywords)))[real]
        assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def raw(folder: Path, name: str, kind: str, size: int) -> Path:
    """Store one tensor as a type that NumPy lacks, or that no model has."""
    file = folder / SINGLE
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    shape = header[name]["shape"]
    end = int(np.prod(shape)) * size
    old = header.pop(name)["data_offsets"]
    assert old[1] == len(data)  # the last one
    header[name] = {"dtype": kind, "shape": shape, "data_offsets": [old[0], old[0] + end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[: old[0]] + bytes(end))
    return folder


@pytest.mark.parametrize(
    ("kind", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("U8", 1), ("I32", 4), ("I64", 8), ("F64", 8)]
)
def test_other_types_are_refused(copy, kind, size):
    folder = copy("qwen2")
    header = json.loads((content := (folder / SINGLE).read_bytes())[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    last = max(header, key=lambda name: header[name]["data_offsets"][1])
    message = refusal(raw(folder, last, kind, size))
    assert str(folder / SINGLE) in message
    assert f"  {last} of type {kind}: expected one of BF16, F16, F32\n" in message
    quantised = "these are quantised or integer weights: give the checkpoint in bfloat16, float16 or float32"
    assert message.endswith(quantised) == (kind != "F64")


def test_a_quantised_shard_is_named(shards):
    file, name = first_of(shards, 2)
    rewrite(shards, lambda tensors: tensors | {name: np.zeros(tensors[name].shape, np.int8)}, file)
    assert f"  {name} of type I8 in {file}: expected one of BF16, F16, F32\n" in refusal(shards)


@pytest.mark.parametrize("suffixes", [("qweight", "qzeros", "scales", "g_idx"), ("weight", "weight_scale_inv")])
def test_a_quantised_layout_is_refused_as_such(copy, suffixes):
    """As GPTQ, AWQ and fp8 checkpoints have it, without the quantization_config that would tell."""
    name = "model.layers.0.mlp.up_proj"
    parts = {f"{name}.{suffix}": np.ones((4, 4), np.float32) for suffix in suffixes if suffix != "weight"}
    drop = () if "weight" in suffixes else (f"{name}.weight",)
    message = refusal(rewrite(copy("qwen2"), lambda tensors: without(*drop)(tensors) | parts))
    assert all(f"extra {part} [4, 4]" in message for part in parts)
    assert "these are quantised or integer weights" in message


def test_a_quantization_config_is_refused(copy):
    folder = copy("qwen2")
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    message = refusal(folder)
    assert str(folder / "config.json") in message and "quantization_config" in message
