"""config.json in and out: what is read, what is kept, what is refused by name."""

import json
import re
from dataclasses import replace

import pytest
from transformers import AutoConfig, LlamaConfig

from rlt_jax.errors import UserError
from rlt_jax.models import ModelConfig
from rlt_jax.models.config import parse_config, read_config
from tests.models.conftest import CONFIGS, VALUES


def test_reads_what_transformers_4_wrote(golden):
    config = read_config(golden / "student")
    assert config == ModelConfig("qwen2", 1000, 128, 256, 3, 4, 2, 32, rope_theta=1e6)
    assert (config.qkv_bias, config.output_bias, config.qk_norm) == (True, False, False)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_reads_what_transformers_5_writes(checkpoint, name):
    config, theirs = read_config(checkpoint(name)), CONFIGS[name]
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert config.head_dim == {"qwen2.5": 8, "qwen3": 32, "llama": 24, "yarn-qwen3": 32}.get(name, 16)
    assert config.qkv_bias == (name in ("qwen2", "qwen2.5", "yarn-qwen2", "qwen3-biased", "llama-tied"))
    assert config.output_bias == (name in ("qwen3-biased", "llama-tied"))
    assert config.qk_norm == (theirs.model_type == "qwen3")


def test_defaults_are_transformers_own():
    assert parse_config(VALUES, "x").head_dim == 32
    assert parse_config({**VALUES, "model_type": "qwen3"}, "x").head_dim == 128
    assert parse_config({**VALUES, "num_key_value_heads": None}, "x").num_key_value_heads == 4
    assert parse_config(VALUES, "x").rope_theta == 10000.0
    assert parse_config(VALUES, "x").max_positions == 32768
    llama = {key: value for key, value in VALUES.items() if key != "num_key_value_heads"} | {"model_type": "llama"}
    assert parse_config(llama, "x").num_key_value_heads == 4
    assert parse_config(llama, "x").max_positions == LlamaConfig().max_position_embeddings == 2048
    assert (
        parse_config({**VALUES, "rope_theta": 5.0, "rope_parameters": {"rope_type": "default"}}, "x").rope_theta == 5.0
    )


def test_an_unchanged_config_is_written_as_it_came(golden):
    original = json.loads((golden / "teacher" / "config.json").read_text())
    written = read_config(golden / "teacher").to_json("bfloat16")
    assert written == {**original, "dtype": "bfloat16", "torch_dtype": "bfloat16"}


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_a_changed_config_keeps_foreign_keys_and_reads_back(checkpoint, name, tmp_path):
    source = json.loads((checkpoint(name) / "config.json").read_text())
    source |= {"my_note": [1, 2], "layer_types": ["full_attention"] * 3}
    changed = replace(parse_config(source, "x"), num_hidden_layers=1, rope_theta=123.0, tie_word_embeddings=True)
    written = changed.to_json("float32")
    assert written["my_note"] == [1, 2] and written["layer_types"] == ["full_attention"]
    assert parse_config(written, "x") == changed
    (tmp_path / "config.json").write_text(json.dumps(written))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert (theirs.num_hidden_layers, theirs.rope_parameters["rope_theta"]) == (1, 123.0)


def test_a_config_without_a_file_is_written_in_full(tmp_path):
    config = ModelConfig("qwen3", 100, 24, 48, 2, 4, 2, 8, rope_theta=7.0, rms_norm_eps=1e-4, attention_bias=True)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json("float32")))
    assert read_config(tmp_path) == config
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.architectures == ["Qwen3ForCausalLM"] and theirs.head_dim == 8 and theirs.rms_norm_eps == 1e-4
    assert theirs.rope_parameters["rope_theta"] == 7.0 and theirs.attention_bias and not theirs.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "(Qwen2 and Qwen2.5) or qwen3, got 'gpt2': give a model of one of these families"),
        ({"model_type": ["qwen2"]}, "got ['qwen2']: give a model of one of these families"),
        ({"hidden_size": "128"}, "expected hidden_size to be a positive integer, got '128'"),
        ({"num_hidden_layers": 0}, "expected num_hidden_layers to be a positive integer, got 0"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads, got 4 and 3"),
        ({"hidden_size": 130}, "got hidden_size 130 and 4 heads: add head_dim"),
        ({"head_dim": 33}, "expected head_dim to be a positive even integer, got 33"),
        ({"rope_theta": -1}, "expected rope_theta to be a positive number, got -1"),
        ({"rms_norm_eps": "tiny"}, "expected rms_norm_eps to be a positive number, got 'tiny'"),
        ({"rms_norm_eps": float("inf")}, "expected rms_norm_eps to be a positive number, got inf"),
        ({"tie_word_embeddings": "yes"}, "expected tie_word_embeddings to be true or false, got 'yes'"),
    ],
)
def test_refusals_name_the_cause(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_config({**VALUES, **change}, "config.json")


def test_all_unsupported_features_are_named_at_once():
    with pytest.raises(UserError) as refusal:
        parse_config({**VALUES, "mlp_bias": True, "rope_scaling": {"rope_type": "linear"}}, "some/config.json")
    assert all(word in str(refusal.value) for word in ("some/config.json", "mlp_bias", "linear"))


def test_missing_keys_are_all_named():
    with pytest.raises(UserError, match="expected the keys hidden_size, num_attention_heads, which are missing"):
        parse_config(
            {k: v for k, v in VALUES.items() if k not in ("hidden_size", "num_attention_heads")}, "config.json"
        )
