"""A real vLLM server on the CPU against JAX's log-probs and greedy text, and what is said when something goes wrong."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

import rlt_jax
from rlt_jax.errors import UserError
from rlt_jax.models import load_model, placed_tensors
from rlt_jax.rewards.logprobs import sequence_logprobs
from rlt_jax.sampling.engine import EngineDied, EngineRefused, Job
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.sampling.server import ServerEngine, wait_until_healthy
from rlt_jax.sampling.vllm import EXCLUDED_BIAS
from rlt_jax.sampling.weights import Tensor
from rlt_jax.types import Request, SamplingParams

TEACHER = Path(rlt_jax.__file__).parent / "assets" / "tiny" / "teacher"
START_SECONDS = 240  # of the server: three processes import vLLM one after another

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
}
OPTIONS = (
    *("--model", str(TEACHER), "--served-model-name", "teacher", "policy", "--dtype", "float32"),
    *("--max-model-len", "256", "--block-size", "32", "--max-num-seqs", "8", "--enforce-eager"),
    *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
    "--no-enable-chunked-prefill",  # on the CPU a seeded prompt that is cut into chunks ends the engine
)

PROMPT = np.array([5, 300, 41, 7, 7, 250, 119, 64, 12, 390, 88, 201], np.int32)
PLAIN = {"max_tokens": 16, "temperature": 0.7, "stop_token_ids": []}
GREEDY = {"max_tokens": 16, "temperature": 0.0, "stop_token_ids": []}
COMMAND = (
    "Start the server with\nVLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model FOLDER --host "
    "127.0.0.1 --port {port} --logprobs-mode processed_logprobs --generation-config vllm"
)


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen
    url: str
    log: Path

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


def with_vllm(test):
    """Mark a test that needs the real server."""
    absent = find_spec("vllm") is None
    return pytest.mark.vllm(pytest.mark.skipif(absent, reason="vLLM is not installed for this Python")(test))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port), *OPTIONS],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    started = Server(process, f"http://127.0.0.1:{port}", log)
    left_behind: set[Path] = set()
    try:
        wait_for(started)
        left_behind = shared_memory(process.pid)
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in left_behind:
            path.unlink(missing_ok=True)


def shared_memory(pid: int) -> set[Path]:
    """Files in shared memory that a process and its children have mapped: after a SIGKILL nobody removes them."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    paths = {mapped.path for process in family for mapped in process.memory_maps()}
    return {Path(path) for path in paths if path.startswith("/dev/shm/")}


def wait_for(server: Server) -> None:
    """As `ServerEngine.start` waits, but a server that ended is noticed."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return wait_until_healthy(server.url, seconds=2)
        except EngineDied:
            assert server.process.poll() is None and time.monotonic() < deadline, server.log_tail()


@pytest.fixture(scope="module")
def engine(server) -> Iterator[ServerEngine]:
    engine = ServerEngine(server.url, model_name="policy")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def teacher():
    return load_model(TEACHER, dtype="float32")


def perturbed(params, seed: int):
    """Weights of which every single tensor differs from `params`'."""
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda leaf: leaf * (1 + 0.2 * jax.random.normal(next(keys), leaf.shape)), params)


def tensors(model, params) -> list[Tensor]:
    """All of a tied model's tensors, with its head under the name of its own."""
    return [
        *(Tensor(*placed) for placed in placed_tensors(model, params)),
        Tensor("lm_head.weight", model.head(params), None),
    ]


@partial(jax.jit, static_argnames=("model",))
def _jax_logps(model, params, ids, temperature):
    return sequence_logprobs(model, params, ids, temperature=temperature, chunk=64)


def jax_logps(model, params, ids, temperature=1.0) -> np.ndarray:
    """f32[T] of i32[T]; padded, so that one program serves all."""
    padded = jnp.asarray(np.pad(ids, (0, 64 - len(ids))))[None]
    return np.asarray(_jax_logps(model, params, padded, temperature))[0, : len(ids)]


