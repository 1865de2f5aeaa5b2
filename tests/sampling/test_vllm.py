"""VllmSampler over a real vLLM engine in a child process: exact syncs, caught silent failures, survived crashes."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest

from rlt_jax.errors import UserError
from rlt_jax.models import build_model, load_model
from rlt_jax.sampling.child import SCRIPT, ChildEngine
from rlt_jax.sampling.engine import EngineRefused
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.sampling.vllm import MAX_FAILURES, Probe, VllmSampler
from rlt_jax.sampling.vllm_process.rlt_messages import receive_message, send_message
from rlt_jax.types import Request, SamplingParams
from tests.sampling.conftest import logprobs_of, needs_vllm, perturbed, tensors_of

pytestmark = needs_vllm

EOS = (420,)
POSITIONS = 256
PROMPT = np.arange(7, 87, dtype=np.int32) % 400  # two blocks of the engine's cache and a half
REQUESTS = [Request(PROMPT, (1, 2, 3)), Request(PROMPT[::-1].copy(), (4, 5)), Request(PROMPT[:5], (6,))]
PARAMS = SamplingParams(max_tokens=64, temperature=0.7)
LEFT_OUT = ("layers.1.self_attn.k_proj.weight", "layers.0.mlp.down_proj.weight", "lm_head")
OPTIONS = {"dtype": "float32", "max_model_len": POSITIONS, "max_num_seqs": 16}


@pytest.fixture(scope="module")
def engine(spoilt_folder, tmp_path_factory):
    """One engine for the whole module, under an interpreter that is not `sys.executable` by name."""
    folder = tmp_path_factory.mktemp("engine")
    python = script(folder / "python", f'exec {sys.executable} "$@"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
        engine = ChildEngine(
            spoilt_folder, python=str(python), options=OPTIONS, log_file=folder / "vllm.log", weights_on_gpu=False
        )
    yield engine
    engine.close()


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def sampler_of(engine, teacher, *, tensors=None, shapes=None, on_mismatch="stop", eos_ids=EOS, token_ids=None):
    model, params = teacher
    tensors = tensors or partial(tensors_of, model)
    probe = Probe(PROMPT, partial(logprobs_of, model), 0.7, tolerance=1e-3, on_mismatch=on_mismatch)
    return VllmSampler(
        engine,
        tensors=tensors,
        shapes=shapes or {tensor.name: tensor.shape for tensor in tensors(params)},
        probe=probe,
        eos_ids=eos_ids,
        token_ids=token_ids,
        vocab_size=model.config.vocab_size,
        max_positions=POSITIONS,
    )


def awake(engine, teacher, version=1, **options):
    sampler = sampler_of(engine, teacher, **options)
    sampler.wake()
    sampler.set_weights(teacher[1], version)
    return sampler


def tokens_of(results):
    return [[completion.token_ids.tolist() for completion in completions] for completions in results]


class Faulty:
    """An engine to which something happens at one of its calls; all else is the real engine's."""

    def __init__(self, engine, **faults):
        self._engine, self._faults, self.calls = engine, faults, []

    def __getattr__(self, name):
        value = getattr(self._engine, name)
        if name in ("facts", "pid"):
            return value

        def call(*args):
            self.calls.append(name)
            return self._faults[name](value, *args) if name in self._faults else value(*args)

        return call


def killed_after(engine, times=1):
    """Do the call, then kill the engine, the first `times` times."""
    left = [times]

    def fault(real, *args):
        value = real(*args)
        if left[0] > 0:
            left[0] -= 1
            os.kill(engine.pid, signal.SIGKILL)
        return value

    return fault


def test_three_syncs_are_exact_and_greedy_text_is_the_native_samplers(engine, tiny_teacher):
    model, params = tiny_teacher
    sampler = sampler_of(engine, tiny_teacher, eos_ids=(10**6,))
    native = NativeSampler(model, params, eos_ids=(10**6,), segment=32)
    sampler.wake()
    texts = []
    for version in (1, 2, 3):
        weights = perturbed(params, version)
        sampler.set_weights(weights, version)
        native.set_weights(weights, version)
        assert sampler.agreement.largest < 1e-4
        expected = logprobs_of(model, weights, PROMPT, 1.0)[1:]
        np.testing.assert_allclose(engine.prompt_logprobs(PROMPT), expected, atol=1e-4)
        greedy = SamplingParams(max_tokens=32, temperature=0.0)
        drawn = sampler.generate(REQUESTS, greedy)
        assert tokens_of(drawn) == tokens_of(native.generate(REQUESTS, greedy))
        assert {completion.weight_version for of_prompt in drawn for completion in of_prompt} == {version}
        texts.append(tokens_of(drawn))
    assert texts[0] != texts[1] != texts[2]
    assert sampler.metrics()["sync_logp_diff_max"] == sampler.agreement.largest
    assert sampler.metrics()["engine_restarts"] == 0


