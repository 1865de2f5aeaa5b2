"""Every key of config.json that transformers' forward pass reads: computed alike, or refused by name."""

import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from rlt_jax.errors import UserError
from rlt_jax.models import load_model
from rlt_jax.models.config import parse_config
from rlt_jax.models.families import FAMILIES
from rlt_jax.models.family import Family
from tests.models.conftest import CONFIGS, VALUES, oracle_logits, oracle_model, save_random

BASE = VALUES | {"max_position_embeddings": 512}
MISTRAL = Family("mistral", "mistral", "MistralForCausalLM", False, False, False, {"sliding_window": 4096}, {})

KEYS = {  # of transformers' configurations -> what becomes of them
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), "read"),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"), "read"),
    **dict.fromkeys(("rms_norm_eps", "rope_parameters", "tie_word_embeddings", "attention_bias"), "read"),
    **dict.fromkeys(("initializer_range", "model_type"), "read"),
    **dict.fromkeys(("hidden_act", "attention_dropout", "mlp_bias"), "refused unless as in the decoder"),
    **dict.fromkeys(("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"), "refused if felt"),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), "of the tokenizer, not of the forward pass"),
    "use_cache": "how transformers generates",
    "pretraining_tp": "computed alike: transformers 5 reads it nowhere",
    **dict.fromkeys(("architectures", "dtype", "transformers_version", "_name_or_path"), "about the file"),
    **dict.fromkeys(("chunk_size_feed_forward", "is_encoder_decoder", "output_attentions"), "not of these models"),
    **dict.fromkeys(("output_hidden_states", "return_dict", "id2label", "label2id", "problem_type"), "not the logits"),
}


@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config, LlamaConfig])
def test_every_key_of_transformers_is_in_the_table(config):
    assert set(config().to_dict()) <= KEYS.keys()


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types chunked_attention (only full"),
        ({"layer_types": "full_attention"}, "expected layer_types to be a list or null, got 'full_attention'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types sliding_attention without a window"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' (only silu)"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 (only 0)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config (only bfloat16"),
        ({"mlp_bias": True}, "mlp_bias=True (only false)"),
        ({"is_causal": False}, "is_causal=False (only true)"),
        ({"per_layer_config": {"0": {"intermediate_size": 64}}}, "per_layer_config (only all layers alike)"),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config (only plain attention)"),
    ],
)
def test_what_the_decoder_lacks_is_refused_by_name(model_type, change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_config({**BASE, "model_type": model_type, **change}, "config.json")


QWEN_WINDOWS = [  # keys, the refusal's words; None: the model is right as it is
    ({"use_sliding_window": False, "sliding_window": 16}, None),
    ({"sliding_window": 16}, None),  # off unless switched on
    ({"use_sliding_window": True, "sliding_window": None}, None),
    ({"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 0}, None),
    ({"use_sliding_window": True, "sliding_window": 511, "max_window_layers": 0}, "=true with sliding_window=511"),
    ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}, None),  # both layers are below
    ({"use_sliding_window": True, "sliding_window": 16}, None),  # of 28 layers, transformers' default
    ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "use_sliding_window=true with slid"),
    ({"use_sliding_window": True, "max_window_layers": 1}, None),  # a window of 4096
    ({"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 2}, None),
    (
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]},
        "from the model's 512 positions on",
    ),
    ({"use_sliding_window": "yes"}, "expected use_sliding_window to be true or false, got 'yes'"),
    ({"use_sliding_window": True, "sliding_window": "16"}, "expected sliding_window to be a positive integer"),
    ({"use_sliding_window": True, "max_window_layers": None}, "expected max_window_layers to be an integer from 0"),
    (
        {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 0}
        | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        "from the model's 1024 positions on",
    ),
]
OTHER_WINDOWS = [
    ({"sliding_window": None}, None),
    ({"sliding_window": 512}, None),
    ({"sliding_window": 511}, "asks for what is not supported: sliding_window=511 (every layer"),
    ({"sliding_window": 16, "use_sliding_window": False}, "sliding_window=16"),  # transformers does not read that key
    ({"sliding_window": 16, "layer_types": ["full_attention"] * 2}, "sliding_window=16"),
    ({"sliding_window": 512, "layer_types": ["sliding_attention"] * 2}, None),
]


