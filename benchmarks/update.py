"""Time scoring and the update (forward, backward, accumulation) of a micro-batch: seconds, MFU, GPU memory; also torch.

    python benchmarks/update.py --model 7b --case 3:0,0 1:28,14 --score 1 3    # random Qwen2.5-7B, no download
    python benchmarks/update.py --model FOLDER --case 2:0,0 --tokens 64 --torch    # no torch

MFU counts 3 forward passes for the update and 1 for scoring, over --peak-tflops. A pass has 2 FLOPs per token and
multiplied parameter (all but the input embedding), and causal attention with 2·T²·H·hd FLOPs per sequence and layer,
as `mfu_unshared` in docs/metrics.md.
"temp" is what the compiled program needs on top of its arguments, by its own account. Prints one JSON object per line,
and a table at the end.
"""

import gc
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import QWEN_7B
from kernel_times import kernel_seconds

from rlt_jax.configs import LossConfig
from rlt_jax.device.jax_setup import use_compilation_cache
from rlt_jax.device.monitor import PeakMonitor
from rlt_jax.errors import run_command
from rlt_jax.learner.backward import make_layerwise_accumulate
from rlt_jax.learner.objective import policy_objective
from rlt_jax.learner.step import LossRows, grpo_batches, zero_gradients
from rlt_jax.models import Model, ModelConfig, Params, forward_flops, init_model, load_model
from rlt_jax.rewards.logprobs import batched_logprobs
from rlt_jax.segments import MicroBatch, Tree
from rlt_jax.types import TrainBatch


def main(
    model: str = "7b",
    case: tuple[str, ...] = ("3:0,0", "1:0,0"),
    score: tuple[int, ...] = (),
    tokens: int = 12288,
    completion: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: all)")] = None,
    chunk: int = 1024,
    repeats: int = 3,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    peak_tflops: float = 790.0,
    torch: tuple[int, ...] = (1,),
    profile: bool = False,
) -> None:
    """Measure.

    Args:
      model: "7b" for random weights of that shape, or a model folder.
      case: "BATCH:ATTENTION,MLP": an update of BATCH sequences that saves the last ATTENTION layers' attention and the
        last MLP layers' MLP activations.
      score: sequences per forward pass of scoring.
      tokens: per sequence.
      completion: tokens per sequence that are trained on; None: all, as in training without a prompt.
      chunk: tokens whose logits exist at one time.
      repeats: timed runs of each case, of which the fastest counts.
      peak_tflops: of the GPU, for MFU.
      torch: sequences per micro-batch of transformers, with sdpa and checkpointed layers; empty: none.
      profile: also report where the time of each case goes, by kind of kernel.
    """
    use_compilation_cache()
    rows = []

    def done(row: dict) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(model)
        if model == "7b":
            folder = Path(scratch)
            (folder / "config.json").write_text(json.dumps(QWEN_7B))
        net, params = init_model(folder, 0, dtype=dtype) if model == "7b" else load_model(folder, dtype=dtype)
        config = net.config
        for size in score:
            row = run_score(net, params, size, tokens, chunk, repeats)
            done(row | mfu(config, size, tokens, None, row["seconds"], peak_tflops, passes=1))
        for text in case:
            size, attention, mlp = map(int, re.fullmatch(r"(\d+):(\d+),(\d+)", text).groups())  # type: ignore[union-attr]
            accumulate = make_layerwise_accumulate(
                net,
                policy_objective(LossConfig()),
                temperature=0.7,
                chunk=chunk,
                saved_attention=attention,
                saved_mlp=mlp,
            )
            row = run_update(text, accumulate, params, micro_batch(config, size, tokens, completion), repeats, profile)
            done(row | mfu(config, size, tokens, completion, row["seconds"], peak_tflops, passes=3))
        del params
        gc.collect()
        for size in torch:
            row = run_torch(folder, size, tokens, repeats, random=model == "7b")
            done(row | mfu(config, size, tokens, None, row["seconds"], peak_tflops, passes=3))
    print("\n| program | seconds | MFU | peak, GB (NVML) | temp, GB | first call, s |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['seconds']:.3f} | {row['mfu']:.3f} | {row['peak_gb']:.1f} "
            f"| {row.get('temp_gb', float('nan')):.2f} | {row['first_s']:.1f} |"
        )


def rows_alone(size: int, tokens: int) -> MicroBatch:
    """One row a sequence, none shared or padded: what is timed is the program, not the layout (shared_prompts.py)."""
    return MicroBatch([[Tree([row], 0, tokens)] for row in range(size)], size, tokens, "rows")


def random_rows(config: ModelConfig, size: int, tokens: int) -> list[np.ndarray]:
    """i32[T] each."""
    return list(np.random.default_rng(0).integers(0, config.vocab_size, (size, tokens), dtype=np.int32))


