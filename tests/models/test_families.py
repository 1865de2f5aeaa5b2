"""Families of models: architectures of public ones without a download, and what a new family takes."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.errors import UserError
from rlt_jax.models import load_model, save_model
from rlt_jax.models.config import known_config
from rlt_jax.models.families import FAMILIES
from rlt_jax.models.family import Family
from rlt_jax.planner.run_plan import model_shape
from rlt_jax.planner.shapes import ModelShape
from tests.models.conftest import oracle_logits, oracle_model, save_mistral

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
    "Qwen/Qwen3-4B-Thinking-2507": 4_022_468_096,
    "Qwen/QwQ-32B": 32_763_876_352,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
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


def test_positions_of_known_models_include_their_scaling():
    assert known_config("meta-llama/Llama-3.2-1B").max_positions == 131072
    assert known_config("HuggingFaceTB/SmolLM2-135M-Instruct").max_positions == 8192
    assert known_config("Qwen/Qwen3-4B-Instruct-2507").max_positions == 262144
    assert known_config("Qwen/Qwen3-4B").max_positions == 40960


def test_another_name_is_not_known():
    assert known_config("Qwen/Qwen2.5-8B") is None


def test_an_unknown_family_is_named_and_a_new_one_is_a_record(tmp_path, monkeypatch):
    """The walk-through of docs/development.md: a Mistral is read, computed as transformers does, and written back."""
    oracle = save_mistral(tmp_path / "mistral")
    with pytest.raises(UserError) as refusal:
        load_model(tmp_path / "mistral")
    assert str(refusal.value) == (
        f"{tmp_path / 'mistral' / 'config.json'}: expected model_type llama (Llama 3.x, SmolLM2) or qwen2 (Qwen2 and "
        "Qwen2.5) or qwen3, got 'mistral': give a model of one of these families"
    )
    mistral = Family(
        model_type="mistral",
        label="mistral",
        architecture="MistralForCausalLM",
        qkv_bias=False,
        output_bias=False,
        qk_norm=False,
        defaults={"max_position_embeddings": 131072, "sliding_window": 4096},
        known={},
    )
    monkeypatch.setitem(FAMILIES, "mistral", mistral)
    model, params = load_model(tmp_path / "mistral", dtype="float32")
    ids = np.random.default_rng(0).integers(0, 97, (2, 40)).astype(np.int32)
    expected = oracle_logits(oracle, ids, np.ones_like(ids))
    assert np.abs(np.asarray(model.logits(params, jnp.asarray(ids))) - expected).max() < 1e-4

    save_model(tmp_path / "copy", model, params)
    again = oracle_model(tmp_path / "copy")
    np.testing.assert_allclose(oracle_logits(again, ids, np.ones_like(ids)), expected, atol=1e-5)


def test_every_folder_has_its_families():
    assert FAMILIES.keys() == {"llama", "qwen2", "qwen3"}
    assert all(family.model_type == key for key, family in FAMILIES.items())
    assert all(known_config(name) is not None for family in FAMILIES.values() for name in family.known)
