"""Folders in and out: bit-exact round trips, transformers as a reader of what we save, every kind of bad folder."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlt_jax.errors import UserError
from rlt_jax.models import ModelConfig, build_model, load_model, named_tensors, save_model
from tests.models.conftest import oracle_logits, oracle_model

IDS = np.arange(24, dtype=np.int32).reshape(2, 12)
MASK = np.ones((2, 12), bool)


@pytest.fixture
def folder(golden, tmp_path) -> Path:
    """A copy of the untied golden checkpoint, to be spoiled."""
    return Path(shutil.copytree(golden / "student", tmp_path / "student"))


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    """Replace, add or (None) remove tensors; __ in a keyword stands for a dot."""
    tensors = load_file(folder / "model.safetensors")
    for key, value in changes.items():
        tensors.pop(key.replace("__", "."), None)
        if value is not None:
            tensors[key.replace("__", ".")] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Round trips


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "max_shard_size"),
    [
        ("qwen2", "float32", 5_000_000_000),
        ("qwen2", "bfloat16", 40_000),
        ("qwen2.5", "bfloat16", 5_000_000_000),
        ("qwen3", "float32", 40_000),
        ("qwen3-biased", "bfloat16", 40_000),
    ],
)
def test_round_trip_is_bit_exact_and_transformers_agrees(checkpoint, tmp_path, name, dtype, max_shard_size):
    model, params = load_model(checkpoint(name), dtype=dtype)
    saved = tmp_path / name
    save_model(saved, model, params, max_shard_size=max_shard_size)
    again, read = load_model(saved)
    assert again == model
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(read))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, read))
    sizes = [file.stat().st_size for file in saved.glob("*.safetensors")]
    if max_shard_size == 40_000:
        assert len(sizes) >= 3
        index = json.loads((saved / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    else:
        assert len(sizes) == 1
    ours = np.asarray(model.logits(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), IDS, MASK))
    theirs = oracle_logits(oracle_model(saved), IDS, MASK)
    assert np.abs(ours - theirs).max() <= 1e-4


def test_the_safetensors_library_reads_the_same_tensors_as_the_original_has(checkpoint, tmp_path):
    source = checkpoint("qwen3")
    save_model(tmp_path / "saved", *load_model(source))
    original, saved = load_file(source / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert original.keys() == saved.keys()
    for name, tensor in original.items():
        assert tensor.dtype == saved[name].dtype and tensor.tobytes() == saved[name].tobytes(), name


def test_shards_keep_to_their_size_and_a_big_tensor_stands_alone(checkpoint, tmp_path):
    model, params = load_model(checkpoint("qwen2"))
    save_model(tmp_path / "saved", model, params, max_shard_size=20_000)
    bytes_of = {
        file: sum(t.nbytes for t in load_file(file).values()) for file in (tmp_path / "saved").glob("*.safetensors")
    }
    assert all(size <= 20_000 or len(load_file(file)) == 1 for file, size in bytes_of.items())
    assert max(bytes_of.values()) == 97 * 64 * 4  # the embedding


def test_a_gradient_tree_is_saved_in_its_own_type(golden, tmp_path):
    model, params = load_model(golden / "teacher", dtype="bfloat16")
    gradient = jax.tree.map(lambda leaf: np.full(leaf.shape, 1 / 3, np.float32), params)  # numpy, as off the device
    save_model(tmp_path / "gradient", model, gradient)
    _, read = load_model(tmp_path / "gradient")
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype("float32")}
    assert all((np.asarray(leaf) == np.float32(1 / 3)).all() for leaf in jax.tree.leaves(read))
    config = json.loads((tmp_path / "gradient" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["bos_token_id"] == 997 and config["transformers_version"] == "4.51.1"


def test_a_tree_of_other_shapes_is_refused(golden, tmp_path):
    model, params = load_model(golden / "teacher")
    with pytest.raises(AssertionError, match="shape"):
        save_model(tmp_path / "saved", model, jax.tree.map(lambda leaf: leaf[..., :-1], params))
    assert list(tmp_path.iterdir()) == []


def test_named_tensors_are_the_checkpoints(golden):
    stored = load_file(golden / "student" / "model.safetensors")
    model, params = load_model(golden / "student")
    ours = dict(named_tensors(model, params))
    assert ours.keys() == stored.keys()
    for name, tensor in stored.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


def test_auto_takes_the_type_of_most_weights(golden, folder):
    half = {
        name.replace(".", "__"): tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in load_file(folder / "model.safetensors").items()
        if "norm" not in name
    }
    rewrite(folder, **half)
    _, params = load_model(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    _, params = load_model(folder, dtype="float32")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    np.testing.assert_array_equal(params["lm_head"]["weight"], half["lm_head__weight"].astype(np.float32))


def test_float16_weights_load_and_run(golden, folder):
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, **{name.replace(".", "__"): tensor.astype(np.float16) for name, tensor in tensors.items()})
    model, params = load_model(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float16"}
    exact = load_model(golden / "student")[1]
    assert np.abs(model.logits(params, IDS) - model.logits(exact, IDS)).max() < 0.1


# Saving


def test_tokenizer_files_are_copied_byte_for_byte(golden, tmp_path):
    model, params = load_model(golden / "teacher")
    save_model(tmp_path / "saved", model, params, tokenizer_from=golden / "teacher")
    names = sorted(file.name for file in (golden / "teacher").iterdir() if file.suffix != ".safetensors")
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == sorted([*names, "model.safetensors"])
    for name in set(names) - {"config.json"}:
        assert (tmp_path / "saved" / name).read_bytes() == (golden / "teacher" / name).read_bytes()


@pytest.mark.parametrize(
    ("generation", "written"),
    [
        (None, None),  # config.json names 999 already
        ({"eos_token_id": 999, "top_k": 20}, {"eos_token_id": 999, "top_k": 20}),
        ({"eos_token_id": [997, 999]}, {"eos_token_id": [997, 999]}),
        ({"eos_token_id": 997, "top_k": 20}, {"eos_token_id": [997, 999], "top_k": 20}),
        ({"top_k": 20}, {"eos_token_id": [999], "top_k": 20}),
    ],
)
def test_end_tokens_that_the_files_do_not_name_are_added(golden, tmp_path, generation, written):
    """As those of a base model that was taught to end its turns with another token than its EOS."""
    source = Path(shutil.copytree(golden / "teacher", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"eos_token_id": 999}))
    file = source / "generation_config.json"
    file.unlink()
    if generation is not None:
        file.write_text(json.dumps(generation))
    model, params = load_model(source)
    save_model(tmp_path / "saved", model, params, tokenizer_from=source, eos_ids=(999,))
    saved = tmp_path / "saved" / "generation_config.json"
    assert (json.loads(saved.read_text()) if saved.exists() else None) == written
    if written == generation and written is not None:
        assert saved.read_bytes() == file.read_bytes()


def test_a_link_to_a_private_file_is_not_copied_into_a_saved_model(golden, checkpoint, tmp_path):
    """Though links to a file of the same name are, and those of the hub's cache."""
    model, params = load_model(checkpoint("llama"))
    source = shutil.copytree(golden / "teacher", tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "blobs").mkdir()
    for name, target in (
        ("tokenizer.json", tmp_path / "blobs" / "0123"),
        ("tokenizer_config.json", tmp_path / "tokenizer_config.json"),
    ):
        (source / name).rename(target)
        (source / name).symlink_to(target)
    save_model(tmp_path / "saved", model, params, tokenizer_from=source)
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == (tmp_path / "blobs" / "0123").read_bytes()
    (tmp_path / ".netrc").write_text("password")
    (source / "added_tokens.json").symlink_to("../.netrc")
    with pytest.raises(
        UserError, match=r"added_tokens.json to be a file, .* but it leads to ../.netrc, which would be"
    ):
        save_model(tmp_path / "other", model, params, tokenizer_from=source)
    assert not (tmp_path / "other").exists()


