"""Settings that follow the machine, for the commands that record them."""

from dataclasses import replace

import pytest

from rlt_jax.configs import PRESETS, DataConfig, EvaluateConfig, GenerateConfig, QuestionsConfig, RowsConfig, SftConfig
from rlt_jax.models.config import known_config
from rlt_jax.planner.run_plan import run_shape
from rlt_jax.runs import machine
from rlt_jax.runs.machine import on_this_machine
from rlt_jax.sampling.factory import train_settings

CONFIGS = [
    PRESETS["mono_basic"],
    SftConfig(model="m", output_dir="o", data=DataConfig(path="p")),
    GenerateConfig(teacher="m", out="o", data=RowsConfig(path="p")),
    EvaluateConfig(model="m", out="o", data=QuestionsConfig(path="p")),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_each_command_computes_in_what_suits_the_device(monkeypatch, config, device, dtype):
    monkeypatch.setattr(machine, "computes_on", lambda: device)
    assert on_this_machine(config) == replace(config, dtype=dtype)
    for given in ("bfloat16", "float32"):
        assert on_this_machine(replace(config, dtype=given)).dtype == given


def test_samplers_are_told_the_decided_dtype(monkeypatch):
    monkeypatch.setattr(machine, "computes_on", lambda: "cpu")
    assert train_settings(on_this_machine(PRESETS["mono85"])).dtype == "float32"
    with pytest.raises(ValueError, match="dtype='auto'"):
        train_settings(PRESETS["mono85"])


def test_a_plan_is_for_a_gpu_wherever_it_is_made():
    qwen = known_config("Qwen/Qwen2.5-7B-Instruct")
    assert run_shape(PRESETS["mono85"], qwen, qwen).weight_bytes == 2
    assert run_shape(replace(PRESETS["mono85"], dtype="float32"), qwen, qwen).weight_bytes == 4
