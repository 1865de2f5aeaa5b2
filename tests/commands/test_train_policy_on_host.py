"""`python -m rlt_jax.train --memory.policy host`: the same run bit for bit, with the weights off the device meanwhile.

The engine is in this process, so that a test can look at the device while it is awake; a last test has a real one.
"""

import importlib
import importlib.util
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

from rlt_jax import stops
from rlt_jax.checkpoints import store
from rlt_jax.checkpoints.stored_arrays import write_arrays
from rlt_jax.configs import parse_train_args
from rlt_jax.models import build_model, read_config
from rlt_jax.models.tensor_names import name_table
from rlt_jax.rewards.logprobs import row_logprobs
from rlt_jax.rewards.rlt import RewardInputs, Rewards, rlt_reward
from rlt_jax.runs import open_rlt
from rlt_jax.sampling.engine import EngineCompletion
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.train import train
from rlt_jax.types import Request, SamplingParams
from tests.commands.test_train import assert_same_run, checkpoint, lines, training_lines

pytestmark = pytest.mark.slow

VLLM = ("--sampler.kind", "vllm", "--memory.frozen", "host")
POLICY = ("--memory.policy", "host")


class InProcess:
    """An engine that samples with the native sampler, and looks at the device when it is awake."""

    def __init__(self, model: str, watch):
        self.facts = {"version": "0", "device": "cpu", "block_size": 16, "kv_tokens": 0}
        self.model = build_model(read_config(Path(model)))
        self.watch = watch  # called with the name of each call
        self.awake = False

    def start(self):
        self.awake, self.weights = True, None

    def load(self, tensors):
        self.watch("load", self)
        stored = {t.name: np.array(t.leaf if t.index is None else t.leaf[t.index]) for t in tensors}
        self.weights = {}
        for leaf in name_table(self.model):
            *parents, last = leaf.path
            place = self.weights
            for key in parents:
                place = place.setdefault(key, {})
            arrays = [stored[name] for name in leaf.names]
            place[last] = np.stack(arrays) if leaf.stacked else arrays[0]

    def generate(self, jobs, sampling, on_completion, on_tokens):
        self.watch("generate", self)
        biased = np.array(list(sampling.get("logit_bias", {})), np.int32)
        known = np.setdiff1d(np.arange(self.model.config.vocab_size, dtype=np.int32), biased)
        eos = sampling["stop_token_ids"] or [10**6]
        sampler = NativeSampler(self.model, self.on_device(), eos_ids=eos, token_ids=known, segment=32)
        requests = [Request(job.prompt_ids, (job.seed,)) for job in jobs]
        drawn = sampler.generate(requests, SamplingParams(sampling["max_tokens"], sampling["temperature"]))
        for job, (one,) in zip(jobs, drawn, strict=True):
            on_completion(EngineCompletion(job.index, one.token_ids, one.logps, one.finished))
        on_tokens(sum(len(one.token_ids) for (one,) in drawn))

    def prompt_logprobs(self, prompt_ids):
        return row_logprobs(self.model, self.on_device(), [prompt_ids], temperature=1.0, tokens=1, chunk=64)[0][1:]

    def on_device(self):
        return jax.tree.map(jax.numpy.asarray, self.weights)

    def reset_prefix_cache(self): ...

    def sleep(self):
        self.awake, self.weights = False, None

    def wake_weights(self):
        self.awake = True

    def wake_cache(self):
        self.watch("wake_cache", self)

    def close(self): ...

    def log_tail(self, lines: int = 20):
        return ""


def starter(small, monkeypatch):
    """start(folder, *flags, watch=..., reward_fn=...): a run whose engine is `InProcess`."""

    def start(folder: Path, *flags: object, watch=lambda call, engine: None, reward_fn=None) -> Path:
        config, _ = parse_train_args(
            [*map(str, (*small, "--max-prompt-length", 96, *VLLM, *flags)), "--output-dir", str(folder)]
        )

        @contextmanager
        def engine(settings, *, log_file) -> Iterator[InProcess]:
            yield InProcess(settings.model, watch)

        monkeypatch.setattr(open_rlt, "running_engine", engine)
        return train(config, reward_fn=reward_fn)

    return start


@pytest.fixture
def run(small, monkeypatch):
    return starter(small, monkeypatch)


@pytest.fixture(autouse=True)
def of_others() -> Iterator[None]:
    """What earlier tests of this process keep is not the run's."""
    OTHERS[:] = policy_arrays()
    yield
    OTHERS.clear()


OTHERS: list[jax.Array] = []


def policy_arrays() -> list[jax.Array]:
    """Matrices of all the teacher's layers on the device: the policy's, where optimizer and reference are not there."""
    model = build_model(read_config(Path(parse_train_args([])[0].teacher)))
    shape = model.shapes("float32")["layers"]["mlp"]["gate_proj"]["weight"].shape
    alive = [x for x in jax.live_arrays() if x.shape == shape and x.sharding.memory_kind != "pinned_host"]
    return [x for x in alive if not any(x is other for other in OTHERS)]


@pytest.mark.parametrize("optimizer", ["device", "host"])
def test_where_the_policy_waits_changes_no_bit(run, tmp_path, optimizer):
    """Metrics, evaluations, checkpoints and weights after 4 steps, with two moves of the reference."""
    line = ("--memory.optimizer", optimizer, "--eval-steps", 2, "--ref.ref-model-sync-steps", 2, "--max-steps", 4)
    line += ("--save-steps", 1)  # each is written while the next step draws and scores
    there = run(tmp_path / "there", *line)
    here = run(tmp_path / "host", *line, *POLICY)
    assert len(training_lines(here)) == 4
    assert_same_run(here, there, 4)
    assert all(record["sync_logp_diff_max"] < 1e-4 for record in training_lines(here))