def test_log_probs_of_samples_are_the_models_at_the_sampling_temperature(engine, tiny_teacher):
    """The folder's own generation config (top-k 2, penalties, temperature 3) must not show."""
    model, params = tiny_teacher
    sampler = awake(engine, tiny_teacher)
    seen = set()
    for request, completions in zip(REQUESTS, sampler.generate(REQUESTS, PARAMS)):
        for completion in completions:
            ids = np.concatenate([request.prompt_ids, completion.token_ids])
            expected = logprobs_of(model, params, ids, 0.7)[len(request.prompt_ids) :]
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)
            assert completion.finished == (completion.token_ids[-1] in EOS)
            assert completion.finished or len(completion.token_ids) == PARAMS.max_tokens
            assert not np.isin(completion.token_ids[:-1], EOS).any()
            seen.add(completion.finished)
    assert True in seen


@pytest.mark.parametrize("changes", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_log_probs_after_a_filter_are_unknown(engine, tiny_teacher, changes):
    """vLLM has them of the filtered distribution: not what a trainer computes, so they must not pass for it."""
    drawn = awake(engine, tiny_teacher).generate(REQUESTS, replace(PARAMS, **changes))
    for completions in drawn:
        for completion in completions:
            assert np.isnan(completion.logps).all()
            assert completion.logps.dtype == np.float32 and len(completion.logps) == len(completion.token_ids)


def test_greedy_log_probs_are_known_whatever_the_filters(engine, tiny_teacher):
    model, params = tiny_teacher
    greedy = SamplingParams(max_tokens=16, temperature=0.0, top_k=3, min_p=0.5)
    ((completion,),) = awake(engine, tiny_teacher, eos_ids=(10**6,)).generate(REQUESTS[2:], greedy)
    prompt = REQUESTS[2].prompt_ids
    expected = logprobs_of(model, params, np.concatenate([prompt, completion.token_ids]), 1.0)[len(prompt) :]
    np.testing.assert_allclose(completion.logps, expected, atol=1e-4)


def renormalised(model, params, prompt, completion, temperature, *, excluded):
    """f32[N] log-probs of a completion where the excluded ids have no probability."""
    ids = np.concatenate([prompt, completion.token_ids])
    logits = np.array(model.logits(params, ids[None], np.ones_like(ids)[None])[0]) / (temperature or 1.0)
    logits[:, excluded] = -np.inf
    at = np.arange(len(prompt), len(ids))
    return np.asarray(jax.nn.log_softmax(logits))[at - 1, ids[at]]


EXCLUDING = [{"temperature": 0.0}, {}, {"temperature": 1.5}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}]


@pytest.mark.parametrize("changes", EXCLUDING, ids=str)
def test_ids_that_the_tokenizer_does_not_know_are_never_sampled(engine, tiny_teacher, changes):
    """Those of a tokenizer with gaps: the likeliest tokens are left out here."""
    model, params = tiny_teacher
    settings = replace(PARAMS, max_tokens=24, **changes)
    free = awake(engine, tiny_teacher).generate(REQUESTS, settings)
    excluded = np.unique(np.concatenate([one.token_ids for completions in free for one in completions]))
    excluded = excluded[excluded != EOS[0]]
    sampler = awake(engine, tiny_teacher, token_ids=np.setdiff1d(np.arange(420), excluded))  # EOS is not among them
    assert sampler.agreement.largest < 1e-4  # the probe is of the whole distribution
    for request, completions in zip(REQUESTS, sampler.generate(REQUESTS, settings)):
        for completion in completions:
            assert not np.isin(completion.token_ids, excluded).any()
            if not settings.filtered:
                whole = renormalised(
                    model, params, request.prompt_ids, completion, settings.temperature, excluded=excluded
                )
                np.testing.assert_allclose(completion.logps, whole, atol=1e-4)


