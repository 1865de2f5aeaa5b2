"""Presets: every value of the run table, and what a configuration is."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import rlt_jax
from rlt_jax.configs import PRESETS, LossConfig, PresetName, check_config
from rlt_jax.configs.presets import SUMMARIES
from rlt_jax.configs.reward import RewardConfig
from rlt_jax.losses.component_names import REDUCTIONS
from rlt_jax.types import Normalization

# (train batch, micro-batch, generations, prompt, completion, vLLM share, aggregation, budget GB, planned GB)
TABLE = {
    "mono_basic": (32, 3, 8, 2048, 2048, 0.7, 3, 40.0, None),
    "mono85": (96, 3, 24, 6144, 6144, 0.55, 3, 85.0, 77.0),
    "mono85_fallback": (64, 2, 16, 4096, 6144, 0.5, 3, 85.0, None),
    "mono96": (128, 4, 32, 8192, 8192, 0.6, 4, 96.0, 89.0),
    "paper": (1024, 1, 64, 16384, 16384, 0.55, 256, 640.0, None),
}


@pytest.mark.parametrize("name", TABLE)
def test_values_of_the_run_table(name):
    c = PRESETS[name]
    assert TABLE[name] == (
        c.train_batch_size,
        c.per_device_train_batch_size,
        c.num_generations,
        c.max_prompt_length,
        c.max_completion_length,
        c.vllm_gpu_memory_utilization,
        c.generation_aggregation_steps,
        c.budget_gb,
        c.planned_gb,
    )


@pytest.mark.parametrize("name", TABLE)
def test_values_that_the_7b_presets_share(name):
    c = PRESETS[name]
    assert (c.teacher, c.student, c.reference) == ("Qwen/Qwen2.5-7B-Instruct", "bespokelabs/Bespoke-Stratos-7B", None)
    assert c.data.path == "bespokelabs/Bespoke-Stratos-17k"
    assert (c.temperature, c.sampler.top_p, c.sampler.top_k, c.sampler.min_p) == (0.7, 1.0, 0, 0.0)
    assert (c.learning_rate, c.loss.beta, c.dtype) == (1e-6, 0.04, "auto")
    assert (c.max_steps, c.save_steps) == (125, 25)


def test_presets_for_one_gpu_share_it_with_vllm_and_the_host():
    for name in ("mono_basic", "mono85", "mono85_fallback", "mono96"):
        memory = PRESETS[name].memory
        assert PRESETS[name].sampler.kind == "vllm"
        assert (memory.optimizer, memory.frozen) == ("host", "host")
        assert memory.policy == ("host" if name == "mono_basic" else "device")
        assert (memory.moments, memory.gradients) == ("float32", "bfloat16" if name == "mono_basic" else "float32")
    assert PRESETS["tiny"].sampler.kind == PRESETS["paper"].sampler.kind == "native"


@pytest.mark.parametrize("name", PRESETS)
def test_values_that_all_presets_share(name):
    c = PRESETS[name]
    o, r = c.optimizer, c.reward
    assert (o.adam_beta1, o.adam_beta2, o.adam_epsilon, o.weight_decay, o.max_grad_norm) == (0.9, 0.999, 1e-8, 0.0, 1.0)
    assert (o.lr_scheduler, o.warmup_ratio) == ("constant", 0.0)
    assert (c.ref.sync_ref_model, c.ref.ref_model_mixup_alpha, c.ref.ref_model_sync_steps) == (True, 0.9, 32)
    assert (r.answer_log_prob_coeff, r.reduction_log_prob) == ((1.0, 0.01), ("mean", "min"))
    assert (r.kl_penalty_reward_coeff, r.reduction_kl) == ((3.0, 0.03), ("mean", "max"))
    assert (r.unbias_student_log_probs_temp, r.unbias_teacher_log_probs, r.not_matched_penalty) == (0.7, True, -1.0)
    assert (r.use_schulman_kl_estimation, r.include_teacher_think_entropy) == (False, True)
    assert not c.data.truncate_prompts


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_consistent_and_know_their_name(name):
    check_config(PRESETS[name])
    assert PRESETS[name].preset == name
    assert PRESETS[name].output_dir == f"runs/{name}"


def test_one_preset_and_one_summary_per_name():
    assert tuple(PRESETS) == tuple(SUMMARIES) == get_args(PresetName)


def test_tiny_uses_what_the_package_ships():
    assets = Path(rlt_jax.__file__).parent / "assets" / "tiny"
    tiny = PRESETS["tiny"]
    assert (tiny.teacher, tiny.student) == (str(assets / "teacher"), str(assets / "student"))
    assert (tiny.data.path, tiny.data.eval_path) == (str(assets / "train.jsonl"), str(assets / "eval.jsonl"))
    assert tiny.dtype == "float32"


def test_derived_values():
    config = PRESETS["mono85"]
    assert config.questions_per_draw == 4
    assert config.reference_model == config.teacher
    assert replace(config, reference="folder").reference_model == "folder"


def test_configurations_are_frozen_and_hashable():
    config = PRESETS["tiny"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_steps = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.loss.beta = 0.0
    assert hash(LossConfig(beta=0.1)) == hash(LossConfig(beta=0.1))
    assert len({hash(c) for c in PRESETS.values()}) == len(PRESETS)


def test_choices_are_those_of_the_losses():
    types = get_type_hints(RewardConfig)
    for term in ("log_prob", "kl"):
        assert get_args(get_args(types[f"reduction_{term}"])[0]) == REDUCTIONS
        assert types[f"normalize_{term}"] == Normalization | None