def micro_batch(config: ModelConfig, size: int, tokens: int, completion: int | None) -> TrainBatch:
    """Random tokens; the last `completion` of every row are trained on, or all but the first."""
    trained = tokens - 1 if completion is None else completion
    advantages = np.random.default_rng(1).normal(size=size).astype(np.float32)
    logps = [np.full(trained, -11.0, np.float32)] * size
    ((batch, _),) = grpo_batches(
        random_rows(config, size, tokens),
        LossRows(logps, advantages, logps),
        batches=[rows_alone(size, tokens)],
        longest=trained,
    )
    return jax.tree.map(jnp.asarray, batch)


def run_update(name: str, accumulate, params, batch, repeats: int, profile: bool) -> dict:
    """Time the accumulation and read its peak; the gradient sums exist throughout."""
    with PeakMonitor() as monitor:
        gradients = zero_gradients(params)
        start = time.perf_counter()
        compiled = accumulate.lower(params, gradients, batch, jnp.float32(1.0)).compile()
        first = time.perf_counter() - start
        temp = compiled.memory_analysis().temp_size_in_bytes / 1e9
        seconds = []
        with monitor.phase("update"):
            for _ in range(repeats + 1):  # the first is a warm-up
                start = time.perf_counter()
                gradients, aux = compiled(params, gradients, batch, jnp.float32(1.0))
                jax.block_until_ready((gradients, aux))
                seconds.append(time.perf_counter() - start)
        peak = monitor.metrics().get("memory/peak_gpu_gb/update", float("nan"))
        kernels = {}
        if profile:
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    gradients, aux = compiled(params, gradients, batch, jnp.float32(1.0))
                    jax.block_until_ready((gradients, aux))
                kinds, longest = kernel_seconds(Path(folder))
            kernels = {"kinds_s": kinds, "longest": longest}
    for leaf in jax.tree.leaves(gradients):
        leaf.delete()
    figures = {"seconds": min(seconds[1:]), "first_s": first, "peak_gb": peak, "temp_gb": temp}
    return {"name": f"update {name}"} | figures | kernels


def run_score(net: Model, params: Params, size: int, tokens: int, chunk: int, repeats: int) -> dict:
    """Time the log-probs of `size` rows in one forward pass, with host work and copies, and read its peak."""
    rows, lie = random_rows(net.config, size, tokens), [rows_alone(size, tokens)]
    seconds = []
    with PeakMonitor() as monitor, monitor.phase("score"):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            batched_logprobs(net, params, rows, lie, temperature=0.7, chunk=chunk)
            seconds.append(time.perf_counter() - start)
    peak = monitor.metrics().get("memory/peak_gpu_gb/score", float("nan"))
    return {"name": f"score {size}", "seconds": min(seconds[1:]), "first_s": seconds[0], "peak_gb": peak}


def run_torch(folder: Path, size: int, tokens: int, repeats: int, *, random: bool) -> dict:
    """Time transformers with sdpa, checkpointed layers, and log-probs in checkpointed chunks of 1024 tokens."""
    import torch
    from torch.utils.checkpoint import checkpoint
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        if random:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            net = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        else:
            net = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, attn_implementation="sdpa", trust_remote_code=False
            )
    net.train()
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, net.config.vocab_size, (size, tokens), device=device)

    def chunk_logps(hidden, targets):
        logits = net.lm_head(hidden).float() / 0.7
        return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)

    def step():
        hidden = net.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        chunks = zip(hidden.split(1024, 1), ids[:, 1:].split(1024, 1))
        logps = torch.cat([checkpoint(chunk_logps, h, t, use_reentrant=False) for h, t in chunks], 1)
        (-logps.mean()).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    with PeakMonitor() as monitor:
        start = time.perf_counter()
        step()
        first = time.perf_counter() - start
        monitor.reset()
        seconds = []
        with monitor.phase("update"):
            for _ in range(repeats):
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
        peak = monitor.metrics().get("memory/peak_gpu_gb/update", float("nan"))
    net.to("meta")  # frees its memory, since two closures still reference it
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return {
        "name": f"transformers batch {size}, bf16 gradients",
        "seconds": min(seconds),
        "first_s": first,
        "peak_gb": peak,
    }


def mfu(
    config: ModelConfig,
    size: int,
    tokens: int,
    completion: int | None,
    seconds: float,
    peak_tflops: float,
    *,
    passes: int,
) -> dict:
    """Model FLOPs of the micro-batch, and their share of what the GPU could have computed in that time."""
    trained = tokens if completion is None else completion
    flops = passes * size * forward_flops(config, tokens=tokens, logits=trained, pairs=tokens**2 / 2)
    return {"tflop": flops / 1e12, "mfu": flops / seconds / (peak_tflops * 1e12)}


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
