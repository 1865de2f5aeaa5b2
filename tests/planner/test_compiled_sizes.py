"""Temporaries of compiled programs, here those of a CPU: that they follow the run's sizes."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from rlt_jax.configs import PRESETS, LossConfig, TrainConfig
from rlt_jax.models import ModelConfig, build_model
from rlt_jax.planner.compiled_sizes import compiled_temporaries, planned_layout
from rlt_jax.planner.ledger import make_ledger
from rlt_jax.planner.run_plan import model_shape, run_shape
from rlt_jax.planner.shapes import Pass
from rlt_jax.segments import limits_of, micro_batches

TEACHER = ModelConfig("qwen2", 64, 16, 512, 6, 1, 1, 16)
STUDENT = ModelConfig("qwen2", 64, 16, 128, 2, 1, 1, 16)
CONFIG = replace(
    PRESETS["tiny"],
    per_device_train_batch_size=2,
    score_batch_size=4,
    max_prompt_length=32,
    max_completion_length=32,
    loss=LossConfig(saved_mlp=2, saved_attention=0),
)


@cache
def sizes(config: TrainConfig = CONFIG) -> dict[str, float]:
    return compiled_temporaries(config, run_shape(config, TEACHER, STUDENT), TEACHER, STUDENT)


@pytest.mark.slow
def test_each_program_has_its_own_and_nothing_is_allocated():
    before = jax.live_arrays()  # held, so that none of other tests' is freed meanwhile
    found = compiled_temporaries(CONFIG, run_shape(CONFIG, TEACHER, STUDENT), TEACHER, STUDENT)
    assert set(map(id, jax.live_arrays())) == set(map(id, before))
    assert found.keys() == {"score teacher", "score student", "score reference", "update"}
    assert found["score teacher"] == found["score reference"] > 0  # one architecture
    assert found["score teacher"] != found["score student"]
    run = run_shape(CONFIG, TEACHER, STUDENT)
    tokens = run.update.tokens
    assert found["update"] >= 4 * tokens * (6 * 16 + 2 * 2 * 512)  # the layers' inputs and the saved activations


@pytest.mark.slow
def test_saved_layers_take_what_the_ledger_says():
    """From 2 to 4 of the 6 layers."""
    keeping = replace(CONFIG, loss=LossConfig(saved_mlp=4, saved_attention=0))
    entries = make_ledger(model_shape(TEACHER), run_shape(keeping, TEACHER, STUDENT)).phase("update").gpu
    (four,) = (entry.size for entry in entries if entry.owner == "saved MLP")
    assert sizes(keeping)["update"] - sizes()["update"] == pytest.approx(four / 2, rel=0.05)


@pytest.mark.slow
def test_longer_sequences_take_more():
    """Twice as long, but for the student's, which has 256 more in either case."""
    longer = sizes(replace(CONFIG, max_completion_length=96))
    assert longer["update"] > 1.8 * sizes()["update"] and longer["score teacher"] > 1.8 * sizes()["score teacher"]
    assert longer["score student"] > sizes()["score student"]


@pytest.mark.slow
def test_programs_of_flat_sequences():
    """Their layouts have the shapes of those that a step lays out for rows of the greatest length."""
    config = replace(CONFIG, dtype="bfloat16", update_tokens=1024, score_tokens=2048, max_prompt_length=512)
    run = run_shape(config, TEACHER, STUDENT)
    assert run.update == Pass("cudnn", 1, 1024) and run.score == Pass("cudnn", 1, 2048)
    found = compiled_temporaries(config, run, TEACHER, STUDENT)
    assert found["update"] >= 2 * 1024 * (6 * 16 + 2 * 2 * 512)
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 9, 512, np.int32)
    ids = [np.concatenate([prompt, rng.integers(0, 9, 32, np.int32)]) for _ in range(64)]
    limits = limits_of(64, 1024, 544, sum_bytes=4 * 16)
    batch = micro_batches(ids, tokens=1024, arrangement="flat", limits=limits)[0]
    planned = planned_layout(build_model(TEACHER), run, run.update, run.teacher_tokens)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch.layout([544] * 64))
    assert replace(shapes, longest=planned.longest, spans=planned.spans) == planned
    assert shapes.spans.shape[0] * shapes.longest == planned.spans.shape[0] * planned.longest  # what is summed