def draw(engine, jobs, sampling):
    """Completions by index, and the counts that were reported."""
    drawn, counts = {}, []
    engine.generate(jobs, sampling, lambda one: drawn.setdefault(one.index, one), counts.append)
    assert drawn.keys() == {job.index for job in jobs}
    return [drawn[job.index] for job in jobs], counts


def texts(engine, jobs, sampling) -> list[list[int]]:
    return [one.token_ids.tolist() for one in draw(engine, jobs, sampling)[0]]


def jobs_of(*seeds, prompt=PROMPT) -> list[Job]:
    return [Job(index, prompt, seed) for index, seed in enumerate(seeds)]


@with_vllm
def test_facts(engine):
    version = engine.facts.pop("version")
    assert version.split(".")[0] == "0"
    assert engine.facts == {"device": "server", "block_size": 0, "kv_tokens": 0, "max_model_len": 256}
    engine.facts["version"] = version


@with_vllm
def test_every_reload_reaches_the_log_probs(engine, teacher):
    """Of a prompt at temperature 1, of drawn tokens at theirs; keys and values of older weights are forgotten."""
    model, first = teacher
    prompt = np.resize(PROMPT, 40)  # fills a block of the prefix cache
    before = jax_logps(model, first, prompt)
    for seed in (1, 2, 3):
        params = perturbed(first, seed)
        engine.load(tensors(model, params))
        expected = jax_logps(model, params, prompt)
        assert np.abs(expected - before).mean() > 0.3  # or the reload would prove nothing
        before = expected
        drawn, _ = draw(engine, jobs_of(1, 2, 3, prompt=prompt), PLAIN)  # first: it is this that reads the prefix cache
        for one in drawn:
            ids = np.concatenate([prompt, one.token_ids])
            assert one.token_ids.dtype == np.int32 and one.logps.dtype == np.float32
            np.testing.assert_allclose(one.logps, jax_logps(model, params, ids, 0.7)[len(prompt) :], atol=1e-4)
        logps = engine.prompt_logprobs(prompt)
        assert logps.dtype == np.float32
        np.testing.assert_allclose(logps, expected[1:], atol=1e-4)


@with_vllm
def test_greedy_text_is_that_of_the_native_sampler(engine, teacher):
    model, params = teacher
    engine.load(tensors(model, params))
    prompts = [PROMPT[:1], PROMPT[:5], PROMPT, np.resize(PROMPT, 40)]
    native = NativeSampler(model, params, eos_ids=(10**6,))
    expected = native.generate([Request(prompt, (0,)) for prompt in prompts], SamplingParams(16, temperature=0.0))
    drawn, counts = draw(engine, [Job(index, prompt, 0) for index, prompt in enumerate(prompts)], GREEDY)
    for one, (completion,) in zip(drawn, expected, strict=True):
        assert one.token_ids.tolist() == completion.token_ids.tolist()
        np.testing.assert_allclose(one.logps, completion.logps, atol=1e-4)
        assert not one.finished
    assert counts == [16, 32, 48, 64]


@with_vllm
def test_a_seed_is_one_text_whatever_else_is_drawn(engine, teacher):
    model, first = teacher
    engine.load(tensors(model, perturbed(first, 4)))  # less sure of itself than the trained one
    seeds = tuple(range(20))  # more than the server draws at a time
    together = texts(engine, jobs_of(*seeds), PLAIN)
    assert len({tuple(text) for text in together}) == len(seeds)
    assert texts(engine, jobs_of(*reversed(seeds[:3])), PLAIN) == together[2::-1]


@with_vllm
def test_a_stop_token_ends_a_completion_and_stays_its_last(engine):
    (free,) = texts(engine, jobs_of(0), GREEDY)
    stop = free[6]
    (one,), counts = draw(engine, jobs_of(0), GREEDY | {"stop_token_ids": [stop]})
    assert one.token_ids.tolist() == free[: free.index(stop) + 1]
    assert one.finished and len(one.logps) == len(one.token_ids)
    assert counts == [len(one.token_ids)]


