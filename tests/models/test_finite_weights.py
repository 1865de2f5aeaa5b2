"""Weights that are not finite: found by name, refused where they are loaded and where they are saved."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite
from rlt_jax.models import load_model, save_model
from rlt_jax.models.finite_weights import bad_tensors
from rlt_jax.models.tensor_names import leaf_of, name_table

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def poisoned(golden, tmp_path):
    """poisoned(name, value, count): a copy of the golden teacher in which a tensor holds the value."""

    def make(name, value, count=1):
        folder = shutil.copytree(golden / "teacher", tmp_path / "poisoned")
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[-count:] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "value", "count", "words"),
    [
        (UP, np.nan, 1, f"{UP} has 1 value that is not finite"),
        ("model.norm.weight", np.inf, 3, "model.norm.weight has 3 values that are not finite"),
        ("model.embed_tokens.weight", -np.inf, 2, "model.embed_tokens.weight has 2 values that are not finite"),
    ],
)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_loading_refuses_by_file_and_tensor(poisoned, name, value, count, words, dtype):
    folder = poisoned(name, value, count)
    with pytest.raises(UserError) as refusal:
        load_model(folder, dtype=dtype)
    assert str(refusal.value) == (
        f"{folder}/model.safetensors: expected finite weights, but {words}: copy the file again, or give an earlier "
        "checkpoint of the model"
    )


def test_a_stored_value_that_overflows_is_told_from_a_broken_one(poisoned):
    folder = poisoned(UP, np.float32(3.4e38))
    load_model(folder, dtype="float32")
    with pytest.raises(NotFinite, match="is stored as float32 with 1 value too large for bfloat16") as refusal:
        load_model(folder, dtype="bfloat16")
    assert UP in str(refusal.value) and "model.safetensors" in str(refusal.value)


def test_nothing_that_is_not_finite_is_saved(golden, tmp_path):
    model, params = load_model(golden / "student")
    save_model(tmp_path / "good", model, params)
    before = (tmp_path / "good" / "model.safetensors").read_bytes()
    params["norm"]["weight"] = params["norm"]["weight"].at[3].set(jnp.nan)
    for name in ("good", "new"):
        with pytest.raises(NotFinite, match=r"model.norm.weight has 1 value that is not finite"):
            save_model(tmp_path / name, model, params)
    assert [entry.name for entry in tmp_path.iterdir()] == ["good"]  # as it was, and nothing beside it
    assert (tmp_path / "good" / "model.safetensors").read_bytes() == before


@pytest.fixture(scope="module")
def teacher(golden):
    return {dtype: load_model(golden / "teacher", dtype=dtype) for dtype in ("float32", "bfloat16")}


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    value=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_one_number_anywhere_is_found(teacher, data, value, dtype):
    model, params = teacher[dtype]
    leaf = data.draw(st.sampled_from(name_table(model)))
    array = np.array(leaf_of(params, leaf.path))
    place = data.draw(st.integers(0, array.size - 1))
    array.reshape(-1)[place] = value
    poisoned = jax.tree.map(lambda x: x, params)
    leaf_of(poisoned, leaf.path[:-1])[leaf.path[-1]] = array
    layer = place // int(np.prod(leaf.shape)) if leaf.stacked else 0
    assert bad_tensors(model, poisoned) == {leaf.names[layer]: 1}
    assert bad_tensors(model, params) == {}
