"""Each check of the machine: well, missing, wrong, with what to do."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from rlt_jax.configs import PRESETS, CheckpointConfig, SamplerConfig, TrainConfig
from rlt_jax.device.gpu import Gpu
from rlt_jax.planner.preflight import Check, preflight
from rlt_jax.planner.run_plan import plan
from rlt_jax.types import GB

TINY, MONO85 = PRESETS["tiny"], PRESETS["mono85"]
H100 = Gpu("NVIDIA H100 80GB HBM3", 1, 85_520_809_984, 500_000_000, "580.95", (13, 0), (9, 0))
TEACHER = Path(TINY.teacher)


def checks(config: TrainConfig = TINY, gpu: Gpu | None = None, host_gb: float | None = None) -> dict[str, Check]:
    found = preflight(config, plan(config), gpu=gpu, host_bytes=None if host_gb is None else host_gb * GB)
    assert len({check.name for check in found}) == len(found)
    for check in found:
        assert (check.advice == "") == (check.status == "ok"), check
        assert check.found and "\n" not in check.found
    return {check.name: check for check in found}


def failed(config: TrainConfig, gpu: Gpu | None = None) -> set[str]:
    return {name for name, check in checks(config, gpu).items() if check.status == "problem"}


def test_the_shipped_run_needs_nothing_but_a_gpu(tmp_path):
    found = checks(replace(TINY, output_dir=str(tmp_path / "run")))
    assert {name: check.status for name, check in found.items()} == {
        "GPU": "warning",
        "host memory": "ok",
        "disk for checkpoints": "ok",
        "packages": "ok",
        "teacher": "ok",
        "student": "ok",
    }
    assert not (tmp_path / "run").exists()  # nothing is written
    assert found["GPU"].advice.startswith("expected one GPU, so the plan is by formula")
    assert "tensors of 0.00 GB" in found["teacher"].found


@pytest.fixture
def small_machine(monkeypatch) -> None:
    """16 GB of memory, 8 of them free, and 10 GB of disk."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * 10**9, available=8 * 10**9))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 * 10**9))


def test_what_is_not_there_yet_is_a_warning(small_machine):
    """Models of the hub, which the tests do not reach, on a machine that is too small and has no GPU."""
    found = checks(MONO85)
    assert {check.status for check in found.values()} <= {"ok", "warning"}
    for name in ("GPU", "teacher", "student", "host memory", "disk for checkpoints"):
        assert found[name].status == "warning", name
    assert found["teacher"].found == "Qwen/Qwen2.5-7B-Instruct: not downloaded"
    assert "3 checkpoints of 106.6 GB and the exported 15.2 GB" in found["disk for checkpoints"].advice
    assert found["disk for downloads"].advice.endswith("set HF_HOME to a folder on a larger disk")


def test_disk_for_downloads_names_what_is_missing():
    found = checks(replace(MONO85, teacher=str(TEACHER), student="Qwen/Qwen2.5-32B-Instruct"))["disk for downloads"]
    assert "Qwen/Qwen2.5-32B-Instruct of 65.5 GB" in found.found + found.advice
    assert str(TEACHER) not in found.found + found.advice


def test_disk_that_is_too_small():
    config = replace(MONO85, checkpoint=CheckpointConfig(keep=10_000, export=False))
    check = checks(config, H100)["disk for checkpoints"]
    assert (check.status, check.concerns_plan) == ("problem", False)
    assert check.advice.startswith("expected 1066292.9 GB for 10001 checkpoints of 106.6 GB: free space, lower")


def test_a_good_gpu():
    found = checks(MONO85, H100, host_gb=1000)
    assert found["GPU"] == Check("GPU", "ok", "NVIDIA H100 80GB HBM3, 85.52 GB, driver 580.95, CUDA 13.0")
    assert found["GPU memory"] == Check("GPU memory", "ok", "85.02 GB free of 85.52")


@pytest.mark.parametrize(
    ("gpu", "name", "status", "advice"),
    [
        (replace(H100, cuda=(11, 8)), "GPU", "problem", "expected a driver for CUDA 12 or newer: update it"),
        (replace(H100, count=8), "GPU", "warning", "choose it with CUDA_VISIBLE_DEVICES"),
        (
            replace(H100, used_bytes=30 * 10**9),
            "GPU memory",
            "problem",
            "expected 76.33 GB: stop other programs on the GPU",
        ),
        (replace(H100, total_bytes=48 * 10**9), "GPU memory", "problem", "expected 76.33 GB: take a larger GPU"),
    ],
)
def test_gpus_that_will_not_do(gpu, name, status, advice):
    check = checks(MONO85, gpu, host_gb=1000)[name]
    assert check.status == status and advice in check.advice
    assert check.concerns_plan == (status == "problem")