def test_a_folder_without_a_tokenizer_is_refused(golden, checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"expected a tokenizer \(tokenizer.json\) to copy in"):
        save_model(tmp_path / "saved", *load_model(golden / "teacher"), tokenizer_from=checkpoint("qwen2"))


def test_saving_again_replaces_the_model_even_its_own_source(golden, tmp_path):
    model, params = load_model(golden / "teacher")
    save_model(tmp_path / "saved", model, params, tokenizer_from=golden / "teacher", max_shard_size=100_000)
    save_model(tmp_path / "saved", model, jax.tree.map(jnp.zeros_like, params), tokenizer_from=tmp_path / "saved")
    _, read = load_model(tmp_path / "saved")
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(read))
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) == 1  # no shard of the older one is left
    assert (tmp_path / "saved" / "tokenizer.json").exists()


def test_a_failure_half_way_leaves_the_older_model_and_nothing_else(golden, tmp_path):
    model, params = load_model(golden / "teacher")
    save_model(tmp_path / "saved", model, params)
    broken = jax.tree.map(jnp.copy, params)
    broken["norm"]["weight"].delete()  # the last array to be written
    with pytest.raises(RuntimeError, match="deleted"):
        save_model(tmp_path / "saved", model, broken)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    _, read = load_model(tmp_path / "saved")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, read))


def test_other_peoples_files_are_not_replaced(golden, tmp_path):
    model, params = load_model(golden / "teacher")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"but it also holds metrics\.jsonl: choose another folder"):
        save_model(tmp_path / "run", model, params)
    with pytest.raises(UserError, match="is a file: choose another path"):
        save_model(tmp_path / "run" / "metrics.jsonl", model, params)
    with pytest.raises(UserError, match="cannot write the model to"):
        save_model(tmp_path / "run" / "metrics.jsonl" / "deeper", model, params)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "{}"


# Refusals of bad folders


