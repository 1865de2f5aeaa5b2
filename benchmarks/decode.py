"""Time the native sampler: seconds and tokens/s of one batch, and milliseconds per token.

    python benchmarks/decode.py --model FOLDER --prompt 320 --completion 192
    XLA_FLAGS=... python benchmarks/decode.py --model FOLDER      # the effect of a compiler flag

All completions have full length. Prompts are random and distinct, with `group` completions each. Prints a JSON object.
"""

import json
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from rlt_jax.device.jax_setup import prepare_memory, use_compilation_cache
from rlt_jax.device.monitor import memory_metrics
from rlt_jax.errors import run_command
from rlt_jax.models import load_model
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.types import Request, SamplingParams


def main(
    model: Path = Path("rlt_jax/assets/tiny/teacher"),
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    rows: int = 256,
    group: int = 16,
    prompt: int = 320,
    completion: int = 192,
    rounds: int = 3,
) -> None:
    """Measure.

    Args:
      model: a model folder.
      rows: completions sampled together.
      group: completions per prompt.
      prompt: tokens of every prompt.
      completion: tokens of every completion.
      rounds: repetitions after the first, which compiles.
    """
    use_compilation_cache()
    prepare_memory(shared=False, pinned_bytes=0)
    net, params = load_model(model, dtype=dtype)
    vocab = net.config.vocab_size
    sampler = NativeSampler(net, params, eos_ids=(vocab,), max_batch=rows)  # no token has this id: nothing ends early
    rng = np.random.default_rng(0)
    requests = [
        Request(rng.integers(0, vocab, prompt).astype(np.int32), tuple(range(i * group, (i + 1) * group)))
        for i in range(rows // group)
    ]
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        groups = sampler.generate(requests, SamplingParams(max_tokens=completion, temperature=0.7))
        seconds.append(time.perf_counter() - start)
    tokens = sum(len(one.token_ids) for completions in groups for one in completions)
    best = min(seconds[1:])
    print(
        json.dumps(
            {
                "backend": jax.default_backend(),
                "device": jax.devices()[0].device_kind,
                "first_s": seconds[0],
                "seconds": seconds[1:],
                "tokens": tokens,
                "tokens_per_s": tokens / best,
                "ms_a_token": 1e3 * best / completion,
                **memory_metrics(),
            }
        )
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