def test_a_gpu_that_is_smaller_than_the_plan_but_not_than_the_need():
    check = checks(replace(MONO85, planned_gb=None), replace(H100, total_bytes=80 * 10**9))["GPU memory"]
    assert check.status == "warning" and "the planned 85 GB" in check.advice


def test_host_memory_that_is_too_small(small_machine):
    check = checks(MONO85, H100)["host memory"]
    assert (check.status, check.concerns_plan) == ("problem", True)
    assert check.found == "8.0 GB free of 16.0"
    assert check.advice.startswith("expected 127.7 GB: lower what the plan suggests")
    assert checks(MONO85, H100, host_gb=100)["host memory"].found == "8.0 GB free of 16.0, 100 may be used"


def test_host_memory_that_others_use(small_machine):
    """It may be free by the time of the run."""
    check = checks(MONO85, H100, host_gb=1000)["host memory"]
    assert check.status == "warning" and "stop other programs" in check.advice


def test_a_budget_of_several_gpus():
    check = checks(PRESETS["paper"])["budget"]
    assert check.status == "problem" and check.found == "640 GB" and check.concerns_plan


def test_vllm_of_another_interpreter(tmp_path):
    sampler = SamplerConfig(kind="vllm", python=sys.executable)
    assert checks(replace(TINY, sampler=sampler))["vLLM"].found.endswith(sys.executable)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')  # without site-packages
    bare.chmod(0o755)
    check = checks(replace(TINY, sampler=replace(sampler, python=str(bare))))["vLLM"]
    assert (check.status, check.found) == ("warning", f"none in {bare}")
    assert "--sampler.python" in check.advice


def test_an_interpreter_that_is_none(tmp_path):
    sampler = SamplerConfig(kind="vllm", python=str(tmp_path / "python"))
    check = checks(replace(TINY, sampler=sampler))["vLLM"]
    assert check.status == "problem" and "correct --sampler.python" in check.advice


def changed_model(folder: Path, **files: str | None) -> Path:
    """The tiny teacher with files replaced, or taken away."""
    copy = shutil.copytree(TEACHER, folder / "model")
    for name, text in files.items():
        file = copy / name
        file.unlink()
        if text is not None:
            file.write_text(text)
    return copy


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"model.safetensors": None}, "expected weights in"),
        ({"model.safetensors": "rubbish"}, "expected a complete safetensors file, but it is damaged"),
        ({"tokenizer.json": None}, "expected tokenizer.json (or vocab.json and merges.txt)"),
        ({"chat_template.jinja": None}, "expected a tokenizer with a chat template, but this one has none"),
        (
            {"chat_template.jinja": "{{ messages[0].content }}"},
            "expected a chat template that writes the system prompt",
        ),
    ],
)
def test_models_that_are_damaged(tmp_path, files, advice):
    model = changed_model(tmp_path, **files)
    check = checks(replace(TINY, teacher=str(model)))["teacher"]
    assert (check.status, check.found, check.concerns_plan) == ("problem", str(model), True)
    assert advice in check.advice


def test_weights_of_another_model(tmp_path):
    values = json.loads((TEACHER / "config.json").read_text())
    model = changed_model(tmp_path, **{"config.json": json.dumps(values | {"num_hidden_layers": 4})})
    check = checks(replace(TINY, student=str(model)))["student"]
    assert check.status == "problem" and "model.layers.3." in check.advice


def test_weights_beside_those_that_are_loaded(tmp_path):
    model = changed_model(tmp_path)
    before = checks(replace(TINY, teacher=str(model)))["teacher"]
    (model / "model-00001-of-00002.safetensors").write_bytes(b"another save" * 10**6)
    check = checks(replace(TINY, teacher=str(model)))["teacher"]
    assert (before.status, check.status) == ("ok", "warning")
    assert check.found == before.found  # and so the size is that of what is loaded
    assert "loading model.safetensors, as transformers does, and ignoring model-00001-of-00002" in check.advice


def test_weights_of_a_type_that_cannot_be_trained(tmp_path):
    model = changed_model(tmp_path)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    save_file(tensors, model / "model.safetensors")
    check = checks(replace(TINY, teacher=str(model)))["teacher"]
    assert check.status == "problem" and "model.norm.weight of type I8: expected one of" in check.advice
    assert "\n" not in check.advice


def test_an_adapter_beside_a_model(tmp_path):
    model = changed_model(tmp_path)
    config = replace(TINY, student=str(model))
    planned = plan(config)
    (model / "adapter_config.json").write_text("{}")
    check = next(check for check in preflight(config, planned, gpu=None, host_bytes=None) if check.name == "student")
    assert check.status == "problem" and "found the adapter (LoRA) of adapter_config.json: merge it" in check.advice
