"""Where a GPU's time goes: seconds by kind of kernel, from a JAX profile."""

import re
from collections import defaultdict
from pathlib import Path

import jax

KINDS = (  # first match wins
    ("attention", re.compile(r"flash|fmha|sdpa|cudnn|attention", re.IGNORECASE)),
    ("matrix products", re.compile(r"gemm|nvjet|cutlass|cublas|sm90_xmma|dot|matmul", re.IGNORECASE)),
    ("copies", re.compile(r"memcpy|memset|copy", re.IGNORECASE)),
)


def kernel_seconds(folder: Path) -> tuple[dict[str, float], list[tuple[str, float, int]]]:
    """Sum the seconds on the GPU by kind of kernel, and find the ten longest kernels (name, seconds, calls).

    Args:
      folder: written by `jax.profiler.trace`.
    """
    kinds: dict[str, float] = defaultdict(float)
    kernels: dict[str, list[float]] = defaultdict(list)
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    kernels[event.name].append(event.duration_ns / 1e9)
    for name, seconds in kernels.items():
        kind = next((kind for kind, pattern in KINDS if pattern.search(name)), "elementwise and reductions")
        kinds[kind] += sum(seconds)
    totals = ((name, sum(seconds), len(seconds)) for name, seconds in kernels.items())
    longest = sorted(totals, key=lambda kernel: -kernel[1])[:10]
    return dict(kinds), longest