@pytest.mark.parametrize(
    ("model_type", "keys", "message"),
    [
        *((kind, *case) for kind in ("qwen2", "qwen3") for case in QWEN_WINDOWS),
        *((kind, *case) for kind in ("llama", "mistral") for case in OTHER_WINDOWS),
        ("llama", {}, None),
        ("mistral", {"max_position_embeddings": 4096}, None),
        ("mistral", {"max_position_embeddings": 8192}, "sliding_window=4096"),  # where config.json has none
    ],
)
def test_windows_are_right_or_refused(model_type, keys, message, monkeypatch):
    monkeypatch.setitem(FAMILIES, "mistral", MISTRAL)
    values = {**BASE, "model_type": model_type, **keys}
    if message is None:
        config = parse_config(values, "config.json")
        assert parse_config(config.to_json("float32"), "config.json") == config
    else:
        with pytest.raises(UserError, match=re.escape(message)):
            parse_config(values, "config.json")


WINDOWED = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
WINDOWED |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("changes", [{"sliding_window": 64, "max_window_layers": 1}, {"max_window_layers": 3}])
def test_an_accepted_window_computes_what_transformers_does(config, changes, tmp_path):
    given = {**WINDOWED, "head_dim": 12, "use_sliding_window": True, "sliding_window": 8} | changes
    oracle = save_random(config(**given), tmp_path / "model")
    kinds = json.loads((tmp_path / "model" / "config.json").read_text())["layer_types"]
    assert ("sliding_attention" in kinds) == (changes["max_window_layers"] < 3)
    model, params = load_model(tmp_path / "model")
    ids = np.random.default_rng(0).integers(0, 97, (2, 64)).astype(np.int32)
    expected = oracle_logits(oracle, ids, np.ones_like(ids))
    assert np.abs(np.asarray(model.logits(params, ids)) - expected).max() <= 1e-4


def test_a_refused_window_would_have_changed_the_numbers(tmp_path):
    """What is refused is not computed by full attention: the refusal is no formality."""
    given = {**WINDOWED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    oracle = save_random(Qwen2Config(**given), tmp_path / "model")
    with pytest.raises(UserError, match="use_sliding_window=true with sliding_window=8"):
        load_model(tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    values |= {"use_sliding_window": False, "layer_types": ["full_attention"] * 3}
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    model, params = load_model(tmp_path / "model")
    ids = np.random.default_rng(0).integers(0, 97, (1, 64)).astype(np.int32)
    expected = oracle_logits(oracle, ids, np.ones_like(ids))
    assert np.abs(np.asarray(model.logits(params, ids)) - expected).max() > 0.05


def test_pretraining_tp_changes_nothing(checkpoint, tmp_path):
    values = json.loads((checkpoint("llama") / "config.json").read_text()) | {"pretraining_tp": 2}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").symlink_to(checkpoint("llama") / "model.safetensors")
    ids = np.arange(20)[None].astype(np.int32)
    expected = oracle_logits(oracle_model(tmp_path), ids, np.ones_like(ids))
    model, params = load_model(tmp_path)
    assert np.abs(np.asarray(model.logits(params, ids)) - expected).max() <= 1e-4


def test_biases_of_all_four_projections_are_used(checkpoint):
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint("llama-tied"))
    _, params = load_model(checkpoint("llama-tied"))
    attention = params["layers"]["self_attn"]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        theirs = torch.stack([getattr(layer.self_attn, name).bias for layer in oracle.model.layers])
        np.testing.assert_array_equal(attention[name]["bias"], theirs.detach().numpy())
    assert CONFIGS["llama-tied"].attention_bias and "lm_head" not in params
    assert "bias" not in load_model(checkpoint("llama"))[1]["layers"]["self_attn"]["q_proj"]


def test_a_model_that_its_own_code_computes_is_refused():
    """Unless `architectures` says that the family's own class does: then the code is not needed."""
    own = {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    values = BASE | {"model_type": "qwen2"} | own
    for architectures in (["OwnModel"], None, "Qwen2ForCausalLM"):
        with pytest.raises(
            UserError, match=r"auto_map with own.OwnModel \(only Qwen2ForCausalLM: code .* is never run"
        ):
            parse_config(values | {"architectures": architectures}, "config.json")
    assert parse_config(values | {"architectures": ["Qwen2ForCausalLM"]}, "config.json").model_type == "qwen2"
    assert parse_config(BASE | {"model_type": "qwen2", "auto_map": {"AutoConfig": "own.OwnConfig"}}, "c").model_type