def test_every_wrong_tensor_is_named_in_one_error(folder):
    rewrite(
        folder,
        model__norm__weight=None,
        model__layers__1__self_attn__q_proj__bias=None,
        model__layers__0__mlp__up_proj__weight=np.zeros((3, 4), np.float32),
        score__weight=np.zeros((1, 128), np.float32),
        lm_head__weight=np.zeros((1000, 128), np.int32),
    )
    with pytest.raises(UserError) as refusal:
        load_model(folder)
    for line in (
        "missing model.norm.weight [128]",
        "missing model.layers.1.self_attn.q_proj.bias [128]",
        "misshaped model.layers.0.mlp.up_proj.weight: expected [256, 128], got [3, 4]",
        "extra score.weight [1, 128]",
        "lm_head.weight of type I32: expected one of BF16, F16, F32",
    ):
        assert f"  {line}\n" in str(refusal.value)
    assert str(refusal.value).count("\n") == 6  # those and no others


def test_a_config_of_another_depth_names_the_layers(folder):
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(UserError, match=re.escape("extra model.layers.2.mlp.down_proj.weight [128, 256]")):
        load_model(folder)


def test_old_rope_buffers_and_a_tied_heads_copy_are_tolerated(golden, tmp_path):
    folder = Path(shutil.copytree(golden / "teacher", tmp_path / "teacher"))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rope = {"model__layers__0__self_attn__rotary_emb__inv_freq": np.zeros(16, np.float32)}
    rewrite(folder, lm_head__weight=embedding, **rope)
    model, params = load_model(folder)
    assert "lm_head" not in params and model.config.tie_word_embeddings
    embedding[5, 7] += 1
    rewrite(folder, lm_head__weight=embedding)
    with pytest.raises(UserError, match=r"expected lm_head\.weight to equal model\.embed_tokens\.weight"):
        load_model(folder)


def test_missing_things_are_named(golden, folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: check the path"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"expected a model's folder, got the file .*config\.json"):
        load_model(str(folder / "config.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected .*config\.json, found nothing in that folder"):
        load_model(tmp_path / "empty")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"expected weights in .*found .*pytorch_model\.bin.*convert other formats"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"model_type": "qw', "expected JSON, but it cannot be read"), ("[1]", "JSON object, got list")],
)
def test_a_broken_config_is_named(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_model(folder)


@pytest.mark.parametrize("length", [4, 3000, 400_000])
def test_truncated_weights_are_named(folder, length):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"model\.safetensors: expected a complete safetensors file, but it is damaged"):
        load_model(folder)


def test_a_broken_index_is_named(golden, tmp_path):
    save_model(tmp_path / "saved", *load_model(golden / "teacher"), max_shard_size=200_000)
    gone = sorted((tmp_path / "saved").glob("*.safetensors"))[1]
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(UserError, match=f"names shards that .* lacks: {gone.name}: copy them"):
        load_model(tmp_path / "saved")
    gone.write_bytes(content)
    index = tmp_path / "saved" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": ["a"]}))
    with pytest.raises(UserError, match="expected a weight_map of tensor names to file names"):
        load_model(tmp_path / "saved")
    index.write_text("{")
    with pytest.raises(UserError, match=r"index\.json: expected JSON"):
        load_model(tmp_path / "saved")


def test_a_tensor_in_two_shards_is_named(golden, tmp_path):
    save_model(tmp_path / "saved", *load_model(golden / "teacher"), max_shard_size=200_000)
    file = sorted((tmp_path / "saved").glob("*.safetensors"))[-1]
    save_file({**load_file(file), "model.embed_tokens.weight": np.zeros((1000, 128), np.float32)}, file)
    with pytest.raises(UserError, match=re.escape("model.embed_tokens.weight in 2 files")):
        load_model(tmp_path / "saved")


@pytest.mark.parametrize("dtype", ["int8", "fp32"])
def test_a_wrong_dtype_is_named(golden, dtype):
    with pytest.raises(UserError, match=f"expected dtype float32, bfloat16 or .* got '{dtype}'"):
        load_model(golden / "teacher", dtype=dtype)


# The hub


def test_an_unreachable_hub_model_is_named():
    with pytest.raises(UserError, match="there is no nobody/no-such-model here and HF_HUB_OFFLINE"):
        load_model("nobody/no-such-model")


def test_a_hub_name_loads_from_the_hubs_cache(golden, tmp_path, monkeypatch):
    repo = tmp_path / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(golden / "teacher", repo / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model, _ = load_model("someone/tiny")
    assert model.config.num_hidden_layers == 2


# Memory

MEASURE = """
import re, sys, jax
from rlt_jax.models import load_model
def resident(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
first = load_model(sys.argv[1])  # compiles what loading needs, and leaves its arrays
before = resident("VmRSS")
second = load_model(sys.argv[1])
parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(second[1]))
print(parameters, resident("VmHWM") - before - parameters)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's peak memory from /proc")
def test_loading_holds_at_most_two_shards_beside_the_parameters(tmp_path):
    model = build_model(ModelConfig("qwen2", 2048, 256, 1024, 40, 4, 2, 64))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.shapes("float32"))
    save_model(tmp_path / "big", model, zeros, max_shard_size=16_000_000)
    shards = [file.stat().st_size for file in (tmp_path / "big").glob("*.safetensors")]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "big")], capture_output=True, text=True, check=True
    )
    parameters, beyond = map(int, measured.stdout.split())
    assert parameters > 150e6 and len(shards) >= 10
    assert 0 < beyond <= 2 * max(shards)
