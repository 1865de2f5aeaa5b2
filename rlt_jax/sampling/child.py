"""The trainer's side of a vLLM child process: start it, send requests, notice when it dies.

The other side is `vllm_process/rlt_engine.py`. The child is a fresh interpreter in its own process group, and may be
another Python than the trainer's. Whatever ends one side ends the other: the pipe closes when the trainer is gone, and
the child then ends its group.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rlt_jax import stops
from rlt_jax.errors import UserError
from rlt_jax.paths import did_you_mean
from rlt_jax.sampling.engine import EngineCompletion, EngineDied, EngineFailed, EngineRefused, Job
from rlt_jax.sampling.vllm_process.rlt_messages import receive_message, send_message
from rlt_jax.sampling.weights import Tensor, send_on_gpu, write_shared_file
from rlt_jax.secrets import public_environment

log = logging.getLogger("rlt_jax")

SCRIPT = Path(__file__).parent / "vllm_process" / "rlt_engine.py"

POLL_SECONDS = 0.2  # between two looks at whether to stop
KILL_SECONDS = 10  # for killed processes to disappear

DEFAULTS = {  # of environment variables that vLLM and torch read when they start
    "VLLM_NO_USAGE_STATS": "1",
    # Fork vLLM's scheduler from the child, which has started neither CUDA nor JAX: that halves the start-up time.
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # looking for a GPU must not initialise CUDA before the fork
    # One process needs no network: what torch listens on without a password is this machine's alone.
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_WAIT_POLICY": "PASSIVE",  # on a CPU, spinning threads of the engine and of JAX slow each other down 80 times
}


class ChildEngine:
    """A vLLM engine in a child process; `rlt_jax.sampling.engine.Engine` documents the methods.

    Args:
      model: local folder with the model's config; its weights are not read.
      python: interpreter that has vLLM.
      gpu_memory_bytes: the engine's share of the GPU while it is awake; None: left to `options` and vLLM.
      options: more arguments of `vllm.LLM`.
      log_file: where the child's output goes.
      weights_on_gpu: the trainer's arrays live on a GPU.
    Raises:
      UserError: there is no such interpreter, it has no vLLM, or the engine does not start; shows the engine's log.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        python: str = sys.executable,
        gpu_memory_bytes: int | None = None,
        options: Mapping[str, Any],
        log_file: Path,
        weights_on_gpu: bool,
    ):
        self._start_args = {"model": str(model), "gpu_memory_bytes": gpu_memory_bytes, "options": dict(options)}
        self._python = python
        self._log_file = log_file
        self._weights_on_gpu = weights_on_gpu
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self.facts: dict[str, Any] = {}
        try:
            self.start()
        except EngineFailed as error:
            self.close()
            raise UserError(f"the vLLM engine did not start: {error}\n{self._advice(str(error))}") from None
        except BaseException:  # a stop, while it starts
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The child's process id, which is also its group's; None while there is no child."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        self.close()
        ours, theirs = Pipe()
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._log_file.open("ab") as log_file, theirs:
                self._process = subprocess.Popen(
                    [self._python, str(SCRIPT), str(theirs.fileno())],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # the trainer handles Ctrl-C, and one signal ends the whole group
                )
        except OSError as error:
            if self._log_file.exists() and not self._log_file.stat().st_size:
                self._log_file.unlink()
            raise UserError(
                f"--sampler.python {self._python} cannot be run ({error.strerror}): {did_you_mean(self._python)}"
                "give a Python interpreter"
            ) from None
        stops.register_child(self._process.pid)
        self._connection = ours
        self.facts = self._call("start", self._start_args)

    def generate(
        self,
        jobs: Sequence[Job],
        sampling: Mapping[str, Any],
        on_completion: Callable[[EngineCompletion], None],
        on_tokens: Callable[[int], None],
    ) -> None:
        rows = [(job.index, job.prompt_ids.tolist(), job.seed) for job in jobs]

        def listen(message):
            if message[0] == "tokens":
                on_tokens(message[1])
            else:
                _, index, ids, logps, finished = message
                token_ids, logps = np.frombuffer(ids, np.int32), np.frombuffer(logps, np.float32)
                on_completion(EngineCompletion(index, token_ids, logps, finished))

        self._call("generate", (rows, dict(sampling)), listen)

    def prompt_logprobs(self, prompt_ids: np.ndarray) -> np.ndarray:
        return np.frombuffer(self._call("prompt_logprobs", (prompt_ids.tolist(),)), np.float32)

    def load(self, tensors: Sequence[Tensor]) -> None:
        if self._weights_on_gpu and self.facts["device"] == "cuda":
            send_on_gpu(
                tensors,
                open_remote=lambda size: self._call("open_staging", (size,)),
                load_remote=lambda manifest: self._call("load_staged", (manifest,)),
                close_remote=lambda: self._call("close_staging", ()),
            )
        else:
            with write_shared_file(tensors) as path:
                self._call("load_file", (str(path),))

    def reset_prefix_cache(self) -> None:
        self._call("reset_prefix_cache", ())

    def sleep(self) -> None:
        self._call("sleep", ())

    def wake_weights(self) -> None:
        self._call("wake", ("weights",))

    def wake_cache(self) -> None:
        self._call("wake", ("kv_cache",))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            _end_group(self._process.pid)
            self._process.wait()
            stops.unregister_child(self._process.pid)
            self._process = None

    def log_tail(self, lines: int = 20) -> str:
        try:
            text = self._log_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _call(self, method: str, args, listen: Callable[[Sequence[Any]], None] | None = None):
        """Send a request, pass its messages to `listen`, and return its value.

        Raises:
          EngineDied: the pipe broke.
          EngineRefused: the engine answered with an exception.
          StopRequested: the engine, which may still be at work, has been closed.
        """
        if self._connection is None:
            raise EngineDied(f"{method}: the engine is not running")
        try:
            send_message(self._connection, (method, args))
            while True:
                while not self._connection.poll(POLL_SECONDS):
                    stops.check()
                message = receive_message(self._connection)
                if message[0] == "ok":
                    return message[1]
                if message[0] == "error":
                    raise EngineRefused(f"{message[1]}: {message[2]}")
                if listen is not None:
                    listen(message)
        except stops.StopRequested:
            self.close()  # it would go on, and take the time and memory that saving needs
            raise
        except (EOFError, OSError):
            code = self._exit_code()
            self.close()
            raise EngineDied(f"{method}: the engine's process ended ({code})") from None

    def _environment(self) -> dict[str, str]:
        inherited = public_environment()  # it reads local files alone
        if self._python != sys.executable:  # that interpreter has its own packages
            for name in ("PYTHONPATH", "PYTHONHOME"):
                inherited.pop(name, None)
        return DEFAULTS | inherited

    def _exit_code(self) -> str:
        if self._process is None:
            return "not running"
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _advice(self, error: str) -> str:
        if "ModuleNotFoundError" in error:
            return f"install vLLM for {self._python}, or give a Python that has it with --sampler.python"
        return f"the end of its log, {self._log_file}:\n{self.log_tail()}"


def _end_group(leader: int) -> None:
    """Kill a process group and wait until its memory is free for the next engine."""
    members = [process for process in psutil.process_iter() if _group_of(process.pid) == leader]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    psutil.wait_procs([process for process in members if process.pid != leader], timeout=KILL_SECONDS)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