def test_a_tokenizer_that_knows_every_id_changes_nothing(engine, tiny_teacher):
    asked = []

    def listen(real, jobs, sampling, *args):
        asked.append(dict(sampling))
        return real(jobs, sampling, *args)

    listening = Faulty(engine, generate=listen)
    plain = awake(listening, tiny_teacher).generate(REQUESTS, PARAMS)
    known = awake(listening, tiny_teacher, token_ids=np.arange(421)).generate(REQUESTS, PARAMS)
    assert tokens_of(plain) == tokens_of(known)
    assert asked[1] == asked[3] and "logit_bias" not in asked[1]


def test_more_unknown_ids_than_vllm_can_exclude_are_refused(engine, tiny_teacher):
    model, params = tiny_teacher
    large = build_model(replace(model.config, vocab_size=421 + 1025))
    with pytest.raises(UserError) as error:
        sampler_of(engine, (large, params), tensors=partial(tensors_of, model), token_ids=np.arange(421))
    assert str(error.value) == (
        "the model has 1025 token ids that its tokenizer does not know, and vLLM can exclude 1024 at most: use "
        "--sampler.kind native, or the tokenizer that belongs to the model"
    )


def test_an_embedding_with_rows_that_no_tokenizer_uses(padded_teacher, tmp_path):
    """Unknown ids have the largest logits at nearly every position."""
    model, params = load_model(padded_teacher, dtype="float32")
    engine = ChildEngine(padded_teacher, options=OPTIONS, log_file=tmp_path / "vllm.log", weights_on_gpu=False)
    try:
        free = awake(engine, (model, params)).generate(REQUESTS, PARAMS)
        assert all((one.token_ids > 420).any() for completions in free for one in completions)
        sampler = awake(engine, (model, params), token_ids=np.arange(421))
        assert sampler.agreement.largest < 1e-4
        for temperature in (0.0, 0.7):
            settings = replace(PARAMS, temperature=temperature)
            for request, completions in zip(REQUESTS, sampler.generate(REQUESTS, settings)):
                for one in completions:
                    assert (one.token_ids <= 420).all()
                    expected = renormalised(
                        model, params, request.prompt_ids, one, temperature, excluded=slice(421, None)
                    )
                    np.testing.assert_allclose(one.logps, expected, atol=1e-4)
    finally:
        engine.close()


def test_a_completion_depends_on_its_seed_and_not_on_its_neighbours(engine, tiny_teacher):
    sampler = awake(engine, tiny_teacher)
    counts = []
    together = tokens_of(sampler.generate(REQUESTS, PARAMS, on_progress=counts.append))
    assert counts[-1] == sum(len(ids) for of_prompt in together for ids in of_prompt)
    assert together[0][0] != together[0][1]
    alone = tokens_of(sampler.generate([Request(PROMPT, (2,))], PARAMS))
    assert alone[0][0] == together[0][1]
    assert sampler.generate([], PARAMS) == []


@pytest.mark.parametrize("missing", LEFT_OUT)
def test_a_tensor_left_out_is_refused_by_name_and_would_be_caught_by_the_probe(engine, tiny_teacher, missing):
    """vLLM accepts a push without it and reports no error, or writes a line to its log."""
    model, params = tiny_teacher
    whole = {tensor.name: tensor.shape for tensor in tensors_of(model, params)}
    (name,) = (name for name in whole if missing in name)

    def without(params):
        return [tensor for tensor in tensors_of(model, params) if tensor.name != name]

    sampler = sampler_of(engine, tiny_teacher, tensors=without, shapes=whole)
    sampler.wake()
    with pytest.raises(ValueError, match=f"nothing was sent: {name} is missing"):
        sampler.set_weights(params, 1)
    unchecked = sampler_of(engine, tiny_teacher, tensors=without)  # its list of names lacks the tensor as well
    unchecked.wake()
    changed = perturbed(
        params, 30 + LEFT_OUT.index(missing)
    )  # other weights for each case: a tensor that is there already is not missed
    with pytest.raises(UserError, match=r"weight sync 1: log-probs of the engine and of the trainer differ by \d"):
        unchecked.set_weights(changed, 1)
    with pytest.raises(RuntimeError, match="no weights"):
        unchecked.generate(REQUESTS, PARAMS)


