"""Forward, backward and gradient accumulation of one GRPO micro-batch: seconds, MFU, card memory; torch beside it.

    python benchmarks/update.py --model 7b --batch 1 3 --tokens 12288        # random Qwen2.5-7B, no download
    python benchmarks/update.py --model FOLDER --batch 2 --tokens 64 --no-torch

MFU counts 3 forward passes: 6 FLOPs a token and parameter that is multiplied (all but the input embedding), and causal
attention, 6·T²·H·hd a sequence and layer, over --peak-tflops. One JSON object a line, a table last.
"""

import gc
import json
import os
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
from vllm_engine import QWEN_7B

from rlt_jax.backward import make_layerwise_accumulate
from rlt_jax.losses import grpo_loss
from rlt_jax.memory.monitor import PeakMonitor
from rlt_jax.models import ModelConfig, init_model, load_model
from rlt_jax.run import use_compilation_cache
from rlt_jax.types import TrainBatch
from rlt_jax.update import zero_gradients


def main(
    model: str = "7b",
    batch: tuple[int, ...] = (1, 3),
    tokens: int = 12288,
    completion: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: all)")] = None,
    chunk: tuple[int, ...] = (1024,),
    keep: tuple[str, ...] = ("0,0",),
    repeats: int = 3,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    peak_tflops: float = 790.0,
    torch: bool = True,
) -> None:
    """Measure every combination of batch, chunk and keep.

    Args:
      model: "7b" for random weights of that shape, or a model folder.
      batch: sequences of a micro-batch.
      tokens: of a sequence.
      completion: tokens of a sequence that are trained on; None: all, as a training program without a prompt.
      chunk: tokens whose logits exist at one time.
      keep: "MLP,ATTENTION": of so many last layers these are kept from the forward pass.
      repeats: timed runs of each combination, the fastest counts.
      peak_tflops: of the card, for MFU.
      torch: also run transformers with sdpa and checkpointing on the same micro-batches.
    """
    use_compilation_cache()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(model)
        if model == "7b":
            folder = Path(scratch)
            (folder / "config.json").write_text(json.dumps(QWEN_7B))
        net, params = init_model(folder, 0, dtype=dtype) if model == "7b" else load_model(folder, dtype=dtype)
        for size in batch:
            for chunk_size in chunk:
                for kept in keep:
                    mlp, attention = map(int, kept.split(","))
                    accumulate = make_layerwise_accumulate(
                        net,
                        loss_of_logps,
                        temperature=0.7,
                        chunk=chunk_size,
                        kept_mlp=mlp,
                        kept_attention=attention,
                    )
                    name = f"rlt_jax batch {size} chunk {chunk_size} keep {kept}"
                    rows.append(
                        run_ours(name, accumulate, params, micro_batch(net.config, size, tokens, completion), repeats)
                    )
                    rows[-1] |= mfu(net.config, size, tokens, completion, rows[-1]["seconds"], peak_tflops)
                    print(json.dumps(rows[-1]), flush=True)
        config = net.config
        del params
        gc.collect()
        if torch:
            for size in batch:
                rows.append(run_torch(folder, size, tokens, repeats, random=model == "7b"))
                rows[-1] |= mfu(config, size, tokens, None, rows[-1]["seconds"], peak_tflops)
                print(json.dumps(rows[-1]), flush=True)
    print("\n| program | seconds | MFU | peak, GB (NVML) | first call, s |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['seconds']:.3f} | {row['mfu']:.3f} | {row['peak_gb']:.1f} | {row['first_s']:.1f} |"
        )


def loss_of_logps(logps: jax.Array, batch: TrainBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The GRPO loss on-policy, as the trainer takes it."""
    old = jax.lax.stop_gradient(logps)
    return grpo_loss(logps, old, batch.ref_logps, batch.advantages, batch.mask, beta=0.04)


def micro_batch(config: ModelConfig, size: int, tokens: int, completion: int | None) -> TrainBatch:
    """Random tokens; the last `completion` of every row are trained on."""
    rng = np.random.default_rng(0)
    mask = np.broadcast_to(np.arange(tokens) >= (1 if completion is None else tokens - completion), (size, tokens))
    zeros = np.zeros((size, tokens), np.float32)
    return TrainBatch(
        ids=jnp.asarray(rng.integers(0, config.vocab_size, (size, tokens)), jnp.int32),
        mask=jnp.asarray(mask),
        ref_logps=jnp.asarray(zeros - 11.0),
        sampler_logps=jnp.asarray(zeros),
        advantages=jnp.asarray(rng.normal(size=size), jnp.float32),
    )


def run_ours(name, accumulate, params, batch, repeats) -> dict:
    """Seconds and peak of the accumulation; the accumulators exist throughout."""
    with PeakMonitor() as monitor:
        gradients = zero_gradients(params)
        start = time.perf_counter()
        gradients, aux = accumulate(params, gradients, batch, 1.0)
        jax.block_until_ready((gradients, aux))
        first = time.perf_counter() - start
        monitor.reset()
        seconds = []
        with monitor.phase("update"):
            for _ in range(repeats):
                start = time.perf_counter()
                gradients, aux = accumulate(params, gradients, batch, 1.0)
                jax.block_until_ready((gradients, aux))
                seconds.append(time.perf_counter() - start)
        peak = monitor.metrics().get("memory/peak_card_gb/update", float("nan"))
    for leaf in jax.tree.leaves(gradients):
        leaf.delete()
    return {"name": name, "seconds": min(seconds), "first_s": first, "peak_gb": peak}


def run_torch(folder: Path, size: int, tokens: int, repeats: int, *, random: bool) -> dict:
    """transformers with sdpa, checkpointed layers, and log-probs in checkpointed chunks of 1024 tokens."""
    import torch
    from torch.utils.checkpoint import checkpoint
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        if random:
            config = AutoConfig.from_pretrained(folder)
            net = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        else:
            net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    net.train()
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, net.config.vocab_size, (size, tokens), device=device)

    def chunk_logps(hidden, targets):
        logits = net.lm_head(hidden).float() / 0.7
        return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)

    def step():
        hidden = net.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        pieces = zip(hidden.split(1024, 1), ids[:, 1:].split(1024, 1))
        logps = torch.cat([checkpoint(chunk_logps, h, t, use_reentrant=False) for h, t in pieces], 1)
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
        peak = monitor.metrics().get("memory/peak_card_gb/update", float("nan"))
    net.to("meta")  # frees its memory: two closures still hold it
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
    config: ModelConfig, size: int, tokens: int, completion: int | None, seconds: float, peak_tflops: float
) -> dict:
    """Model FLOPs of the micro-batch over what the card could have done in that time."""
    heads = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * heads + 2 * kv + 3 * config.intermediate_size)
    head = config.hidden_size * config.vocab_size
    trained = tokens if completion is None else completion
    flops = 6 * size * (tokens * config.num_hidden_layers * layer + trained * head)
    flops += 6 * size * tokens**2 * heads * config.num_hidden_layers
    return {"tflop": flops / 1e12, "mfu": flops / seconds / (peak_tflops * 1e12)}


if __name__ == "__main__":
    tyro.cli(main)
