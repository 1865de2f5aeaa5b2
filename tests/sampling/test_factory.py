"""What the commands that sample share: seeds that follow from what is sampled, and files that show a model's state."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from rlt_jax.models import load_model, save_model
from rlt_jax.sampling.factory import sample_request, weight_files

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
