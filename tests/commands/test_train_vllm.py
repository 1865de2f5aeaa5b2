"""`python -m rlt_jax.train --sampler.kind vllm` with the real engine, which is killed in the middle of the run."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.commands.stopping import stop_when

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: see `make vllm`"),
]

STEPS = 4


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """A finished run of 4 steps whose engine was killed after the first, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = [*small, "--max-steps", STEPS, "--eval-steps", STEPS, "--output-dir", folder, "--log.no-progress"]
    flags += ["--sampler.kind", "vllm", "--loss.importance-correction", "token", "--log.sample-probability", 1]
    line = [sys.executable, "-u", "-m", "rlt_jax.train", *map(str, flags)]
    printed = []
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for text in process.stdout:
            printed.append(text)
            if text.strip().startswith("step 1/"):
                (engine,) = (p for p in psutil.Process(process.pid).children() if "rlt_engine.py" in p.cmdline()[1])
                os.kill(engine.pid, signal.SIGKILL)
    assert process.returncode == 0, "".join(printed)[-3000:]
    return folder, "".join(printed)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_run_resumes(run):
    folder, printed = run
    steps = [record for record in lines(folder / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert steps[-1]["engine_restarts"] == 1
    assert "restarting the engine (failure 1 of 3)" in printed
    assert (folder / "final" / "model.safetensors").exists()


def test_every_completion_is_there_once_and_drawn_by_the_weights_of_its_step(run):
    folder, _ = run
    records = lines(folder / "completions.jsonl")
    by_step = {step: [r for r in records if r["step"] == step] for step in range(1, STEPS + 1)}
    assert [len(found) for found in by_step.values()] == [8] * STEPS
    for step, found in by_step.items():
        assert {record["weight_version"] for record in found} == {step - 1}


def test_engine_and_trainer_agree_on_every_token(run):
    folder, _ = run
    for record in lines(folder / "metrics.jsonl"):
        if "loss" in record:
            assert record["sync_logp_diff_max"] < 1e-4
            assert record["sampler_logp_diff_max"] < 1e-4
            assert record["importance_ratio"] == pytest.approx(1.0, abs=1e-4)
            assert record["importance_capped"] == 0.0


def test_the_engine_is_gone_when_the_run_is(run):
    folder, _ = run
    assert (folder / "logs" / "vllm.log").stat().st_size > 0
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())
    ]
    assert left == []


def test_log_probs_after_vllms_filters_are_not_compared(run, small, command, tmp_path):
    flags = [*small, "--max-steps", 1, "--output-dir", tmp_path / "run", "--sampler.kind", "vllm"]
    command("train", *flags, "--sampler.min-p", 0.3)
    (record,) = (record for record in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in record)
    compared = {
        *("sampler_logp_diff", "sampler_logp_diff_max"),
        *("importance_ratio", "importance_ratio_max", "importance_capped"),
    }
    before = next(record for record in lines(run[0] / "metrics.jsonl") if "loss" in record)
    assert before.keys() - record.keys() == compared
    assert all(math.isfinite(value) for value in record.values())


def test_a_stop_leaves_no_engine(small, tmp_path):
    """While it starts, and while it draws. `stop_when` waits for every process that the run had started."""
    folder = tmp_path / "run"
    flags = [*small, "--max-steps", 500, "--max-completion-length", 200, "--output-dir", folder]
    flags += ["--sampler.kind", "vllm", "--log.no-progress"]
    log = folder / "logs" / "vllm.log"
    starting = stop_when(lambda: log.exists() and log.stat().st_size > 0, "train", *flags)
    assert "before the run began; start it again with" in starting.check(signal.SIGTERM)
    drawing = stop_when("step   1/500  reward", "train", *flags, number=signal.SIGINT, delay=0.05)
    message = drawing.check(signal.SIGINT)
    (saved,) = (folder / "checkpoints").iterdir()
    assert f"step {saved.name} is saved; resume with" in message and drawing.seconds < 30


def test_a_policy_on_the_host_is_sent_verified_and_trained_alike(run, small, command, tmp_path):
    """Pushed from the host to the real engine; the first step's completions are those of the run above."""
    flags = [*small, "--max-steps", 2, "--sampler.kind", "vllm", "--log.sample-probability", 1]
    command("train", *flags, "--memory.policy", "host", "--output-dir", tmp_path / "run")
    ours = [record for record in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert len(ours) == 2 and all(record["sync_logp_diff_max"] < 1e-4 for record in ours)
    assert all(record["sampler_logp_diff_max"] < 1e-4 for record in ours)
    theirs = next(record for record in lines(run[0] / "metrics.jsonl") if "loss" in record)
    assert ours[0]["reward"] == pytest.approx(theirs["reward"], rel=1e-5)
    texts = [
        sorted(record["explanation"] for record in lines(folder / "completions.jsonl") if record["step"] == 1)
        for folder in (tmp_path / "run", run[0])
    ]
    assert texts[0] == texts[1]
