"""What fits: how many activations a run can save, how long its sequences can be, how large its micro-batches."""

from collections.abc import Callable
from dataclasses import replace

from rlt_jax.planner.ledger import Ledger, make_ledger, saved_attention_bytes, saved_mlp_bytes, vllm_has_room
from rlt_jax.planner.shapes import ModelShape, RunShape

SAVED_RESERVE = 0.5e9
"""Left free of the planned memory by `saved_layers`: about what the formulas of the update were wrong by."""


def saved_layers(
    shape: ModelShape,
    run: RunShape,
    planned_bytes: float,
    batch: int,
    tokens: int,
    *,
    saved_attention: int | None = None,
    saved_mlp: int | None = None,
) -> tuple[int, int]:
    """(saved_attention, saved_mlp): of how many last layers a micro-batch may keep them.

    The most that fits; attention first, which saves more time for each byte. What `run` itself keeps does not count.

    Args:
      planned_bytes: most of the GPU that the update may take.
      batch, tokens: of the micro-batch, padded.
      saved_attention, saved_mlp: layers that are decided already, and kept whether they fit or not; None: to be found.
    """
    decided = [None if count is None else min(count, shape.layers) for count in (saved_attention, saved_mlp)]
    plain = replace(run, micro_batch=batch, teacher_tokens=tokens, saved_attention=0, saved_mlp=0)
    sizes = saved_attention_bytes(shape, plain), saved_mlp_bytes(shape, plain)
    room = planned_bytes - SAVED_RESERVE - make_ledger(shape, plain).phase("update").gpu_bytes
    room -= sum(size * (count or 0) for size, count in zip(sizes, decided))
    counts = []
    for size, count in zip(sizes, decided):
        if count is None:
            count = min(max(int(room // size), 0), shape.layers)
            room -= count * size
        counts.append(count)
    return counts[0], counts[1]


def longest_sequence(shape: ModelShape, run: RunShape, gpu_bytes: float, *, extra_tokens: int = 0) -> int:
    """Most tokens of a prompt and its completion with which the run fits on the GPU, nothing being kept.

    Padding is not counted: a trainer that pads to buckets can use the largest bucket that is not longer. 0: none fits.

    Args:
      extra_tokens: of the student's sequence beyond the teacher's.
    """

    def fits(tokens: int) -> bool:
        at = replace(
            run,
            teacher_tokens=tokens,
            student_tokens=tokens + extra_tokens,
            prompt_tokens=tokens // 2,
            completion_tokens=tokens - tokens // 2,
            saved_attention=0,
            saved_mlp=0,
        )
        return fits_gpu(make_ledger(shape, at), gpu_bytes)

    return _most(fits)


def largest_micro_batch(shape: ModelShape, run: RunShape, gpu_bytes: float) -> int:
    """Most sequences of a micro-batch with which the run fits on the GPU, nothing being kept; 0: not even one."""

    def fits(batch: int) -> bool:
        return fits_gpu(make_ledger(shape, replace(run, micro_batch=batch, saved_attention=0, saved_mlp=0)), gpu_bytes)

    return _most(fits)


def fits_gpu(plan: Ledger, gpu_bytes: float) -> bool:
    """Whether no phase needs more of the GPU, and a vLLM engine's share holds at least one whole sequence."""
    return plan.gpu_peak.gpu_bytes <= gpu_bytes and vllm_has_room(plan.shape, plan.run)


def _most(fits: Callable[[int], bool]) -> int:
    """The largest number for which `fits`, which holds up to some number and not beyond; 0 if not even for 1."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**40:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
