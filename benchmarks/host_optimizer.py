"""Time AdamW with its state in pinned host memory: seconds per step, GB/s each way, memory of GPU and host.

    python benchmarks/host_optimizer.py --model 7b                          # random Qwen2.5-7B, no download
    python benchmarks/host_optimizer.py --model 7b --moments bfloat16       # 46 GB of host memory instead of 76
    python benchmarks/host_optimizer.py --model tiny                        # runs anywhere

The GPU holds weights and float32 gradient sums throughout, as in training; the gradients are set to a hundredth of the
weights. Prints one JSON object per line, and a table at the end. GB is 1e9 bytes; GPU memory is as the driver reports.
"""

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")

import jax
import jax.numpy as jnp
import psutil
import tyro
from common import QWEN_7B, print_figures

from rlt_jax.device.jax_setup import use_compilation_cache
from rlt_jax.device.monitor import PeakMonitor, memory_metrics
from rlt_jax.device.pinned import LIMIT_VARIABLE, host_bytes, pool_limit_gib
from rlt_jax.device.placement import device_memory
from rlt_jax.errors import run_command
from rlt_jax.learner.host_adamw import HostState, cut_shards, init_host_state, make_host_apply
from rlt_jax.learner.optimizer import make_optimizer
from rlt_jax.models import Params, build_model, init_model, read_config
from rlt_jax.types import GB, Dtype

T = TypeVar("T")

TINY = QWEN_7B | {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2000,
}


def main(
    model: str = "7b",
    moments: Dtype = "float32",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    steps: int = 5,
    max_grad_norm: float = 1.0,
    trace: Path | None = None,
) -> None:
    """Measure.

    Args:
      model: "7b" or "tiny" for random weights of that shape, or a model folder whose shape is used.
      moments: dtype of the stored moments.
      steps: timed steps, after one that compiles.
      max_grad_norm: gradients are clipped to this global norm.
      trace: folder for a profile of one more step.
    """
    results: dict[str, object] = {}

    def note(**values: object) -> None:
        results.update(values)
        print(json.dumps(values), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(model)
        if model in ("7b", "tiny"):
            folder = Path(scratch)
            (folder / "config.json").write_text(json.dumps(QWEN_7B if model == "7b" else TINY))
        config = read_config(folder)

    shapes = build_model(config).shapes(dtype)
    num_parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    pinned = host_bytes(num_parameters, moments, master_in_weights=dtype == "float32")
    os.environ.setdefault(LIMIT_VARIABLE, str(pool_limit_gib(pinned)))  # JAX reads it when it starts, below
    note(
        parameters=num_parameters,
        shards=len(cut_shards(shapes)),
        pinned_gb=pinned / GB,
        pinned_limit_gib=int(os.environ[LIMIT_VARIABLE]),
        host_used_before_gb=psutil.virtual_memory().used / GB,
    )

    use_compilation_cache()
    _, params = init_model(config, 0, dtype=dtype)
    gradients = jax.jit(lambda tree: jax.tree.map(lambda leaf: 0.01 * leaf.astype(jnp.float32), tree))(params)
    jax.block_until_ready(gradients)
    options = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.1}
    options |= {"max_grad_norm": max_grad_norm}
    _, schedule = make_optimizer(
        learning_rate=1e-6, max_steps=steps + 2, lr_scheduler="cosine", warmup_ratio=0.1, **options
    )
    apply = make_host_apply(schedule, **options)

    seconds, state = timed(lambda: init_host_state(params, moments=moments))
    note(first_touch_s=seconds, first_touch_gb_per_s=pinned / GB / seconds, **host_memory())
    seconds, _ = timed(lambda: copy_to_device(state))
    note(to_gpu_alone_gb_per_s=pinned / GB / seconds)

    def step(params: Params, state: HostState) -> tuple[float, Params, HostState, jax.Array]:
        seconds, (params, state, norm) = timed(lambda: apply(params, state, gradients))
        return seconds, params, state, norm

    with PeakMonitor() as monitor:
        with monitor.phase("held"):
            pass
        seconds, params, state, norm = step(params, state)
        note(first_step_s=seconds, grad_norm=float(norm))
        times = []
        with monitor.phase("steps"):
            for _ in range(steps):
                seconds, params, state, norm = step(params, state)
                times.append(seconds)
        note(steps_s=times, **host_memory(), **monitor.metrics())
    median = statistics.median(times)
    note(step_s=median, gb_per_s_each_way=pinned / GB / median)
    if trace is not None:
        with jax.profiler.trace(trace):
            step(params, state)

    print_figures(results)


def copy_to_device(state: HostState) -> None:
    """Copy the state's shards to the device one after the other, dropping each copy."""
    for shard in state.shards:
        jax.block_until_ready(jax.device_put(shard, device_memory()))


def host_memory() -> dict[str, float]:
    """This process's resident memory (which excludes pinned pages with some drivers), and all host memory in use."""
    return {"host_rss_gb": memory_metrics()["memory/host_gb"], "host_used_gb": psutil.virtual_memory().used / GB}


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds until the result of `call()` is ready, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
