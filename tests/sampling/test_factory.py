"""What the commands that sample share: seeds that follow from what is sampled, and files that show a model's state."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from rlt_jax.configs import SamplerConfig
from rlt_jax.models import ModelConfig, init_model, load_model, save_model
from rlt_jax.models.rope import Llama3, Yarn
from rlt_jax.sampling.factory import SamplerSettings, make_sampler, running_engine, sample_request, weight_files
from rlt_jax.types import SamplingParams
from tests.sampling.conftest import logprobs_of, needs_vllm, perturbed

IDS = np.arange(5, dtype=np.int32)


def test_a_seed_follows_from_seed_row_sample_and_draw_alone():
    request = sample_request(IDS, seed=42, row=7, samples=range(4))
    assert request.prompt_ids is IDS
    assert sample_request(IDS, seed=42, row=7, samples=[2]).seeds == (request.seeds[2],)


def test_seeds_differ():
    seeds = [
        seed
        for command in (0, 42)
        for row in range(50)
        for draw in range(3)
        for seed in sample_request(IDS, seed=command, row=row, samples=range(8), draw=draw).seeds
    ]
    assert len(set(seeds)) == len(seeds) == 2400
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeds_are_those_of_earlier_versions():
    """Or a resumed command would mix two series."""
    assert sample_request(IDS, seed=42, row=3, samples=[0, 1]).seeds == (2541583436, 2958905532)


def test_a_model_that_was_written_again_shows(golden, tmp_path):
    folder = shutil.copytree(golden / "teacher", tmp_path / "model")
    before = weight_files(str(folder))
    assert list(before) == ["model.safetensors"]
    assert weight_files(str(folder)) == before
    os.utime(folder / "model.safetensors", ns=(0, 1))
    assert weight_files(str(folder)) != before


def test_only_the_files_that_are_loaded_count(golden, tmp_path):
    """Beside them, an older save, another precision or an index that nobody reads may come and go."""
    folder = Path(shutil.copytree(golden / "teacher", tmp_path / "model"))
    single = folder / "model.safetensors"
    before = weight_files(str(folder))
    (folder / "model.fp16.safetensors").write_bytes(b"other")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "old.safetensors"}}))
    assert weight_files(str(folder)) == before

    model, params = load_model(folder)
    save_model(folder, model, params, max_shard_size=200_000)
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(shards) > 2 and list(weight_files(str(folder))) == shards
    sharded = weight_files(str(folder))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"left over")
    assert weight_files(str(folder)) == sharded
    os.utime(folder / shards[1], ns=(0, 1))
    assert weight_files(str(folder)) != sharded
    assert not single.exists()


LLAMA = ModelConfig("llama", 300, 64, 96, 2, 2, 1, 32, tie_word_embeddings=True, initializer_range=0.1)
SCALED = {  # from 64 positions to 256; vLLM takes max_position_embeddings for all that a YaRN model has
    "yarn": (64, Yarn(4.0, 64, 1.1386)),
    "llama3": (256, Llama3(4.0, 1.0, 4.0, 64)),
}


@pytest.mark.parametrize("scaling", [pytest.param(name, marks=needs_vllm) for name in SCALED])
def test_vllm_and_a_scaled_llama_agree_beyond_the_original_context(scaling, tmp_path):
    positions, rope = SCALED[scaling]
    config = ModelConfig(**{**vars(LLAMA), "max_position_embeddings": positions, "rope_scaling": rope})
    save_model(tmp_path / "llama", *init_model(config, 3))
    model, params = load_model(tmp_path / "llama")
    assert model.config == config and config.max_positions == 256
    settings = SamplerSettings(
        model=str(tmp_path / "llama"),
        sampler=SamplerConfig(kind="vllm"),
        dtype="float32",
        temperature=0.7,
        max_length=240,
        max_sequences=4,
        gpu_memory_utilization=0.5,
        logprob_chunk=64,
        seed=0,
    )
    prompt = np.random.default_rng(0).integers(0, 300, 150).astype(np.int32)
    weights = perturbed(params, 1)
    with running_engine(settings, log_file=tmp_path / "vllm.log") as engine:
        sampler = make_sampler(settings, engine, model, params, version=0, eos_ids=(299,), probe_ids=prompt)
        sampler.set_weights(weights, 1)
        request = sample_request(prompt, seed=0, row=0, samples=range(2))
        (drawn,) = sampler.generate([request], SamplingParams(max_tokens=90, temperature=0.7))
        for completion in drawn:
            ids = np.concatenate([prompt, completion.token_ids])
            expected = logprobs_of(model, weights, ids, 0.7)[len(prompt) :]
            assert completion.weight_version == 1
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)
        assert max(len(completion.token_ids) for completion in drawn) > 40
