"""`python -m rlt_jax.train` with its state on the host, and with too little memory for a pass."""

import importlib
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax import train as train_command
from rlt_jax.configs import parse_train_args
from rlt_jax.device import jax_setup, monitor
from rlt_jax.device.gpu import Gpu
from rlt_jax.errors import UserError
from rlt_jax.planner.run_plan import at_batch_sizes, plan
from rlt_jax.rewards import scorer
from rlt_jax.rewards.rlt import RewardInputs, Rewards, rlt_reward
from rlt_jax.runs import open_rlt, setup
from rlt_jax.train import train
from rlt_jax.types import GB
from tests.commands.comparing import without_times
from tests.commands.test_train import assert_same_run, checkpoint, training_lines

pytestmark = pytest.mark.slow

ON_HOST = ("--memory.optimizer", "host", "--memory.frozen", "host")


@pytest.fixture(scope="module")
def flags(small) -> tuple:
    return (*small, "--max-prompt-length", "96", "--eval-steps", "2", "--ref.ref-model-sync-steps", "2")


def run(folder: Path, *flags: object) -> Path:
    config, _ = parse_train_args([*map(str, flags), "--output-dir", str(folder)])
    return train(config)


def test_where_the_state_lies_changes_no_bit(flags, tmp_path):
    """Metrics and weights after 4 steps, with two moves of the reference and three evaluations."""
    gpu = run(tmp_path / "device", *flags, "--max-steps", 4)
    host = run(tmp_path / "host", *flags, "--max-steps", 4, *ON_HOST)
    ours, theirs = training_lines(host), training_lines(gpu)
    assert len(ours) == 4 and without_times(ours) == without_times(theirs)
    files = [folder / "final" / "model.safetensors" for folder in (host, gpu)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_on_the_host_resumes_bit_for_bit(flags, tmp_path):
    line = (*flags, *ON_HOST, "--dtype", "bfloat16", "--memory.moments", "bfloat16", "--save-steps", 2)
    whole = run(tmp_path / "whole", *line, "--max-steps", 4)
    run(tmp_path / "halves", *line, "--max-steps", 2)
    assert_same_run(run(tmp_path / "halves", *line, "--max-steps", 4), whole, 4)
    dtypes = {array.dtype.name for array in checkpoint(whole, 4)}
    assert dtypes == {"bfloat16", "uint16", "int32"}  # weights, reference and moments; low halves; count


def test_rounded_gradient_sums_train_almost_alike(flags, tmp_path):
    exact = training_lines(run(tmp_path / "exact", *flags, "--max-steps", 2))
    rounded = training_lines(run(tmp_path / "rounded", *flags, "--max-steps", 2, "--memory.gradients", "bfloat16"))
    assert rounded[0]["reward"] == exact[0]["reward"]
    assert rounded[0]["grad_norm"] == pytest.approx(exact[0]["grad_norm"], rel=1e-2)
    assert rounded[0]["grad_norm"] != exact[0]["grad_norm"]


def test_a_run_without_a_last_checkpoint(flags, tmp_path):
    folder = run(tmp_path, *flags, "--max-steps", 2, "--save-steps", 0, "--checkpoint.no-at-end")
    assert not list((folder / "checkpoints").iterdir()) and (folder / "final").is_dir()


class TooSmall:
    """A reward that needs more memory than there is, as long as scoring takes more than `most` sequences at a time."""

    def __init__(self, most: int, config):
        self.most, self.asked, self.reward = most, [], rlt_reward(config.reward)

    def __call__(self, inputs: RewardInputs) -> Rewards:
        self.asked.append(len(inputs.rows))
        if len(self.asked) <= self.most:
            jax.block_until_ready(jnp.zeros(2**60, jnp.uint8))
        return self.reward(inputs)


def test_scoring_that_runs_out_of_memory_continues_with_fewer_sequences(flags, tmp_path):
    config, _ = parse_train_args(
        [*map(str, flags), "--max-steps", "1", "--eval-steps", "0", "--output-dir", str(tmp_path)]
    )
    reward = TooSmall(2, config)
    train(config, reward_fn=reward)
    assert reward.asked == [8, 8, 8]  # the same completions each time: no group is split
    log = (tmp_path / "logs" / "training.log").read_text()
    assert "score: out of memory" in log and "score 896 -> 448 tokens" in log and "score 448 -> 224 tokens" in log
    assert json.loads((tmp_path / "backoff.json").read_text()) == {
        "generate": 64,
        "score": 224,
        "update": 448,
        "save_activations": True,
    }


def test_the_update_with_fewer_sequences_is_the_same_update(flags, tmp_path):
    """Batch sizes found in the run folder: one row at a time, nothing saved; rounding alone differs.

    AdamW's first step is the gradient's sign, which rounding turns where there is none; not so with a large epsilon.
    """
    line = [*map(str, flags), "--max-steps", "2", "--eval-steps", "0", "--optimizer.adam-epsilon", "1e-3"]
    usual = training_lines(run(tmp_path / "usual", *line))
    small = tmp_path / "small"
    small.mkdir()
    (small / "backoff.json").write_text(json.dumps({"generate": 2, "score": 1, "update": 1, "save_activations": False}))
    backoff = training_lines(run(small, *line))
    for ours, theirs in zip(backoff, usual, strict=True):
        for name in ("reward", "grad_norm", "kl", "entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)


def test_too_little_memory_for_anything_ends_with_plan_and_advice(flags, tmp_path, main, monkeypatch, capsys):
    line = [*map(str, flags), "--max-steps", "1", "--eval-steps", "0", "--output-dir", str(tmp_path)]
    config, _ = parse_train_args(line)
    monkeypatch.setattr(scorer, "rlt_reward", lambda _: TooSmall(100, config))
    with pytest.raises(SystemExit) as end:
        main(train_command, *line)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in error
    assert "the GPU's memory is too small: score does not fit even with one sequence at a time" in error
    assert "on the GPU, GB" in error and "--preset mono85_fallback" in error


# before JAX starts


def test_an_environment_that_asks_for_another_allocator_is_refused(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_ALLOCATOR", "bfc")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with pytest.raises(UserError) as refusal:
        jax_setup.share_gpu_memory()
    assert str(refusal.value) == (
        "XLA_PYTHON_CLIENT_ALLOCATOR=bfc in the environment: this run needs XLA_PYTHON_CLIENT_ALLOCATOR=platform: "
        "unset it or set that"
    )


def test_jax_that_started_otherwise_is_refused(monkeypatch):
    jax.devices()
    for name in ("XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"JAX has started without XLA_PYTHON_CLIENT_PREALLOCATE=false.*set it in the"):
        jax_setup.share_gpu_memory()


def test_an_environment_that_says_the_same_is_fine(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "False")
    monkeypatch.setenv("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", "200")
    jax_setup.share_gpu_memory()
    jax_setup.limit_pinned_memory(100 * 2**30)
    monkeypatch.setenv("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", "64")
    with pytest.raises(UserError, match=r"LIMIT_GB=64 in the environment: this run needs .*LIMIT_GB=105"):
        jax_setup.limit_pinned_memory(100 * 2**30)


def test_a_run_alone_on_its_gpu_takes_memory_as_it_needs_it(monkeypatch):
    monkeypatch.setattr(jax_setup, "gpu_memory_reader", lambda: lambda: 1.0)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")  # so that what is set here is undone
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    jax_setup.prepare_memory(shared=False, pinned_bytes=0)
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")  # who asks for JAX's pool gets it
    jax_setup.prepare_memory(shared=False, pinned_bytes=0)
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"


class Reached(Exception):
    """A command came so far."""


@pytest.mark.parametrize("command", ["score", "sft"])
def test_other_commands_prepare_the_gpu_before_they_load_a_model(command, main, monkeypatch, tmp_path, golden):
    module = importlib.import_module(f"rlt_jax.{command}")

    def reached(*, shared: bool, pinned_bytes: int):
        raise Reached(shared, pinned_bytes)

    loading = importlib.import_module("rlt_jax.runs.sft") if command == "sft" else module
    monkeypatch.setattr(loading, "prepare_memory", reached)
    rows = tmp_path / "rows.jsonl"
    row = {"question": "1 + 1?", "solution": "2", "reasoning_trace": "1 and 1 are 2.", "explanation": "1 and 1 are 2."}
    rows.write_text(json.dumps(row) + "\n")
    teacher = str(golden / "teacher")
    flags = {
        "score": ["--teacher", teacher, "--student", teacher, "--data", rows, "--out", tmp_path / "scores.jsonl"],
        "sft": [
            *("--target", "teacher", "--model", teacher, "--data.path", rows, "--memory.optimizer", "host"),
            *("--train-batch-size", 1, "--per-device-train-batch-size", 1, "--output-dir", tmp_path / "run"),
        ],
    }[command]
    with pytest.raises(Reached) as reached_with:
        main(module, *flags)
    shared, pinned = reached_with.value.args
    assert not shared and (pinned > 0) == (command == "sft")


def test_plan_and_measured_are_of_the_sizes_that_fitted(flags, tmp_path, monkeypatch):
    """As on a machine with a GPU of 80 GB, whose driver reads 1 GB, after an update that had to be lowered."""
    monkeypatch.setattr(monitor, "gpu_memory_reader", lambda: lambda: 1.0)
    gpu = Gpu("H100", 1, total_bytes=80_000_000_000, used_bytes=0, driver="580", cuda=(13, 0), capability=(9, 0))
    monkeypatch.setattr(open_rlt, "read_gpu", lambda: gpu)
    asked = []
    monkeypatch.setattr(open_rlt, "plan", lambda config, **gpu: asked.append(gpu) or plan(config, **gpu))
    (tmp_path / "backoff.json").write_text(
        json.dumps({"generate": 64, "score": 8, "update": 1, "save_activations": False})
    )
    line = [*map(str, flags), "--max-steps", "1", "--eval-steps", "0", "--output-dir", str(tmp_path)]
    config, _ = parse_train_args(line)
    train(config)
    (given,) = asked
    assert (given["gpu_bytes"], given["capability"]) == (80_000_000_000, (9, 0))
    whole = plan(config)
    lowered = at_batch_sizes(whole, generate=64, score=8, update=1, save_activations=False)
    (found,) = re.findall(
        r"update 1\.0 \(\d+\.\d planned, ([+-][\d.]+)%", (tmp_path / "logs" / "training.log").read_text()
    )
    assert float(found) == pytest.approx(100 * (GB / lowered.step_peaks()["update"] - 1), abs=0.06)
    assert lowered.step_peaks()["update"] < whole.step_peaks()["update"]


def test_without_a_gpu_nothing_is_set(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_ALLOCATOR", "bfc")
    monkeypatch.setattr(jax_setup, "gpu_memory_reader", lambda: None)
    jax_setup.prepare_memory(shared=True, pinned_bytes=10**9)


def test_the_plan_of_a_run_with_a_budget_is_logged(flags, tmp_path, monkeypatch):
    """As on a machine with a GPU, whose driver reads 1 GB; the budget is too small for the plan."""
    for module in (jax_setup, setup):
        monkeypatch.setattr(module, "gpu_memory_reader", lambda: lambda: 1.0)
    line = [*flags, "--max-steps", 1, "--eval-steps", 0, "--budget-gb", 1, "--host-gb", 64]
    folder = run(tmp_path, *line)
    log = (folder / "logs" / "training.log").read_text()
    assert "phase              GPU    host  on the GPU, GB" in log
    assert "WARNING rlt_jax: GPU: " in log and "`python -m rlt_jax.plan` says what to lower" in log
    assert np.isfinite(training_lines(folder)[0]["reward"])
