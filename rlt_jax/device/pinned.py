"""Arithmetic of pinned host memory: what is kept there, how to limit JAX's pool for it, and what visits the GPU.

JAX takes pinned memory from the system in regions, each at least twice as large as the one before, never returns any,
and stops at a limit: 64 GiB, or the value of LIMIT_VARIABLE when JAX starts. Only a limit close to the need keeps the
pool from taking almost twice as much.
"""

import math

from rlt_jax.types import Dtype

LIMIT_VARIABLE = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"  # in GiB, despite its name

GIB = 2**30  # bytes
# Ends of regions too short for a buffer (below 1 GB for a 7B model), JAX's own staging buffers, and the arrays on their
# way from the GPU to a checkpoint (`checkpoints.stored_arrays.PART_GB`).
_SLACK = 5 * GIB
PART_BYTES = 4_000_000_000  # of layers that visit the GPU together, for a forward pass beside an engine that is awake


def host_bytes(num_parameters: int, moments: Dtype, *, master_in_weights: bool = False) -> int:
    """Bytes of pinned memory for the optimizer state: low half of the master (2), two moments (4 or 2 each).

    Args:
      num_parameters: trained parameters; tied embeddings count once.
      moments: dtype of the stored moments.
      master_in_weights: the weights are float32, so there are no low halves.
    """
    low = 0 if master_in_weights else 2
    return num_parameters * (low + 2 * {"float32": 4, "bfloat16": 2}[moments])


def pool_limit_gib(num_bytes: int) -> int:
    """The value of LIMIT_VARIABLE for a process that keeps `num_bytes` in pinned memory."""
    return math.ceil((num_bytes + _SLACK) / GIB)


def layers_of_a_part(layer_bytes: int, num_layers: int, *, part_bytes: int = PART_BYTES) -> int:
    """How many layers visit the GPU together: the fewest parts of at most `part_bytes`, all of about equal size."""
    parts = min(math.ceil(num_layers * layer_bytes / part_bytes), num_layers)
    return math.ceil(num_layers / parts)