@with_vllm
def test_filters_are_passed_on(engine):
    """With one token left to draw from, any seed draws the greedy text, and is certain of it."""
    (greedy,) = texts(engine, jobs_of(0), GREEDY)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        (one,), _ = draw(engine, jobs_of(7), PLAIN | narrow)
        assert one.token_ids.tolist() == greedy
        np.testing.assert_allclose(one.logps, 0, atol=1e-6)


@with_vllm
def test_excluded_ids_are_not_drawn(engine, teacher):
    """The log-probs are of the distribution without them. A server takes any bias and raises it to -100."""
    model, params = teacher
    engine.load(tensors(model, params))
    excluded = sorted({token for text in texts(engine, jobs_of(0, 1, 2), GREEDY) for token in text})
    bias = {"logit_bias": dict.fromkeys(excluded, EXCLUDED_BIAS)}
    for sampling in (GREEDY, PLAIN):
        for one in draw(engine, jobs_of(0, 1), sampling | bias)[0]:
            assert not np.isin(one.token_ids, excluded).any()
            ids = np.concatenate([PROMPT, one.token_ids])
            logits = np.array(model.logits(params, ids[None], np.ones_like(ids)[None])[0])
            logits[:, excluded] = -np.inf
            logps = np.asarray(jax.nn.log_softmax(logits / (sampling["temperature"] or 1.0)))
            expected = logps[np.arange(len(PROMPT), len(ids)) - 1, one.token_ids]
            np.testing.assert_allclose(one.logps, expected, atol=1e-4)


@with_vllm
def test_what_the_server_refuses(server, engine):
    foreign = Job(1, np.array([1, 999], np.int32), 0)
    answer = f"the vLLM server at {server.url} answered /v1/completions with 400: "
    with pytest.raises(EngineRefused, match=f"^{answer}.*999.*vocabulary"):
        draw(engine, [*jobs_of(0), foreign], PLAIN)
    with pytest.raises(EngineRefused, match=f"^{answer}.*max_model_len=256"):
        draw(engine, jobs_of(0), PLAIN | {"max_tokens": 10_000})
    with pytest.raises(
        ValueError, match=r"^sampling parameters \['detokenize'\]: expected max_tokens and temperature, "
    ):
        draw(engine, jobs_of(0), PLAIN | {"detokenize": False})
    assert len(texts(engine, jobs_of(0), PLAIN)[0]) == 16


@with_vllm
def test_a_completion_that_somebody_aborts_is_not_taken_for_a_short_one(server, engine):
    """A paused server takes requests and draws nothing, so that none can end before it is aborted."""
    ended = threading.Event()

    def abort_what_came():
        while not ended.wait(0.05):
            httpx.post(f"{server.url}/pause?mode=abort", timeout=None)

    httpx.post(f"{server.url}/pause?mode=keep", timeout=None)
    somebody = threading.Thread(target=abort_what_came)
    somebody.start()
    try:
        with pytest.raises(EngineRefused, match=r"^a completion ended by 'abort' after \d+ of 200 tokens$"):
            engine.generate(jobs_of(*range(8)), PLAIN | {"max_tokens": 200}, pytest.fail, lambda count: None)
    finally:
        ended.set()
        somebody.join()
        httpx.post(f"{server.url}/resume", timeout=None)
    assert len(texts(engine, jobs_of(0), PLAIN)[0]) == 16


