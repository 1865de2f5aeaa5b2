"""The engine's side of `rlt_jax.sampling.child`: a process that owns a vLLM engine and serves a trainer over a pipe.

Run as `PYTHON rlt_engine.py FD` by `rlt_jax.sampling.child`, under any Python that has vLLM 0.26 to 0.32. It needs
nothing of rlt_jax but the other files in this folder, and exchanges plain tuples, numbers and bytes (`rlt_messages`).

A request is (method, args). The answer is ("ok", value) or ("error", exception type, text), preceded by any number of
("completion", index, token ids, log-probs, finished) and ("tokens", count) while it generates. The process group ends
when the trainer's end of the pipe closes, whatever the engine is doing.
"""

import os
import queue
import signal
import sys
import threading
import time
from array import array
from functools import partial
from multiprocessing.connection import Connection

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which an isolated Python leaves out

from rlt_messages import receive_message, send_message

# vLLM's own kernels, and CUDA graphs for decoding: its compiler takes half a minute or more at every start.
WITHOUT_COMPILER = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}

ON_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process instead of three; on a GPU the scheduler runs concurrently
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer computes on the same cores
    "TORCH_COMPILE_DISABLE": "1",  # the first generation takes 8.6 s with the compiler and 0.03 s without
}

CPU_BATCHED_TOKENS = 4096
STREAM_INTERVAL = 32  # tokens per sequence between two outputs: progress without a Python object per token
PROGRESS_SECONDS = 0.2  # between two reports


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    os.register_at_fork(after_in_child=connection.close)  # else vLLM's processes would keep the pipe open
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    engine: Engine | None = None
    while True:
        method, args = requests.get()
        try:
            if method == "start":
                engine = Engine(partial(send_message, connection), **args)
                value = engine.describe()
            elif engine is None:
                raise RuntimeError(f"{method} before start")
            else:
                value = engine.answer(method, args)
        except Exception as error:
            import traceback

            traceback.print_exc()  # to the engine's log; the trainer gets the message
            send_message(connection, ("error", type(error).__name__, str(error)))
        else:
            send_message(connection, ("ok", value))


def _receive(connection: Connection, requests: queue.SimpleQueue) -> None:
    """Queue the trainer's requests; when it is gone, end this process and those it started."""
    try:
        while True:
            requests.put(receive_message(connection))
    except (EOFError, OSError):
        os.killpg(os.getpgrp(), signal.SIGKILL)


class Engine:
    """A vLLM engine that starts with dummy weights, and samples after the first push of real ones."""

    def __init__(self, send, *, model: str, gpu_memory_bytes: int | None, options: dict):
        import torch

        self._send = send
        self._on_cuda = torch.cuda.is_available()
        if not self._on_cuda:
            os.environ.update(ON_CPU | os.environ)  # before vLLM and torch's threads read it
        import vllm
        from vllm.platforms import current_platform

        if self._on_cuda:
            if gpu_memory_bytes is not None:
                total = current_platform.get_device_total_memory()  # from the driver: no CUDA context in this process
                options = {**options, "gpu_memory_utilization": gpu_memory_bytes / total}
            options = {"compilation_config": WITHOUT_COMPILER, **options, "enable_sleep_mode": True}
        else:
            options = {
                **options,
                "enforce_eager": True,
                "block_size": 32,
                "distributed_executor_backend": "uni",
                "enable_chunked_prefill": False,  # on a CPU, vLLM crashes on a seeded prompt that is cut in two
                "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, options["max_model_len"]),
            }
        self._llm = vllm.LLM(
            model=model,
            load_format="dummy",
            skip_tokenizer_init=True,
            trust_remote_code=False,  # a model's folder runs no code; never an option
            generation_config="vllm",  # else the model folder's penalties and top-p apply silently
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            disable_log_stats=True,
            stream_interval=STREAM_INTERVAL,
            worker_extension_cls="rlt_worker.WeightReceiver",
            **options,
        )
        self._asleep: set[str] = set()
        self._version = vllm.__version__

    def describe(self) -> dict:
        config = self._llm.llm_engine.vllm_config
        block_size, blocks = config.cache_config.block_size, config.cache_config.num_gpu_blocks
        return {
            "version": self._version,
            "device": "cuda" if self._on_cuda else "cpu",
            "kv_tokens": (blocks or 0) * block_size,
            "block_size": block_size,
        }

    def answer(self, method: str, args):
        match method:
            case "generate":
                return self._generate(*args)
            case "prompt_logprobs":
                return self._prompt_logprobs(*args)
            case "load_file" | "open_staging" | "load_staged" | "close_staging":
                return self._in_worker(method, *args)
            case "reset_prefix_cache":
                if not self._llm.reset_prefix_cache():
                    raise RuntimeError("the prefix cache could not be reset: some of its blocks are in use")
                return None
            case "sleep":
                return self._sleep()
            case "wake":
                return self._wake(*args)
            case _:
                raise ValueError(f"unknown method {method!r}")

    def _in_worker(self, method: str, *args):
        (value,) = self._llm.collective_rpc(method, args=args)
        return value

    def _sleep(self) -> None:
        if self._on_cuda and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, part: str) -> None:
        if part in self._asleep:
            self._llm.wake_up(tags=[part])
            self._asleep.discard(part)

    def _generate(self, jobs: list, sampling: dict) -> None:
        """Sample all jobs (index, prompt ids, seed) in one submission, and send each completion when it is done."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        for index, prompt, seed in jobs:
            params = SamplingParams(
                **sampling,
                seed=seed,
                n=1,
                logprobs=0,  # of the sampled token only
                flat_logprobs=True,  # a list of numbers instead of a dictionary per token
                ignore_eos=True,  # the trainer's EOS tokens end it, through stop_token_ids
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            engine.add_request(str(index), TokensPrompt(prompt_token_ids=list(prompt)), params)
        tokens: dict[str, array] = {str(index): array("i") for index, _, _ in jobs}
        logps: dict[str, array] = {str(index): array("f") for index, _, _ in jobs}
        sampled, reported = 0, time.monotonic()
        while engine.has_unfinished_requests():
            for output in engine.step():
                (completion,) = output.outputs
                tokens[output.request_id].extend(completion.token_ids)
                logps[output.request_id].extend(completion.logprobs.logprobs)
                sampled += len(completion.token_ids)
                if output.finished:
                    self._send(
                        (
                            "completion",
                            int(output.request_id),
                            tokens.pop(output.request_id).tobytes(),
                            logps.pop(output.request_id).tobytes(),
                            completion.finish_reason == "stop",
                        )
                    )
            if time.monotonic() - reported > PROGRESS_SECONDS:
                self._send(("tokens", sampled))
                reported = time.monotonic()
        self._send(("tokens", sampled))

    def _prompt_logprobs(self, prompt: list) -> bytes:
        """Log-probs of the prompt's tokens after the first at temperature 1, f32[len(prompt) - 1] as bytes."""
        from vllm import SamplingParams, TokensPrompt

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        (output,) = self._llm.generate([TokensPrompt(prompt_token_ids=list(prompt))], params, use_tqdm=False)
        entries = zip(prompt[1:], output.prompt_logprobs[1:])
        return array("f", (entry[token].logprob for token, entry in entries)).tobytes()


if __name__ == "__main__":
    main()
