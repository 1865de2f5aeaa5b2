"""A vLLM OpenAI server that somebody else started, as an engine; `engine.Engine` documents the methods.

Token ids go in and come out through /v1/completions. Weights travel as a safetensors file in shared memory, which the
endpoints of the server's development mode load: the server must see that file under the same path and be allowed to
read it, so it runs on the same machine as the same user. vLLM 0.26 and 0.32 agree on everything used here.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rlt_jax import stops
from rlt_jax.errors import UserError
from rlt_jax.sampling.engine import EngineCompletion, EngineDied, EngineRefused, Job
from rlt_jax.sampling.weights import Tensor, write_shared_file
from rlt_jax.secrets import redacted

log = logging.getLogger("rlt_jax")

COMMAND = (
    "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model FOLDER --host 127.0.0.1 "
    "--port {port} --logprobs-mode processed_logprobs --generation-config vllm"
)

NEUTRAL = {  # every sampling parameter, so that no default of the server or the model folder applies
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "stop_token_ids": [],
    "logit_bias": None,
}

TIMEOUT = httpx.Timeout(None, connect=10.0)  # seconds; a completion may take any time
NO_REUSE = httpx.Limits(max_keepalive_connections=0)  # the server may be closing the idle connection that we would pick
STOP_SECONDS = 0.2  # between two looks at whether to stop
API_KEY = "VLLM_API_KEY"  # environment variable, which vLLM's server reads too
ERROR_LENGTH = 500  # most characters shown of a server's message


class ServerEngine:
    """A running server, whose owner controls its process and memory: `sleep` and both wakes do nothing, `start` waits.

    Args:
      url: http://HOST:PORT.
      model_name: which of the served models to use; None: the only one.
      allow_remote: accept a host that is not this machine's loopback address. The server must still see the trainer's
        shared memory under the same path, and anyone who reaches its port can replace its weights.
      start_timeout: how long `start` waits for the server, seconds.
    Raises:
      UserError: the URL is malformed or remote, no server answers there, or the server cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        model_name: str | None = None,
        allow_remote: bool = False,
        start_timeout: float = 120.0,
    ):
        self._url = _checked_url(url, allow_remote=allow_remote)
        self._model_name = model_name
        self._start_timeout = start_timeout
        self._client = httpx.Client(
            base_url=self._url, timeout=TIMEOUT, limits=NO_REUSE, trust_env=False, headers=_headers()
        )
        self._first_weights = ""  # folder or hub name that the server was started with
        self.facts: dict[str, Any] = {}
        if not _is_healthy(self._url):
            raise self._unusable("no vLLM server answers there")
        try:
            self.start()
        except (EngineDied, EngineRefused) as error:
            raise self._unusable(str(error)) from None

    def start(self) -> None:
        """Wait until the server answers; restarting it is up to its owner.

        Raises:
          EngineDied: it did not answer within `start_timeout`.
          UserError: it answers, but the constructor would refuse it.
        """
        wait_until_healthy(self._url, seconds=self._start_timeout)
        self.facts = self._inspect()

    def generate(
        self,
        jobs: Sequence[Job],
        sampling: Mapping[str, Any],
        on_completion: Callable[[EngineCompletion], None],
        on_tokens: Callable[[int], None],
    ) -> None:
        """Send one request per completion, as many at once as the limit of open files allows."""
        count = 0

        async def sample(client: httpx.AsyncClient, connections: asyncio.Semaphore, job: Job) -> None:
            nonlocal count
            async with connections:
                with self._transport_errors_as_engine_died():
                    body = self._request(job.prompt_ids, sampling, job.seed)
                    response = await client.post("/v1/completions", json=body)
            completion = _completion(job.index, self._value(response)["choices"][0], sampling["max_tokens"])
            count += len(completion.token_ids)
            on_completion(completion)
            on_tokens(count)

        async def sample_all() -> None:
            connections = asyncio.Semaphore(_max_connections())
            client = httpx.AsyncClient(
                base_url=self._url, timeout=TIMEOUT, limits=NO_REUSE, trust_env=False, headers=_headers()
            )
            async with client, asyncio.TaskGroup() as group:  # one failure cancels the others, also in the server
                for job in jobs:
                    group.create_task(sample(client, connections, job))

        can_stop = stops.can_stop()

        async def sample_until_stopped() -> None:
            work = asyncio.ensure_future(sample_all())
            while not (await asyncio.wait([work], timeout=STOP_SECONDS))[0]:
                if can_stop and stops.requested() is not None:
                    work.cancel()
            await work

        try:
            with stops.held():  # an exception anywhere in the event loop would leave tracebacks
                asyncio.run(sample_until_stopped())
        except ExceptionGroup as failures:
            stops.check()
            raise failures.exceptions[0] from None  # the others say the same
        except asyncio.CancelledError:
            stops.check()
            raise

    def prompt_logprobs(self, prompt_ids: np.ndarray) -> np.ndarray:
        body = self._request(prompt_ids, {"max_tokens": 1}, seed=0) | {"prompt_logprobs": 0}
        entries = self._call("POST", "/v1/completions", body)["choices"][0]["prompt_logprobs"][1:]
        pairs = zip(prompt_ids[1:].tolist(), entries, strict=True)
        return np.array([entry[str(token)]["logprob"] for token, entry in pairs], np.float32)

    def load(self, tensors: Sequence[Tensor]) -> None:
        with write_shared_file(tensors) as path:
            self.load_folder(path.parent)

    def load_folder(self, folder: Path) -> None:
        """Replace the weights with those in a folder's safetensors files, and empty the prefix cache.

        All running requests are aborted, also those of other clients, so that no completion mixes two versions.

        Raises:
          EngineRefused: the server could not load them. It is still running, but its weights are unreliable until the
            next load.
        """
        try:
            self._call("POST", "/pause?mode=abort")
            self._reload(str(folder))
            self.reset_prefix_cache()
        finally:
            self._call("POST", "/resume")

    def reset_prefix_cache(self) -> None:
        if not self._call("POST", "/reset_prefix_cache")["success"]:
            raise EngineRefused("the prefix cache could not be reset: some of its blocks are in use")

    def sleep(self) -> None:
        """Does nothing: the server keeps its memory."""

    def wake_weights(self) -> None:
        """Does nothing: the server kept its memory."""

    def wake_cache(self) -> None:
        """Does nothing: the server kept its memory."""

    def close(self) -> None:
        """Close the client; the server keeps running."""
        self._client.close()

    def log_tail(self, lines: int = 20) -> str:
        """Empty: the server's owner has its log."""
        return ""

    def _inspect(self) -> dict[str, Any]:
        """Read the server's facts; raise UserError if it cannot be used."""
        try:
            paused = self._call("GET", "/is_paused")["is_paused"]
        except EngineRefused as error:
            raise self._unusable(f"weights cannot be loaded, VLLM_SERVER_DEV_MODE=1 is missing ({error})") from None
        if paused:  # by a trainer that was killed while loading weights: no request would ever be answered
            log.warning("the vLLM server at %s was left paused: resuming it", self._url)
            self._call("POST", "/resume")
        served = {model["id"]: model for model in self._call("GET", "/v1/models")["data"]}
        if self._model_name not in served and (self._model_name is not None or len(served) != 1):
            expected = "a single model" if self._model_name is None else self._model_name
            raise self._unusable(f"it serves {', '.join(served)}, expected {expected}")
        self._model_name = self._model_name or next(iter(served))
        self._first_weights = served[self._model_name]["root"]
        self._check_logprobs()
        return {
            "version": self._call("GET", "/version")["version"],
            "device": "server",
            "block_size": 0,  # unknown, like the next
            "kv_tokens": 0,
            "max_model_len": served[self._model_name]["max_model_len"],
        }

    def _check_logprobs(self) -> None:
        """Raise UserError if log-probs are those before temperature and filters, as is vLLM's default."""
        body = self._request(np.zeros(1, np.int32), {"max_tokens": 1}, seed=0) | {"allowed_token_ids": [0]}
        (logp,) = self._call("POST", "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
        if logp < -1e-3:  # after the filter, the only allowed token has probability 1
            raise self._unusable("its log-probs are before temperature, --logprobs-mode processed_logprobs is missing")

    def _request(self, prompt_ids: np.ndarray, sampling: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The request for one completion; ValueError for a sampling parameter that the server would ignore."""
        if unknown := sampling.keys() - NEUTRAL.keys() - {"max_tokens"}:
            raise ValueError(f"sampling parameters {sorted(unknown)}: expected max_tokens and {', '.join(NEUTRAL)}")
        return {
            **NEUTRAL,
            **sampling,
            "model": self._model_name,
            "prompt": prompt_ids.tolist(),
            "seed": int(seed),
            "logprobs": 0,  # of the sampled token only
            "ignore_eos": True,  # the trainer's EOS tokens end it, through stop_token_ids
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # as keys of the log-probs, instead of text
        }

    def _reload(self, folder: str) -> None:
        try:
            self._call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        except EngineRefused as error:
            if folder == self._first_weights:
                raise EngineRefused(f"{error}. It is left without weights: restart it") from None
            self._reload(self._first_weights)  # its weights are gone: the next request would crash the server
            hint = f"it must see {folder}, and run as the same user to read it"
            raise EngineRefused(f"{error}. It has its first weights again; {hint}") from None

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        with self._transport_errors_as_engine_died():
            response = self._client.request(method, path, json=body)
        return self._value(response)

    def _value(self, response: httpx.Response) -> Any:
        """The answer's JSON.

        Raises:
          EngineRefused: the server answered with an error, or with something other than JSON.
          EngineDied: the server answered with an error because its engine is dead.
        """
        if response.status_code == 200:
            with contextlib.suppress(ValueError):
                return response.json()
        if response.status_code == 401:
            said = "was refused" if os.environ.get(API_KEY) else "is not set"
            raise EngineRefused(
                f"the vLLM server at {self._url} asks for a key, but the environment variable {API_KEY} {said}: set it "
                "to the server's --api-key"
            )
        answer = f"answered {response.request.url.path} with {response.status_code}: {_message(response)}"
        if response.status_code >= 500 and not _is_healthy(self._url):
            raise EngineDied(f"the vLLM server at {self._url} lost its engine and {answer}")
        raise EngineRefused(f"the vLLM server at {self._url} {answer}")

    @contextlib.contextmanager
    def _transport_errors_as_engine_died(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise EngineDied(f"the vLLM server at {self._url} is gone: {type(error).__name__} {error}") from None

    def _unusable(self, reason: str) -> UserError:
        command = COMMAND.format(port=httpx.URL(self._url).port or 80)
        return UserError(f"--sampler.url {self._url}: {reason}. Start the server with\n{command}")


def _headers() -> dict[str, str]:
    """The key of a server that was started with --api-key: it guards /v1, though not the development endpoints."""
    key = os.environ.get(API_KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def wait_until_healthy(url: str, *, seconds: float) -> None:
    """Poll a vLLM server, less and less often, until it is up; raise EngineDied if that takes longer than `seconds`."""
    deadline, pause = time.monotonic() + seconds, 0.05
    while not _is_healthy(url):
        stops.check()
        if time.monotonic() + pause > deadline:
            raise EngineDied(f"no vLLM server answered at {url} for {seconds:g} seconds")
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _completion(index: int, choice: dict[str, Any], max_tokens: int) -> EngineCompletion:
    token_ids, reason = np.array(choice["token_ids"], np.int32), choice["finish_reason"]
    if reason != "stop" and (reason != "length" or len(token_ids) != max_tokens):
        # aborted by another client, or cut by a limit of the server
        raise EngineRefused(f"a completion ended by {reason!r} after {len(token_ids)} of {max_tokens} tokens")
    logps = np.array(choice["logprobs"]["token_logprobs"], np.float32)
    return EngineCompletion(index, token_ids, logps, finished=reason == "stop")


def _message(response: httpx.Response) -> str:
    """The server's error message on one line, cut to a readable length."""
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = response.text
    text = " ".join(text.split())
    return text if len(text) <= ERROR_LENGTH else f"{text[:ERROR_LENGTH]} ..."


def _max_connections() -> int:
    """Half of the files that this process may open: 512 with the usual limit of 1024."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if limit == resource.RLIM_INFINITY else max(1, min(limit // 2, 4096))


def _checked_url(url: str, *, allow_remote: bool) -> str:
    """http://HOST:PORT without a trailing slash; UserError for anything else, or for a host that is not allowed."""
    try:
        parts = httpx.URL(url)
        bare = parts.raw_path == b"/" and not parts.fragment and not parts.userinfo
        usable = parts.scheme in ("http", "https") and parts.host != "" and (parts.port or 0) < 2**16 and bare
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise UserError(
            f"--sampler.url {redacted(url)}: expected http://HOST:PORT and no more, such as http://127.0.0.1:8000"
        )
    if not allow_remote and not _is_loopback(parts.host):
        raise UserError(
            f"--sampler.url {url}: {parts.host} is not this machine's loopback address. The server must see the "
            "trainer's shared memory, where weights travel as a file, and anyone who reaches its port can replace "
            "them: use 127.0.0.1, or --sampler.allow-remote if both are fine"
        )
    return str(parts).rstrip("/")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