@with_vllm
def test_a_load_that_fails_leaves_a_server_that_answers(server, engine, teacher, tmp_path):
    model, first = teacher
    with pytest.raises(EngineRefused) as caught:
        engine.load_folder(tmp_path / "nowhere")
    message = str(caught.value)
    assert message.startswith(f"the vLLM server at {server.url} answered /collective_rpc with 500: ")
    assert message.endswith(
        f"It has its first weights again; it must see {tmp_path / 'nowhere'}, and run as the same user to read it"
    )
    assert len(texts(engine, jobs_of(0), PLAIN)[0]) == 16
    engine.load(tensors(model, first))
    np.testing.assert_allclose(engine.prompt_logprobs(PROMPT), jax_logps(model, first, PROMPT)[1:], atol=1e-4)


@with_vllm
def test_memory_and_life_are_the_owners(server, engine):
    (text,) = texts(engine, jobs_of(0), GREEDY)
    engine.sleep()
    engine.wake_weights()
    engine.wake_cache()
    assert texts(engine, jobs_of(0), GREEDY) == [text]
    assert engine.log_tail() == ""
    ServerEngine(server.url, model_name="policy").close()
    assert texts(engine, jobs_of(0), GREEDY) == [text]


@with_vllm
def test_one_of_several_models(server):
    port = server.url.rpartition(":")[2]
    for name, expected in ((None, "a single model"), ("student", "student")):
        with pytest.raises(UserError) as caught:
            ServerEngine(server.url, model_name=name)
        where = f"--sampler.url {server.url}: it serves teacher, policy, expected {expected}. "
        assert str(caught.value) == where + COMMAND.format(port=port)


@with_vllm
def test_a_server_left_paused_is_resumed(server, caplog):
    httpx.post(f"{server.url}/pause")
    paused = ServerEngine(server.url, model_name="policy")
    assert f"the vLLM server at {server.url} was left paused: resuming it" in caplog.messages
    assert len(texts(paused, jobs_of(0), PLAIN)[0]) == 16


@with_vllm
def test_a_server_killed_while_it_draws(server, monkeypatch):
    """The last test with this server. It has not even got all requests when it dies: so some cannot have been drawn."""
    monkeypatch.setattr("rlt_jax.sampling.server._max_connections", lambda: 16)
    engine = ServerEngine(f"{server.url}/", model_name="policy", start_timeout=0.2)
    drawn = []

    def kill(one):
        drawn.append(one)
        os.killpg(server.process.pid, signal.SIGKILL)

    with pytest.raises(EngineDied, match=f"^the vLLM server at {server.url} is gone: "):
        engine.generate(jobs_of(*range(200)), PLAIN | {"max_tokens": 100}, kill, lambda count: None)
    assert 1 <= len(drawn) <= 16  # what it had sent before it was killed arrives all the same
    server.process.wait()
    for call in (
        partial(engine.prompt_logprobs, PROMPT),
        engine.reset_prefix_cache,
        partial(engine.load_folder, TEACHER),
    ):
        with pytest.raises(EngineDied, match=f"^the vLLM server at {server.url} is gone: "):
            call()
    with pytest.raises(EngineDied) as caught:
        engine.start()
    assert str(caught.value) == f"no vLLM server answered at {server.url} for 0.2 seconds"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "127.0.0.1:8000",
        "ftp://127.0.0.1:8000",
        "http://",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:8000/v1",
        "http://127.0.0.1:8000/?model=teacher",
        "http://127.0.0.1:8000#top",
        "http://me:secret@127.0.0.1:8000",
    ],
)
def test_malformed_urls(url):
    with pytest.raises(UserError) as caught:
        ServerEngine(url, allow_remote=True)
    expected = "expected http://HOST:PORT and no more, such as http://127.0.0.1:8000"
    assert str(caught.value) == f"--sampler.url {url.replace('me:secret', '***')}: {expected}"


