"""Temporaries of compiled programs, here those of a CPU: that they follow the run's sizes."""

from dataclasses import replace
from functools import cache

import jax
import pytest

from rlt_jax.configs import PRESETS, LossConfig, TrainConfig
from rlt_jax.models import ModelConfig
from rlt_jax.planner.compiled_sizes import compiled_temporaries
from rlt_jax.planner.ledger import make_ledger
from rlt_jax.planner.run_plan import model_shape, run_shape

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
    tokens = run.micro_batch * run.teacher_tokens
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
    """Twice as long, but for the student's, whose bucket is the same."""
    longer = sizes(replace(CONFIG, max_completion_length=96))
    assert longer["update"] > 1.8 * sizes()["update"] and longer["score teacher"] > 1.8 * sizes()["score teacher"]
    assert longer["score student"] == sizes()["score student"]
