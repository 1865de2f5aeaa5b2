"""What fits: how many layers' activations can be saved, how long rows and how large passes can be."""

from collections.abc import Callable
from dataclasses import replace

from rlt_jax.planner.ledger import Ledger, make_ledger, saved_attention_bytes, saved_mlp_bytes, vllm_missing_bytes
from rlt_jax.planner.shapes import ModelShape, Pass, RunShape
from rlt_jax.segments import SIZE_STEP

SAVED_RESERVE = 0.5e9
"""Bytes of the planned memory that `saved_layers` leaves free: about the error of the update's formulas."""


def saved_layers(
    shape: ModelShape,
    run: RunShape,
    planned_bytes: float,
    sequences: int,
    length: int,
    *,
    saved_attention: int | None = None,
    saved_mlp: int | None = None,
) -> tuple[int, int]:
    """Find how many of the last layers can have their activations saved.

    Attention goes first, because it saves more time per byte. What `run` itself saves is ignored.

    Args:
      planned_bytes: most GPU memory that the update may take.
      sequences, length: of the micro-batch, B and T as computed: one sequence where it is flat.
      saved_attention, saved_mlp: counts that are fixed already, used whether they fit or not; None: to be found.
    Returns:
      (saved_attention, saved_mlp), layers.
    """
    fixed = [None if count is None else min(count, shape.layers) for count in (saved_attention, saved_mlp)]
    update = run.update._replace(sequences=sequences, length=length)
    plain = replace(run, update=update, saved_attention=0, saved_mlp=0)
    sizes = saved_attention_bytes(shape, plain), saved_mlp_bytes(shape, plain)
    room = planned_bytes - SAVED_RESERVE - make_ledger(shape, plain).phase("update").gpu_bytes
    room -= sum(size * (count or 0) for size, count in zip(sizes, fixed))
    counts = []
    for size, count in zip(sizes, fixed):
        if count is None:
            count = min(max(int(room // size), 0), shape.layers)
            room -= count * size
        counts.append(count)
    return counts[0], counts[1]


def longest_sequence(shape: ModelShape, run: RunShape, gpu_bytes: float, *, extra_tokens: int = 0) -> int:
    """Find the longest prompt with its completion that fits on the GPU without saved activations; 0: none fits.

    A pass has one such row.

    Args:
      extra_tokens: by which the student's row is longer than the teacher's.
    Returns:
      Tokens.
    """

    def fits(tokens: int) -> bool:
        candidate = replace(
            run,
            update=run.update.of(tokens, tokens),
            score=run.score.of(tokens, tokens),
            score_student=run.score_student.of(tokens, tokens + extra_tokens),
            teacher_tokens=tokens,
            student_tokens=tokens + extra_tokens,
            prompt_tokens=tokens // 2,
            completion_tokens=tokens - tokens // 2,
            saved_attention=0,
            saved_mlp=0,
        )
        return fits_gpu(make_ledger(shape, candidate), gpu_bytes)

    return _largest(fits)


def largest_update(shape: ModelShape, run: RunShape, gpu_bytes: float) -> int:
    """Find the most tokens that a pass of the update can have without saved activations; 0: not even one row fits."""

    def update_of(steps: int) -> Pass:
        return run.update.of(steps * SIZE_STEP, run.teacher_tokens)

    def fits(steps: int) -> bool:
        candidate = replace(run, update=update_of(steps), saved_attention=0, saved_mlp=0)
        return fits_gpu(make_ledger(shape, candidate), gpu_bytes)

    steps = _largest(fits)
    return update_of(steps).tokens if steps else 0


def fits_gpu(ledger: Ledger, gpu_bytes: float) -> bool:
    """Whether no phase needs more GPU memory than this, and a vLLM engine's share holds at least one whole sequence."""
    return ledger.gpu_peak.gpu_bytes <= gpu_bytes and vllm_missing_bytes(ledger.shape, ledger.run) == 0


def _largest(fits: Callable[[int], bool]) -> int:
    """Find the largest number that fits, where all smaller ones fit and no larger one does; 0 if not even 1 fits."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**40:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
