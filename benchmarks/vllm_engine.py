"""Compare the vLLM child engine with bare vLLM: start, sync, sleep, memory, tokens/s, agreement of log-probs.

    python benchmarks/vllm_engine.py --model 7b                 # random Qwen2.5-7B, no download
    python benchmarks/vllm_engine.py --model FOLDER --dtype float32 --prompt 64 --completion 32

Prints one JSON object per line, and a table at the end. The bare engine runs in its own process after ours has ended,
with the same model, memory, prompts and sampling; JAX holds the trainer's weights in both cases.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")

import numpy as np
import tyro
from common import QWEN_7B, print_figures

from rlt_jax.errors import run_command


def main(
    model: str = "7b",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    questions: int = 4,
    group: int = 24,
    prompt: int = 1024,
    completion: int = 1024,
    memory_gb: float = 46.75,
    rounds: int = 3,
    bare: bool = True,
    restart: bool = True,
    compilation: bool = False,
) -> None:
    """Measure.

    Args:
      model: "7b" for random weights of that shape, or a model folder.
      questions: prompts per submission.
      group: completions per prompt.
      prompt: tokens of every prompt.
      completion: tokens of every completion; none ends early.
      memory_gb: the engine's share of the GPU.
      rounds: repetitions of sync, sampling and sleep, and of bare sampling.
      bare: also run bare vLLM.
      restart: also kill the engine while it samples, and restart it.
      compilation: let vLLM compile the model in our engine too, as bare vLLM does.
    """
    from rlt_jax.device.monitor import gpu_memory_reader
    from rlt_jax.sampling.child import ChildEngine
    from rlt_jax.sampling.engine import EngineDied, Job

    gpu = gpu_memory_reader() or (lambda: float("nan"))
    results: dict[str, object] = {"gpu_before_gb": gpu()}

    def note(**values: object) -> None:
        results.update(values)
        print(json.dumps(values, default=float), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(model)
        if model == "7b":
            folder = Path(scratch) / "qwen7b"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(QWEN_7B))
        options = {
            "dtype": dtype,
            "max_model_len": prompt + completion + 16,
            "max_num_seqs": questions * group,
            "seed": 0,
        }
        if compilation:
            options["compilation_config"] = {}
        log_file = Path(os.environ.get("OUT", scratch)) / "vllm.log"
        start = time.perf_counter()
        engine = ChildEngine(
            folder, gpu_memory_bytes=round(memory_gb * 1e9), options=options, log_file=log_file, weights_on_gpu=True
        )
        note(start_s=time.perf_counter() - start, facts=engine.facts, awake_gb=gpu())
        note(first_sleep_s=timed(engine.sleep), asleep_gb=gpu())

        import jax

        from rlt_jax.models import init_model, load_model, placed_tensors
        from rlt_jax.rewards.logprobs import row_logprobs
        from rlt_jax.sampling.weights import Tensor

        net, params = init_model(folder, 0, dtype=dtype) if model == "7b" else load_model(folder, dtype=dtype)
        jax.block_until_ready(params)
        note(with_trainer_weights_gb=gpu())
        tensors = [Tensor(*place) for place in placed_tensors(net, params)]
        if net.config.tie_word_embeddings:
            tensors.append(Tensor("lm_head.weight", net.head(params), None))
        rng = np.random.default_rng(0)
        prompts = [
            rng.integers(0, min(net.config.vocab_size, 150000), prompt).astype(np.int32) for _ in range(questions)
        ]
        jobs = [Job(i * group + j, ids, 7919 * i + j) for i, ids in enumerate(prompts) for j in range(group)]
        sampling = {"max_tokens": completion, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

        def submit(jobs=jobs, length=completion, on_tokens=lambda count: None):
            completions = []
            engine.generate(jobs, sampling | {"max_tokens": length}, completions.append, on_tokens)
            return completions

        def logprobs(params):
            return [ids[1:] for ids in row_logprobs(net, params, prompts, temperature=1.0, tokens=1, chunk=1024)]

        for i in range(rounds):
            wake = timed(engine.wake_weights)
            push = timed(lambda: engine.load(tensors))
            cache = timed(engine.wake_cache)
            reset = timed(engine.reset_prefix_cache)
            submit([Job(0, prompts[0][:256], 1)], 8)
            theirs = [engine.prompt_logprobs(ids) for ids in prompts]
            ours = logprobs(params)
            seconds = timed(submit)
            note(
                round=i,
                wake_weights_s=wake,
                push_s=push,
                wake_cache_s=cache,
                reset_s=reset,
                **differences("ours_vllm", ours, theirs),
                ours_tokens_per_s=len(jobs) * completion / seconds,
                awake_gb=gpu(),
            )
            note(sleep_s=timed(engine.sleep), asleep_with_trainer_gb=gpu())

        if dtype == "bfloat16":  # which of the two is closer to these weights without rounding?
            exact = logprobs(jax.tree.map(lambda leaf: leaf.astype("float32"), params))
            note(**differences("ours_float32", ours, exact), **differences("vllm_float32", theirs, exact))
        if restart:
            engine.wake_weights()
            engine.load(tensors)
            engine.wake_cache()
            try:
                submit(on_tokens=lambda count: os.kill(engine.pid, signal.SIGKILL))
                note(killed=False)
            except EngineDied as error:
                note(killed=str(error), gpu_after_kill_gb=gpu(), restart_s=timed(engine.start))
            note(completions_after_restart=len(submit(jobs[:4], 8)))
        engine.close()
        note(closed_gb=gpu())

        if bare:
            arguments = {"model": str(folder), "memory_gb": memory_gb, "questions": questions, "group": group}
            options.pop("compilation_config", None)
            arguments |= {"options": options, "sampling": sampling, "prompts": [ids.tolist() for ids in prompts]}
            arguments |= {"rounds": rounds}
            spec = Path(scratch) / "bare.json"
            spec.write_text(json.dumps(arguments))
            subprocess.run([sys.executable, __file__, "--bare-process", str(spec)], check=True)
            note(**json.loads(spec.read_text()))
            best = float(results["bare_tokens_per_s"])  # type: ignore[arg-type]
            note(ours_over_bare=float(results["ours_tokens_per_s"]) / best)  # type: ignore[arg-type]
    print_figures(results)


def bare_process(spec: Path) -> None:
    """Time `LLM.generate` as its documentation shows it, with our sampling parameters."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; used only on a CPU
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt

    arguments = json.loads(spec.read_text())
    options = dict(arguments["options"])
    if torch.cuda.is_available():
        options["gpu_memory_utilization"] = arguments["memory_gb"] * 1e9 / torch.cuda.mem_get_info()[1]
    start = time.perf_counter()
    llm = LLM(
        model=arguments["model"], load_format="dummy", skip_tokenizer_init=True, generation_config="vllm", **options
    )
    result = {"bare_start_s": time.perf_counter() - start}
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in arguments["prompts"]]
    for name, extra in (("bare_tokens_per_s", {}), ("bare_seeded_logprobs_tokens_per_s", {"seed": 1, "logprobs": 0})):
        params = SamplingParams(
            n=arguments["group"], ignore_eos=True, detokenize=False, **arguments["sampling"], **extra
        )
        for _ in range(arguments["rounds"]):
            llm.reset_prefix_cache()
            start = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
            result[name] = tokens / (time.perf_counter() - start)
    spec.write_text(json.dumps(result))


def differences(name: str, ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, float]:
    """Mean and largest absolute difference of log-probs, nats."""
    difference = np.abs(np.concatenate(ours) - np.concatenate(theirs))
    return {f"logp_{name}_mean": float(difference.mean()), f"logp_{name}_max": float(difference.max())}


def timed(call) -> float:
    """Seconds that `call()` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare-process"]:
        bare_process(Path(sys.argv[2]))
    else:
        run_command(lambda: tyro.cli(main))
