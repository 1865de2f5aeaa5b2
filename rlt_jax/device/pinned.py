"""Pinned host memory, as arithmetic: what the streamed optimizer keeps there, and the limit of JAX's pool for it.

JAX takes pinned memory from the system in regions, each at least twice as large as the one before, returns none of it,
and stops at a limit: 64 GiB, or what LIMIT_VARIABLE says when JAX starts. Only a limit close to the need keeps the pool
from taking almost twice as much.
"""

import math

from rlt_jax.types import Dtype

LIMIT_VARIABLE = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"  # in GiB, whatever its name says

_GIB = 2**30
# Ends of regions too short for a buffer (below 1 GB for a 7B model), JAX's own staging, and what of the weights is on
# its way from the GPU to a checkpoint (`checkpoint.COPIES_GB`).
_SLACK = 5 * _GIB


def host_bytes(num_parameters: int, moments: Dtype, *, master_in_weights: bool = False) -> int:
    """Bytes of pinned memory that the optimizer's state takes: low half of the master (2), two moments (4 or 2 each).

    Args:
      num_parameters: trained parameters; tied embeddings count once.
      moments: type in which the moments are stored.
      master_in_weights: the weights are float32, so that there are no low halves.
    """
    low = 0 if master_in_weights else 2
    return num_parameters * (low + 2 * {"float32": 4, "bfloat16": 2}[moments])


def pool_limit_gib(num_bytes: int) -> int:
    """Value of LIMIT_VARIABLE for a process that keeps `num_bytes` in pinned memory."""
    return math.ceil((num_bytes + _SLACK) / _GIB)