def test_the_device_has_none_of_its_arrays_while_the_engine_is_awake(run, tmp_path):
    seen = {}

    def watch(call, engine):
        seen.setdefault(call, []).append(len(policy_arrays()))

    line = ("--memory.optimizer", "host", "--eval-steps", 1)
    run(tmp_path / "host", *line, "--max-steps", 3, *POLICY, watch=watch)
    assert len(seen["generate"]) >= 3 and set(seen["generate"]) == set(seen["load"]) == set(seen["wake_cache"]) == {0}
    seen.clear()
    run(tmp_path / "device", *line, "--max-steps", 1, watch=watch)
    assert min(seen["generate"]) >= 1  # what the look finds where it is


def test_a_resumed_run_is_the_run(run, tmp_path):
    line = ("--dtype", "bfloat16", "--memory.optimizer", "host", "--save-steps", 2, *POLICY)
    whole = run(tmp_path / "whole", *line, "--max-steps", 4)
    run(tmp_path / "halves", *line, "--max-steps", 2)
    assert_same_run(run(tmp_path / "halves", *line, "--max-steps", 4), whole, 4)
    # and where it waits is no other run
    assert_same_run(run(tmp_path / "halves", *line[:-2], "--max-steps", 4), whole, 4)


def test_a_save_reads_what_was_to_be_saved_while_the_next_step_has_a_copy(run, tmp_path, monkeypatch):
    """One that begins to read when the next step has drawn and scores."""
    line = ("--max-steps", 3, "--save-steps", 1, "--checkpoint.keep", 9)
    plain = run(tmp_path / "plain", *line)
    scoring, calls, own = threading.Event(), [], rlt_reward(parse_train_args([])[0].reward)

    def reward(inputs: RewardInputs) -> Rewards:
        calls.append(1)
        if len(calls) == 2:
            assert len(policy_arrays()) > before[0]
            scoring.set()
        return own(inputs)

    def late(folder, arrays, facts, **options):
        assert scoring.wait(60)
        return write_arrays(folder, arrays, facts, **options)

    def watch(call, engine):
        before[:] = [len(policy_arrays())]

    before: list[int] = []
    monkeypatch.setattr(store, "write_arrays", late)
    slow = run(tmp_path / "slow", *line, *POLICY, watch=watch, reward_fn=reward)
    for step in (1, 2, 3):
        for ours, theirs in zip(checkpoint(slow, step), checkpoint(plain, step), strict=True):
            assert ours.tobytes() == theirs.tobytes()


def test_a_skipped_step_frees_its_copy_and_changes_nothing(run, tmp_path, monkeypatch):
    calls, own, seen = [], rlt_reward(parse_train_args([])[0].reward), []

    def reward(inputs: RewardInputs) -> Rewards:
        calls.append(1)
        rewards = own(inputs)
        return Rewards(np.full_like(rewards.reward, np.nan), {}) if len(calls) == 2 else rewards

    def watch(call, engine):
        seen.append(len(policy_arrays()))

    def skipping(folder, *flags, **options):
        calls.clear()
        line = ("--max-steps", 3, "--save-steps", 1, "--memory.optimizer", "host", *flags)
        return run(folder, *line, reward_fn=reward, **options)

    there = skipping(tmp_path / "there")
    here = skipping(tmp_path / "here", *POLICY, watch=watch)
    assert [record["skipped_steps"] for record in lines(here / "metrics.jsonl")] == [0, 1, 1]
    assert set(seen) == {0}
    files = [folder / "final" / "model.safetensors" for folder in (here, there)]
    assert files[0].read_bytes() == files[1].read_bytes()
    states = [sorted((folder / "skipped" / "state-1").rglob("manifest.json")) for folder in (here, there)]
    sums = [[array["checksum"] for array in json.loads(file.read_text())["arrays"]] for (file,) in states]
    assert sums[0] == sums[1]


STOPPED_AT = [  # what is called when a signal comes, and the step of the checkpoint that is left
    ("rlt_jax.runs.rlt:Rlt.generate", 2, 1),
    ("rlt_jax.runs.rlt:Rlt.score", 2, 1),
    ("rlt_jax.runs.rlt:Rlt.gradients", 2, 1),
    ("rlt_jax.runs.rlt:Rlt.apply", 2, 2),
    ("rlt_jax.runs.rlt:Rlt.set_aside", 3, 2),
    ("rlt_jax.sampling.vllm:VllmSampler.set_weights", 3, 2),
]


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        start = starter(small, patch)
        yield start(tmp_path_factory.mktemp("undisturbed") / "run", "--max-steps", 3, "--save-steps", 0, *POLICY)


@pytest.mark.parametrize(("place", "calls", "left"), STOPPED_AT, ids=[place for place, _, _ in STOPPED_AT])
def test_a_stop_saves_the_last_whole_step(run, undisturbed, tmp_path, monkeypatch, place, calls, left):
    module, _, path = place.partition(":")
    owner, name = getattr(importlib.import_module(module), path.split(".")[0]), path.split(".")[1]
    original, count = getattr(owner, name), [calls]

    def interrupted(*args, **kwargs):
        count[0] -= 1
        if count[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    line = ("--max-steps", 3, "--save-steps", 0, *POLICY)
    with monkeypatch.context() as patch, stops.handled(), pytest.raises(stops.StopRequested):
        patch.setattr(owner, name, interrupted)
        run(tmp_path / "run", *line)
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == [str(left)]
    assert_same_run(run(tmp_path / "run", *line), undisturbed, 3)
