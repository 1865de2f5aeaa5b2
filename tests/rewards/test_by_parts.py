"""Log-probs under weights on the host: those of the weights on the device, with little on the device at a time."""

import jax
import numpy as np
import pytest

from rlt_jax.device.placement import nbytes, pinned_host
from rlt_jax.models import ModelConfig, build_model
from rlt_jax.models.base import random_params
from rlt_jax.rewards import by_parts
from rlt_jax.rewards.by_parts import sequence_logprobs_by_parts
from rlt_jax.rewards.logprobs import row_logprobs

IDS = np.random.default_rng(0).integers(0, 97, 45).astype(np.int32)
SHAPES = {
    "untied": ModelConfig("qwen2", 97, 64, 96, 5, 4, 2, 16),
    "tied": ModelConfig("qwen3", 97, 48, 80, 4, 4, 2, 32, tie_word_embeddings=True),
}


def expected(model, params, temperature=0.7):
    return row_logprobs(model, params, [IDS], temperature=temperature, tokens=1, chunk=16)[0]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_log_probs_are_those_of_the_weights_on_the_device(name, layers):
    model = build_model(SHAPES[name])
    params = random_params(SHAPES[name], 1, np.float32)
    host = jax.device_put(params, pinned_host())
    size = nbytes(params["layers"]) // SHAPES[name].num_hidden_layers
    for temperature in (0.7, 1.0):
        logps = sequence_logprobs_by_parts(
            model, host, IDS, temperature=temperature, chunk=16, part_bytes=layers * size
        )
        assert logps.shape == IDS.shape and logps.dtype == np.float32 and logps[0] == 0
        np.testing.assert_allclose(logps, expected(model, params, temperature), atol=1e-5)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(host))


def test_other_weights_have_other_log_probs():
    """The last layer's alone: every part counts."""
    model = build_model(SHAPES["untied"])
    params = random_params(SHAPES["untied"], 1, np.float32)
    params["layers"] = jax.tree.map(lambda leaf: leaf.at[-1].mul(1.5), params["layers"])
    host = jax.device_put(params, pinned_host())
    logps = sequence_logprobs_by_parts(model, host, IDS, temperature=0.7, chunk=16, part_bytes=1)
    np.testing.assert_allclose(logps, expected(model, params), atol=1e-5)
    assert np.abs(logps - expected(model, random_params(SHAPES["untied"], 1, np.float32))).max() > 1e-3


def test_weights_on_the_device_are_read_there(monkeypatch):
    model, params = build_model(SHAPES["tied"]), random_params(SHAPES["tied"], 1, np.float32)
    monkeypatch.setattr(by_parts, "on_device", None)
    logps = sequence_logprobs_by_parts(model, params, IDS, temperature=0.7, chunk=16)
    np.testing.assert_array_equal(logps, expected(model, params))


def test_little_is_on_the_device_at_a_time():
    """What is alive at the end of each part: its layers, and no array of all."""
    config = SHAPES["untied"]
    model = build_model(config)
    host = jax.device_put(random_params(config, 1, np.float32), pinned_host())
    jax.block_until_ready(host)
    largest, seen = max(leaf.nbytes for leaf in jax.tree.leaves(host)), []
    real = by_parts._pass

    def watched(model, layers, x, context):
        alive = (leaf for leaf in jax.live_arrays() if leaf.sharding.memory_kind != "pinned_host")
        seen.append(sum(leaf.nbytes for leaf in alive) - nbytes(layers))
        return real(model, layers, x, context)

    before = sum(leaf.nbytes for leaf in jax.live_arrays() if leaf.sharding.memory_kind != "pinned_host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_parts, "_pass", watched)
        sequence_logprobs_by_parts(model, host, IDS, temperature=0.7, chunk=16, part_bytes=1)
    assert len(seen) == config.num_hidden_layers
    assert max(seen) - before < largest
