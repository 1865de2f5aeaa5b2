"""Rotary frequencies against transformers, and what config.json may say of them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoConfig, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rlt_jax.errors import UserError
from rlt_jax.models import load_model, save_model
from rlt_jax.models.config import known_config, parse_config
from rlt_jax.models.rope import Llama3, Yarn, frequencies
from tests.models.conftest import CONFIGS, SCALED_NAMES, oracle_logits, oracle_model

BASE = {
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CLASSES = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}

READ_ALIKE = {  # keys of a config.json that transformers and we read to the same frequencies
    "qwen2.5 with yarn": {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}},
    "type alone, whole numbers": {
        "rope_scaling": {"type": "llama3", "factor": 2, **{key: LLAMA31[key] for key in list(LLAMA31)[2:]}},
    },
    "rope_parameters": {"rope_parameters": {"rope_theta": 1e6, **YARN}},
    "theta outside rope_parameters": {"rope_theta": 5e5, "rope_parameters": YARN},
    "theta inside and outside": {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4, **YARN}},
    "theta inside rope_scaling": {"rope_theta": 5e5, "rope_scaling": {"rope_theta": 1e4, **YARN}},
    "both alike": {"rope_theta": 1e6, "rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e6, **YARN}},
    "one of both empty": {"rope_theta": 1e6, "rope_scaling": {}, "rope_parameters": {"rope_theta": 1e6, **YARN}},
    "no original length": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "max_position_embeddings": 4096},
    "original length outside": {
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
        "original_max_position_embeddings": 1024,
    },
    "no original length, llama3": {
        "rope_scaling": {key: LLAMA31[key] for key in ("rope_type", "factor", "low_freq_factor", "high_freq_factor")},
        "max_position_embeddings": 4096,
    },
    "llama 3.1": {"rope_theta": 5e5, "rope_scaling": LLAMA31, "max_position_embeddings": 131072},
    "llama 3.2": {"rope_theta": 5e5, "rope_scaling": {**LLAMA31, "factor": 32.0}, "max_position_embeddings": 131072},
    "attention_factor": {"rope_scaling": {**YARN, "attention_factor": 0.7}},
    "attention_factor and mscale": {
        "rope_scaling": {**YARN, "attention_factor": 1.7, "mscale": 2.0, "mscale_all_dim": 0.5}
    },
    "mscale alone": {"rope_scaling": {**YARN, "mscale": 2.0}},
    "both mscales": {"rope_scaling": {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5}},
    "betas, not truncated": {"rope_scaling": {**YARN, "beta_fast": 20, "beta_slow": 3, "truncate": False}},
    "nulls": {"rope_scaling": {**YARN, "attention_factor": None, "beta_fast": None, "mscale": None}},
    "factor 1": {"rope_scaling": {**YARN, "factor": 1.0}},
    "short": {"rope_scaling": {**YARN, "original_max_position_embeddings": 5}},
    "partial rotary factor 1": {"rope_scaling": {**YARN, "partial_rotary_factor": 1.0}, "partial_rotary_factor": 1},
    "plain": {"rope_theta": 1e6, "rope_scaling": None},
    "plain, said so": {"rope_theta": 1e6, "rope_scaling": {"type": "default"}},
    "nothing": {},
}


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize("name", READ_ALIKE)
def test_frequencies_equal_transformers(name, model_type, tmp_path):
    values = {**BASE, "model_type": model_type, **READ_ALIKE[name]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    theirs = AutoConfig.from_pretrained(tmp_path)
    ours = parse_config(values, "x")
    radians, factor = frequencies(128, ours.rope_theta, ours.rope_scaling)
    kind = theirs.rope_parameters["rope_type"]
    if kind == "default":
        expected = theirs.rope_parameters["rope_theta"] ** (-np.arange(0, 128, 2) / 128)
        assert factor == 1.0
    else:
        expected, expected_factor = ROPE_INIT_FUNCTIONS[kind](theirs)
        assert factor == pytest.approx(expected_factor, rel=1e-12)
    assert radians.dtype == np.float32
    np.testing.assert_allclose(radians, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "positions"),
    [
        ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),  # Qwen2.5's instructions
        ({"max_position_embeddings": 40960, "rope_scaling": YARN}, 131072),  # Qwen3's
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 65536, "rope_scaling": {"rope_type": "yarn", "factor": 1.5}}, 98304),
        ({"max_position_embeddings": 262144, "rope_scaling": YARN}, 131072),  # beyond that it was never stretched
        ({"max_position_embeddings": 131072, "rope_scaling": LLAMA31}, 131072),
        ({"max_position_embeddings": 8192}, 8192),
    ],
)
def test_positions_that_the_model_was_made_for(keys, positions):
    assert parse_config({**BASE, "model_type": "llama", **keys}, "x").max_positions == positions


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        *(
            (
                {key: {"rope_type": kind, "factor": 2.0}},
                f"{key} of type '{kind}' (only default, yarn, llama3)",
            )
            for key in ("rope_scaling", "rope_parameters")
            for kind in ("linear", "dynamic", "longrope", "su", "mrope", "proportional", "YARN", "ntk")
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear'"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope_scaling of type ['yarn']"),
        ({"rope_scaling": {"type": None}}, "rope_scaling of type None"),
        ({"rope_scaling": {**YARN, "type": "linear"}}, "expected one type in rope_scaling, got 'yarn' and 'linear'"),
        ({"rope_scaling": "yarn"}, "expected rope_scaling to be an object or null, got 'yarn'"),
        ({"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "to say the same"),
        ({"rope_scaling": YARN, "rope_parameters": {**YARN, "rope_theta": 1e6}}, "to say the same, got rope_scaling {"),
        ({"rope_scaling": YARN, "rope_parameters": {**YARN, "factor": 2.0}}, "to say the same"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 (only 1)"),
        (
            {"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5 in rope_scaling (only 1)",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling of type 'yarn' to have factor: add"),
        (
            {"rope_scaling": {"rope_type": "llama3", "high_freq_factor": 4.0}},
            "rope_scaling of type 'llama3' to have factor, low_freq_factor: add",
        ),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "expected factor in rope_scaling to be at least 1, got 0.5"),
        ({"rope_scaling": {**YARN, "factor": "4"}}, "expected factor in rope_scaling to be a positive number, got '4'"),
        ({"rope_scaling": {**YARN, "factor": None}}, "expected factor in rope_scaling to be a positive number, got No"),
        ({"rope_scaling": {**YARN, "factor": float("nan")}}, "expected factor in rope_scaling to be a positive number"),
        ({"rope_scaling": {**YARN, "beta_fast": 0}}, "expected beta_fast in rope_scaling to be a positive number"),
        ({"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 2}}, "beta_fast in rope_scaling to be at least"),
        ({"rope_theta": 1.0, "rope_scaling": YARN}, "rope_theta to be larger than 1, got 32, 1 and 1"),
        ({"rope_scaling": {**YARN, "mscale": 0}}, "expected mscale in rope_scaling to be a positive number, got 0"),
        ({"rope_scaling": {**YARN, "attention_factor": -1.0}}, "expected attention_factor in rope_scaling"),
        ({"rope_scaling": {**YARN, "truncate": None}}, "expected truncate in rope_scaling to be true or false"),
        (
            {"rope_scaling": {**YARN, "original_max_position_embeddings": 1e4}},
            "expected original_max_position_embeddings to be a positive integer, got 10000.0",
        ),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 1024},
            "expected one original_max_position_embeddings, got 1024 and in rope_scaling 32768",
        ),
        ({"rope_scaling": {**LLAMA31, "high_freq_factor": 1.0}}, "to be larger than low_freq_factor, got 1 and 1"),
        ({"rope_scaling": {**LLAMA31, "low_freq_factor": 0}}, "expected low_freq_factor in rope_scaling"),
        ({"rope_scaling": {**LLAMA31, "beta_fast": 32}}, "in rope_scaling of type 'llama3', got beta_fast too"),
        ({"rope_scaling": {**YARN, "short_factor": [1.0], "scale": 2}}, "type 'yarn', got scale, short_factor too"),
        ({"rope_parameters": {"factor": 2.0}}, "expected only rope_theta in rope_parameters of type 'default', got fa"),
        ({"rope_parameters": {"full_attention": YARN}}, "of type 'default', got full_attention too: remove"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "expected rope_theta to be a positive number, got '1e6'"),
    ],
)
def test_what_is_not_computed_is_refused_with_words(keys, message):
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        parse_config({**BASE, "model_type": "llama", **keys}, "some/config.json")
    assert str(refusal.value).startswith("some/config.json")


@pytest.mark.parametrize("name", SCALED_NAMES)
def test_an_export_keeps_the_scaling(checkpoint, name, tmp_path):
    """Both the file as it came and one written for changed sizes; transformers reads the same numbers from it."""
    ids = np.random.default_rng(0).integers(0, 97, (1, 100)).astype(np.int32)
    model, params = load_model(checkpoint(name))
    save_model(tmp_path / name, model, params)
    written, original = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / name, checkpoint(name))
    )
    assert written["rope_parameters"] == original["rope_parameters"]
    theirs = oracle_logits(oracle_model(tmp_path / name), ids, np.ones_like(ids))
    assert np.abs(np.asarray(model.logits(params, ids)) - theirs).max() <= 1e-4
    assert CONFIGS[name].rope_parameters == AutoConfig.from_pretrained(tmp_path / name).rope_parameters


@pytest.mark.parametrize("keys", [{"rope_scaling": YARN}, {"rope_parameters": {**LLAMA31, "rope_theta": 5e5}}])
@pytest.mark.parametrize("scaling", [Yarn(3.0, 512, 1.25, 20.0, 2.0, False), Llama3(2.0, 1.0, 3.0, 256), None])
def test_a_changed_scaling_is_written_under_the_files_own_key(keys, scaling, tmp_path):
    source = parse_config({**BASE, "model_type": "llama", "max_position_embeddings": 1536, **keys}, "x")
    changed = replace(source, rope_scaling=scaling, rope_theta=2e5)
    written = changed.to_json("float32")
    assert ("rope_parameters" in written) == ("rope_parameters" in keys)
    assert parse_config(written, "x") == changed
    (tmp_path / "config.json").write_text(json.dumps(written))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters["rope_theta"] == 2e5
    if scaling is not None:
        expected, factor = ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]](theirs)
        radians, ours = frequencies(128, 2e5, scaling)
        np.testing.assert_allclose(radians, expected, rtol=1e-6)
        assert ours == factor


def test_known_models_are_stretched():
    llama = known_config("meta-llama/Llama-3.2-1B-Instruct")
    assert llama.rope_scaling == Llama3(32.0, 1.0, 4.0, 8192) and llama.rope_theta == 5e5