def test_old_keys_and_values_are_caught(engine, tiny_teacher):
    _, params = tiny_teacher
    awake(engine, tiny_teacher)  # the probe's prompt is in the prefix cache now
    forgetful = Faulty(engine, reset_prefix_cache=lambda real: None)
    sampler = sampler_of(forgetful, tiny_teacher)
    sampler.wake()
    with pytest.raises(UserError, match="the engine does not sample with the weights that are trained"):
        sampler.set_weights(perturbed(params, 5), 2)
    assert "reset_prefix_cache" in forgetful.calls


def test_a_mismatch_can_be_let_through_with_a_warning(engine, tiny_teacher, caplog):
    _, params = tiny_teacher
    awake(engine, tiny_teacher)
    forgetful = Faulty(engine, reset_prefix_cache=lambda real: None)
    sampler = sampler_of(forgetful, tiny_teacher, on_mismatch="warn")
    sampler.wake()
    sampler.set_weights(perturbed(params, 6), 2)
    assert sampler.agreement.mean > 0.1
    assert "continuing, as --sampler.on-mismatch is warn" in caplog.text
    assert len(sampler.generate(REQUESTS[:1], PARAMS)[0]) == 3


def test_weights_are_needed_after_a_sleep(engine, tiny_teacher):
    """An engine that wakes without a push samples garbage and reports no error: here it is refused."""
    sampler = awake(engine, tiny_teacher)
    before = tokens_of(sampler.generate(REQUESTS, PARAMS))
    sampler.sleep()
    sampler.sleep()
    with pytest.raises(RuntimeError, match="asleep: call wake and set_weights"):
        sampler.generate(REQUESTS, PARAMS)
    with pytest.raises(RuntimeError, match="asleep: call wake before"):
        sampler.set_weights(tiny_teacher[1], 2)
    sampler.wake()
    with pytest.raises(RuntimeError, match="no weights since it woke"):
        sampler.generate(REQUESTS, PARAMS)
    sampler.set_weights(tiny_teacher[1], 2)
    assert tokens_of(sampler.generate(REQUESTS, PARAMS)) == before


def test_requests_that_no_engine_can_answer_are_refused(engine, tiny_teacher):
    sampler = awake(engine, tiny_teacher)
    with pytest.raises(UserError, match="256 positions"):
        sampler.generate([Request(PROMPT, (1,))], replace(PARAMS, max_tokens=200))
    with pytest.raises(UserError, match="token id 421, but the model knows 0 to 420"):
        sampler.generate([Request(np.array([3, 421], np.int32), (1,))], PARAMS)


def test_an_engine_killed_in_mid_generation_loses_and_doubles_nothing(engine, tiny_teacher, caplog):
    sampler = awake(engine, tiny_teacher, version=7)
    many = [Request(PROMPT, tuple(range(8))), *REQUESTS]
    expected = tokens_of(sampler.generate(many, PARAMS))
    kills = [engine.pid]

    def kill_once_some_are_done(real, jobs, sampling, on_completion, on_tokens):
        def kill(completion):
            on_completion(completion)
            if kills:
                os.kill(kills.pop(), signal.SIGKILL)

        return real(jobs, sampling, kill, on_tokens)

    crashing = Faulty(engine, generate=kill_once_some_are_done)
    sampler._engine = crashing
    results = sampler.generate(many, PARAMS)
    assert kills == []
    assert crashing.calls.count("start") == 1
    assert tokens_of(results) == expected
    assert {completion.weight_version for of_prompt in results for completion in of_prompt} == {7}
    assert sampler.metrics()["engine_restarts"] == 1
    assert "of 14 completions were lost: sampling them again" in caplog.text


@pytest.mark.parametrize("moment", ["load", "reset_prefix_cache"])
def test_an_engine_killed_in_mid_sync_is_restarted_and_synced(engine, tiny_teacher, moment):
    model, params = tiny_teacher
    crashing = Faulty(engine, **{moment: killed_after(engine)})
    sampler = sampler_of(crashing, tiny_teacher)
    sampler.wake()
    weights = perturbed(params, 3)
    sampler.set_weights(weights, 4)
    assert crashing.calls.count("start") == 1
    assert sampler.agreement.largest < 1e-4
    (completion,) = sampler.generate([Request(PROMPT, (1,))], PARAMS)[0]
    expected = logprobs_of(model, weights, np.concatenate([PROMPT, completion.token_ids]), 0.7)[len(PROMPT) :]
    np.testing.assert_allclose(completion.logps, expected, atol=1e-4)
    assert completion.weight_version == 4


