"""Families of models: architectures of public ones without a download, and what a new family takes."""

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaForCausalLM

from rlt_jax.errors import UserError
from rlt_jax.models import load_model, save_model
from rlt_jax.models.config import known_config
from rlt_jax.models.families import FAMILIES
from rlt_jax.models.family import Family
from rlt_jax.planner.run_plan import model_shape
from rlt_jax.planner.shapes import ModelShape
from tests.models.conftest import oracle_logits, save_llama

PARAMETERS = {  # as published, tied embeddings once
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "bespokelabs/Bespoke-Stratos-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
}


def shape(name: str) -> ModelShape:
    config = known_config(name)
    assert config is not None
    return model_shape(config)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    assert shape(name).parameters == PARAMETERS[name]


def test_a_name_in_any_case_and_its_base_model():
    assert known_config("qwen/qwen2.5-7b") is not None
    assert shape("QWEN/QWEN2.5-7B") == shape("Qwen/Qwen2.5-7B-Instruct")
    assert shape("Qwen/Qwen3-8B-Base") == shape("Qwen/Qwen3-8B")
    assert known_config("Qwen/Qwen2.5-7B").max_position_embeddings == 131072
    assert known_config("Qwen/Qwen2.5-7B-Instruct").max_position_embeddings == 32768


def test_another_name_is_not_known():
    assert known_config("Qwen/Qwen2.5-8B") is None


def test_a_new_family_is_a_record(tmp_path, monkeypatch):
    """The walk-through of docs/development.md: a Llama is read, computed as transformers does, and written back."""
    oracle = save_llama(tmp_path / "llama")
    with pytest.raises(UserError, match="expected model_type qwen2"):
        load_model(tmp_path / "llama")

    llama = Family(
        model_type="llama",
        label="llama",
        architecture="LlamaForCausalLM",
        qkv_bias=None,
        output_bias=None,
        qk_norm=False,
        head_dim=None,
        known={},
    )
    monkeypatch.setitem(FAMILIES, "llama", llama)
    model, params = load_model(tmp_path / "llama", dtype="float32")
    ids = np.random.default_rng(0).integers(0, 97, (2, 40)).astype(np.int32)
    expected = oracle_logits(oracle, ids, np.ones_like(ids))
    assert np.abs(np.asarray(model.logits(params, jnp.asarray(ids))) - expected).max() < 1e-4

    save_model(tmp_path / "copy", model, params)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "copy").eval()
    assert np.array_equal(oracle_logits(again, ids, np.ones_like(ids)), expected)