@pytest.mark.parametrize("host", ["10.0.0.5", "0.0.0.0", "localhost.example.com", "128.0.0.1", "[2001:db8::1]"])
def test_remote_hosts_are_refused(host):
    with pytest.raises(UserError) as caught:
        ServerEngine(f"http://{host}:8000")
    assert str(caught.value) == (
        f"--sampler.url http://{host}:8000: {host.strip('[]')} is not this machine's loopback address. The server must "
        "see the trainer's shared memory, where weights travel as a file, and anyone who reaches its port can replace "
        "them: use 127.0.0.1, or --sampler.allow-remote if both are fine"
    )


@pytest.mark.parametrize(
    ("host", "allow_remote"), [("127.0.0.1", False), ("127.8.9.10", False), ("localhost", False), ("0.0.0.0", True)]
)
def test_nothing_answers(host, allow_remote):
    port = free_port()
    with pytest.raises(UserError) as caught:
        ServerEngine(f"http://{host}:{port}", allow_remote=allow_remote)
    where = f"--sampler.url http://{host}:{port}: no vLLM server answers there. "
    assert str(caught.value) == where + COMMAND.format(port=port)


@contextlib.contextmanager
def answering(answers: dict[str, object], *, key: str | None = None) -> Iterator[int]:
    """A server that gives these answers by path, in JSON, and 404 to all else; yields its port.

    Args:
      key: that it asks for below /v1, as vLLM's does.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known = self.path in answers
            body = json.dumps(answers.get(self.path, {"detail": "Not Found"})).encode()
            guarded = key is not None and self.path.startswith("/v1")
            allowed = not guarded or self.headers.get("Authorization") == f"Bearer {key}"
            self.send_response(401 if not allowed else 200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield web.server_port
        web.shutdown()
        thread.join()


MODELS = {"data": [{"id": "teacher", "root": "folder", "max_model_len": 256}]}
RAW = {"choices": [{"logprobs": {"token_logprobs": [-3.5]}}]}


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, "no vLLM server answers there"),
        (
            {"/health": None},
            "weights cannot be loaded, VLLM_SERVER_DEV_MODE=1 is missing (the vLLM server at {url} answered /is_paused "
            'with 404: {{"detail": "Not Found"}})',
        ),
        (
            {"/health": None, "/is_paused": {"is_paused": False}},
            'the vLLM server at {url} answered /v1/models with 404: {{"detail": "Not Found"}}',
        ),
        (
            {"/health": None, "/is_paused": {"is_paused": False}, "/v1/models": MODELS, "/v1/completions": RAW},
            "its log-probs are before temperature, --logprobs-mode processed_logprobs is missing",
        ),
    ],
    ids=["no vLLM", "no development mode", "no models", "log-probs before temperature"],
)
def test_servers_that_cannot_be_used(answers, reason):
    with answering(answers) as port, pytest.raises(UserError) as caught:
        ServerEngine(f"http://127.0.0.1:{port}")
    url = f"http://127.0.0.1:{port}"
    assert str(caught.value) == f"--sampler.url {url}: {reason.format(url=url)}. {COMMAND.format(port=port)}"


def test_a_server_that_asks_for_a_key(monkeypatch):
    answers = {"/health": None, "/is_paused": {"is_paused": False}, "/v1/models": MODELS, "/v1/completions": RAW}
    with answering(answers, key="a-key-of-this-run") as port:
        for key, said in ((None, "is not set"), ("another-key-entirely", "was refused")):
            monkeypatch.delenv("VLLM_API_KEY", raising=False)
            if key is not None:
                monkeypatch.setenv("VLLM_API_KEY", key)
            with pytest.raises(UserError, match=f"the environment variable VLLM_API_KEY {said}: set it to") as caught:
                ServerEngine(f"http://127.0.0.1:{port}")
            assert "key-of-this-run" not in str(caught.value) and "another-key" not in str(caught.value)
        monkeypatch.setenv("VLLM_API_KEY", "a-key-of-this-run")
        with pytest.raises(UserError, match="its log-probs are before temperature"):  # which it says only after /v1
            ServerEngine(f"http://127.0.0.1:{port}")