def test_three_failures_in_a_row_end_the_run_with_the_engines_log(engine, tiny_teacher):
    """The engine's own refusals count as its death does: a push that failed half-way may have ruined it."""
    sampler = awake(engine, tiny_teacher)

    def refuse(real, *args):
        raise EngineRefused("RuntimeError: out of luck")

    sampler._engine = Faulty(engine, generate=refuse, start=lambda real: None, load=lambda real, tensors: None)
    with pytest.raises(UserError) as error:
        sampler.generate(REQUESTS, PARAMS)
    assert f"failed {MAX_FAILURES} times in a row, last: RuntimeError: out of luck" in str(error.value)
    assert "Successfully reset prefix cache" in str(error.value)


def test_a_misshaped_tensor_is_an_error_of_the_engine(engine, tiny_teacher):
    model, params = tiny_teacher
    tensors = tensors_of(model, params)
    wrong = replace(tensors[0], leaf=tensors[0].leaf[:, :-1] if tensors[0].index is None else tensors[0].leaf[..., :-1])
    with pytest.raises(EngineRefused):
        engine.load([wrong, *tensors[1:]])
    engine.start()  # it is dead for later pushes too
    awake(engine, tiny_teacher)


def test_more_prompts_than_the_engine_reads_at_once(engine, tiny_teacher):
    """80 prompts of 80 tokens; on a CPU vLLM ends when it cuts a seeded one in two."""
    rng = np.random.default_rng(0)
    sampler = awake(engine, tiny_teacher)
    requests = [Request(rng.integers(0, 400, 80).astype(np.int32), (i,)) for i in range(80)]
    drawn = sampler.generate(requests, SamplingParams(max_tokens=2))
    assert [len(completions) for completions in drawn] == [1] * 80
    assert sampler.metrics()["engine_restarts"] == 0


def test_a_closed_sampler_refuses_everything(engine, tiny_teacher):
    sampler = sampler_of(Faulty(engine, close=lambda real: None), tiny_teacher)
    sampler.close()
    sampler.close()
    for call in (
        sampler.sleep,
        sampler.wake,
        lambda: sampler.set_weights(tiny_teacher[1], 1),
        lambda: sampler.generate([], PARAMS),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_an_interpreter_without_vllm_is_a_users_mistake(spoilt_folder, tmp_path):
    bare = script(tmp_path / "python", f'exec {sys.executable} -I -S "$@"')
    with pytest.raises(UserError, match=rf"ModuleNotFoundError.*\ninstall vLLM for {bare}, or give a Python"):
        ChildEngine(spoilt_folder, python=str(bare), options=OPTIONS, log_file=tmp_path / "log", weights_on_gpu=False)
    with pytest.raises(UserError, match=r"--sampler.python /no/python cannot be run \(No such file or directory\)"):
        ChildEngine(
            spoilt_folder, python="/no/python", options=OPTIONS, log_file=tmp_path / "log", weights_on_gpu=False
        )


def test_the_child_ends_when_its_trainer_is_gone():
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, str(SCRIPT), str(theirs.fileno())]
        child = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
    send_message(ours, ("nonsense", ()))
    assert receive_message(ours) == ["error", "RuntimeError", "nonsense before start"]
    ours.close()
    assert child.wait(timeout=30) == -signal.SIGKILL


def test_nothing_listens_but_on_this_machine_and_the_engine_gets_no_tokens(engine):
    process = psutil.Process(engine.pid)
    for one in [process, *process.children(recursive=True)]:
        assert "HF_TOKEN" not in one.environ()
        heard = [connection.laddr.ip for connection in one.net_connections("inet") if connection.status == "LISTEN"]
        assert set(heard) <= {"127.0.0.1", "::1"}


def test_all_completions_are_one_submission(engine, tiny_teacher):
    counting = Faulty(engine)
    sampler = awake(counting, tiny_teacher)
    counting.calls.clear()
    sampler.generate([Request(PROMPT, tuple(range(24)))], SamplingParams(max_tokens=4))
    assert counting.calls == ["generate"]
