"""Time scoring and the update of groups of completions, with shared prompts and segments, and row by row.

    python benchmarks/shared_prompts.py --tokens 36864 43008              # random Qwen2.5-7B: no download
    python benchmarks/shared_prompts.py --lengths 2000 --groups 4         # completions of log-normal lengths
    python benchmarks/shared_prompts.py --small                           # two small layers, on a CPU

"rows" is one row a sequence, padded to its bucket, --rows at a time, with log-probs of all tokens in scoring: what was
done before prompts were shared. The others lay rows out as a run does. Both are compared with each other: the largest
difference of a log-prob, and of a gradient relative to its largest element. A table at the end.
"""

import gc
import json
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")

import jax
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
from rlt_jax.learner.step import LossRows, grpo_batches, sum_gradients
from rlt_jax.models import Params, batches_for, dtype_of, init_model
from rlt_jax.models.attention import kernel_name
from rlt_jax.rewards.logprobs import batched_logprobs
from rlt_jax.segments import MicroBatch, micro_batches

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def main(
    tokens: tuple[int, ...] = (36864,),
    rows: int = 3,
    groups: int = 1,
    group: int = 24,
    prompt: int = 6144,
    completion: int = 6144,
    lengths: int | None = None,
    saved_attention: int = 0,
    saved_mlp: int = 0,
    chunk: int = 1024,
    repeats: int = 1,
    only_shared: bool = False,
    profile: bool = False,
    small: bool = False,
) -> None:
    """Measure.

    Args:
      tokens: of a forward and backward pass; each is timed.
      rows: of a pass, row by row.
      groups: questions.
      group: completions of each.
      prompt, completion: their lengths, tokens; of completions the longest.
      lengths: median of log-normal lengths of completions (sigma 0.5; prompts 900, sigma 0.5); None: all the longest.
      only_shared: leave out row by row.
      profile: also say where the time of one pass of each goes, by kind of kernel.
      small: a small model instead of Qwen2.5-7B's shape.
    """
    use_compilation_cache()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(QWEN_7B | (SMALL if small else {})))
        model, params = init_model(folder, 0, dtype="float32" if small else "bfloat16")
    kernel = kernel_name(dtype_of(params), model.config.head_dim)
    rng = np.random.default_rng(0)
    sizes = draw_lengths(rng, groups, group, prompt, completion, lengths)
    ids = []
    for length, own in sizes:
        first = rng.integers(0, model.config.vocab_size, length, dtype=np.int32)
        ids += [np.concatenate([first, rng.integers(0, model.config.vocab_size, n, dtype=np.int32)]) for n in own]
    own = [n for _, owns in sizes for n in owns]
    advantages = rng.normal(size=len(ids)).astype(np.float32)

    layouts: dict[str, Sequence[MicroBatch]] = {}
    if not only_shared:
        layouts["rows"] = micro_batches(ids, tokens=rows * (prompt + completion), arrangement="rows")
    layouts |= {f"{kernel}, {n}": batches_for(model.config, dtype_of(params), ids, tokens=n) for n in tokens}
    accumulate = make_layerwise_accumulate(
        model,
        policy_objective(LossConfig()),
        temperature=0.7,
        chunk=chunk,
        saved_attention=saved_attention,
        saved_mlp=saved_mlp,
    )
    loss_rows = LossRows(
        [np.full(n, -11.0, np.float32) for n in own], advantages, [np.zeros(n, np.float32) for n in own]
    )

    def score(batches: Sequence[MicroBatch], wanted: Sequence[np.ndarray] | None) -> list[np.ndarray]:
        return batched_logprobs(model, params, ids, batches, temperature=0.7, chunk=chunk, wanted=wanted)

    def update(batches: Sequence[MicroBatch]) -> tuple[Params, dict[str, jax.Array]]:
        step = grpo_batches(ids, loss_rows, batches=batches, longest=completion)
        return jax.block_until_ready(sum_gradients(accumulate, params, step))

    table: list[dict] = []
    exact: dict[str, Any] = {}
    for name, batches in layouts.items():
        wanted = None if name == "rows" else [np.arange(len(row) - n, len(row)) for row, n in zip(ids, own)]
        row = {"layout": name, "passes": len(batches), "computed": sum(batch.computed for batch in batches)}
        row |= {"distinct": sum(batch.distinct for batch in batches), "real": sum(map(len, ids))}
        with PeakMonitor() as monitor:
            with monitor.phase("score"):
                seconds, logps = timed(partial(score, batches, wanted), repeats)
            row |= {"score_first_s": seconds[0], "score_s": min(seconds[1:])}
            with monitor.phase("update"):
                seconds, (gradients, losses) = timed(partial(update, batches), repeats, free=True)
            row |= {"update_first_s": seconds[0], "update_s": min(seconds[1:]), "loss": float(losses["loss"])}
            row |= {key.split("/")[-1]: value for key, value in monitor.metrics().items() if "peak_gpu" in key}
        for leaf in jax.tree.leaves(gradients) if profile else ():
            leaf.delete()
        for what, call in (("score", partial(score, batches[:1], wanted)), ("update", partial(update, batches[:1]))):
            if profile:
                print(json.dumps({"profile": what, "layout": name} | where_time_goes(call)), flush=True)
        if profile:
            gradients, _ = update(batches)
        logps = [values[-n:] for values, n in zip(logps, own)]
        sample = [np.asarray(g.reshape(-1)[:: max(g.size // 100_000, 1)]) for g in jax.tree.leaves(gradients)]
        for leaf in jax.tree.leaves(gradients):
            leaf.delete()
        exact = exact or {"logps": logps, "sample": sample}
        row["logp_diff"] = max(float(np.abs(a - b).max()) for a, b in zip(logps, exact["logps"]))
        row["logp_mean_diff"] = float(np.mean([np.abs(a - b).mean() for a, b in zip(logps, exact["logps"])]))
        row["gradient_diff"] = max(map(distance, sample, exact["sample"]))
        print(json.dumps(row), flush=True)
        table.append(row)
        del gradients, losses
        gc.collect()
    print(
        f"\n{len(ids)} completions, the longest row {max(map(len, ids))} tokens; rows: {rows} x {prompt + completion}"
    )
    print("| layout | passes | computed | distinct | score, s | update, s | GB score, update | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for row in table:
        peaks = ", ".join(f"{row.get(name, float('nan')):.1f}" for name in ("score", "update"))
        print(
            f"| {row['layout']} | {row['passes']} | {row['computed']:,} | {row['distinct']:,} | {row['score_s']:.2f} "
            f"({table[0]['score_s'] / row['score_s']:.2f} x) | {row['update_s']:.2f} "
            f"({table[0]['update_s'] / row['update_s']:.2f} x) | {peaks} | {row['logp_mean_diff']:.2g} nats, "
            f"{row['gradient_diff']:.2g} |"
        )


def draw_lengths(
    rng: np.random.Generator, groups: int, group: int, prompt: int, completion: int, median: int | None
) -> list[tuple[int, list[int]]]:
    """(prompt's tokens, each completion's) of each question."""
    if median is None:
        return [(prompt, [completion] * group)] * groups
    prompts = np.clip(900 * np.exp(0.5 * rng.normal(size=groups)), 1, prompt).astype(int)
    own = np.clip(median * np.exp(0.5 * rng.normal(size=(groups, group))), 1, completion).astype(int)
    return [(int(p), [int(n) for n in ns]) for p, ns in zip(prompts, own)]


def timed(call, repeats: int, *, free: bool = False):
    """Seconds of each call, the first a warm-up, and what the last returned."""
    seconds, result = [], None
    for _ in range(repeats + 1):
        if free and result is not None:
            for leaf in jax.tree.leaves(result):
                leaf.delete()
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return seconds, result


def where_time_goes(call) -> dict:
    """Seconds on the GPU by kind of kernel, and the longest kernels."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            result = call()
        kinds, longest = kernel_seconds(Path(folder))
    for leaf in jax.tree.leaves(result):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    return {"kinds_s": kinds, "longest": longest}


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
