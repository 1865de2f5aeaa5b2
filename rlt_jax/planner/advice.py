"""What to lower where a run does not fit: single flags that are enough, or the mildest set of several."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from rlt_jax.batching import bucket_length
from rlt_jax.configs import PRESETS, TrainConfig
from rlt_jax.models import ModelConfig
from rlt_jax.planner.ledger import (
    Ledger,
)
from rlt_jax.planner.run_plan import missing_for_vllm, plan
from rlt_jax.types import GB

SMALLEST_CHUNK = 256  # tokens of logits; below it the head's matrix products become slow


SMALLEST_LENGTH = 512  # tokens of prompt or completion, below which shortening is no advice


SHARE_STEP = 0.05  # in which vLLM's share is lowered


@dataclass(frozen=True)
class Lowering:
    """A set of flags with which a run fits, and the peaks it then has."""

    flags: tuple[str, ...]
    config: TrainConfig
    gpu_bytes: float  # at the peak
    host_bytes: float  # at the peak


def what_to_lower(
    config: TrainConfig,
    teacher: ModelConfig,
    student: ModelConfig,
    *,
    gpu_bytes: float | None,
    host_bytes: float | None,
) -> list[Lowering]:
    """Ways to make a run fit, each checked by its own ledger; empty when it fits, or when none is enough.

    First every single flag that is enough alone, what costs only time before what changes results; without one, the
    mildest values that together are enough. Last the preset mono85_fallback, where it fits.

    Args:
      gpu_bytes, host_bytes: what may be used, as in `shortfalls`.
    """

    def of(changed: TrainConfig) -> Ledger:
        return plan(changed, teacher=teacher, student=student, gpu_bytes=gpu_bytes)

    def excess(changed: TrainConfig) -> float:
        return _excess(of(changed), gpu_bytes=gpu_bytes, host_bytes=host_bytes)

    if excess(config) == 0:
        return []
    start = _Step(config, ())
    if gpu_bytes is not None and config.planned_gb is not None and config.planned_gb * GB > gpu_bytes:
        planned = math.floor(gpu_bytes / GB)  # else the layers to keep would fill what is not there
        start = _Step(replace(config, planned_gb=float(planned)), (f"--planned-gb {planned}",))
    if excess(start.config) == 0:
        return [_lowering(start, of(start.config))]
    firsts = (next((step for step in lever(start.config) if excess(step.config) == 0), None) for lever in _LEVERS)
    steps = [step for step in firsts if step is not None]
    together = _combine(start.config, excess) if not steps else None
    if together is not None:
        steps.append(together)
    steps = [_Step(step.config, start.flags + step.flags) for step in steps]
    fallback = _fallback(start.config)
    if config.preset == "mono85" and excess(fallback) == 0:
        steps.append(_Step(fallback, ("--preset mono85_fallback", *start.flags)))
    return [_lowering(step, of(step.config)) for step in steps]


class _Step(NamedTuple):
    """A configuration with one thing lowered, and the flags that do it."""

    config: TrainConfig
    flags: tuple[str, ...]


def _lowering(step: _Step, plan_of_it: Ledger) -> Lowering:
    return Lowering(step.flags, step.config, plan_of_it.gpu_peak.gpu_bytes, plan_of_it.host_peak.host_bytes)


Lever = Callable[[TrainConfig], Iterator[_Step]]  # the mildest step first


def _saved_layers_lever(config: TrainConfig) -> Iterator[_Step]:
    mlp, attention = config.loss.saved_mlp, config.loss.saved_attention  # None follows the plan by itself
    for layers in range(mlp - 1, -1, -1) if mlp else ():
        yield _Step(replace(config, loss=replace(config.loss, saved_mlp=layers)), (f"--loss.saved-mlp {layers}",))
    without_mlp = ("--loss.saved-mlp 0",) if mlp else ()
    for layers in range(attention - 1, -1, -1) if attention else ():
        loss = replace(config.loss, saved_mlp=0 if mlp else mlp, saved_attention=layers)
        yield _Step(replace(config, loss=loss), (*without_mlp, f"--loss.saved-attention {layers}"))


def _micro_batch(config: TrainConfig) -> Iterator[_Step]:
    for size in range(config.per_device_train_batch_size - 1, 0, -1):
        yield _Step(replace(config, per_device_train_batch_size=size), (f"--per-device-train-batch-size {size}",))


def _score_batch(config: TrainConfig) -> Iterator[_Step]:
    for size in range(config.score_batch_size - 1, 0, -1):
        yield _Step(replace(config, score_batch_size=size), (f"--score-batch-size {size}",))


def _chunk(config: TrainConfig) -> Iterator[_Step]:
    size = config.loss.logprob_chunk // 2
    while size >= SMALLEST_CHUNK:
        yield _Step(replace(config, loss=replace(config.loss, logprob_chunk=size)), (f"--loss.logprob-chunk {size}",))
        size //= 2


def _native_rows(config: TrainConfig) -> Iterator[_Step]:
    if config.sampler.kind == "native":
        for size in (config.sampler.max_batch >> n for n in range(1, config.sampler.max_batch.bit_length())):
            yield _Step(
                replace(config, sampler=replace(config.sampler, max_batch=size)), (f"--sampler.max-batch {size}",)
            )


def _vllm_share(config: TrainConfig) -> Iterator[_Step]:
    if config.sampler.kind != "native":
        for n in range(math.ceil(config.vllm_gpu_memory_utilization / SHARE_STEP - 1e-9) - 1, 0, -1):
            share = round(n * SHARE_STEP, 2)
            yield _Step(
                replace(config, vllm_gpu_memory_utilization=share), (f"--vllm-gpu-memory-utilization {share:g}",)
            )


def _frozen_on_host(config: TrainConfig) -> Iterator[_Step]:
    if config.memory.frozen == "gpu":
        yield _Step(replace(config, memory=replace(config.memory, frozen="host")), ("--memory.frozen host",))


def _optimizer_on_host(config: TrainConfig) -> Iterator[_Step]:
    if config.memory.optimizer == "gpu":
        yield _Step(replace(config, memory=replace(config.memory, optimizer="host")), ("--memory.optimizer host",))


def _moments(config: TrainConfig) -> Iterator[_Step]:
    if config.memory.moments == "float32" and config.memory.optimizer == "host":
        yield _Step(replace(config, memory=replace(config.memory, moments="bfloat16")), ("--memory.moments bfloat16",))


def _gradients(config: TrainConfig) -> Iterator[_Step]:
    if config.memory.gradients == "float32":
        memory = replace(config.memory, gradients="bfloat16")
        yield _Step(replace(config, memory=memory), ("--memory.gradients bfloat16",))


def _lengths(config: TrainConfig) -> Iterator[_Step]:
    """Both lengths by the same factor, so that together they fill a bucket."""
    whole = config.max_prompt_length + config.max_completion_length
    shorter, buckets = bucket_length(1), []
    while shorter < whole:
        buckets.append(shorter)
        shorter = bucket_length(shorter + 1)
    for bucket in reversed(buckets):
        prompt = config.max_prompt_length * bucket // whole
        if min(prompt, bucket - prompt) < SMALLEST_LENGTH:
            return
        flags = f"--max-prompt-length {prompt}", f"--max-completion-length {bucket - prompt}"
        yield _Step(replace(config, max_prompt_length=prompt, max_completion_length=bucket - prompt), flags)


_LEVERS: tuple[Lever, ...] = (
    _saved_layers_lever,
    _micro_batch,
    _score_batch,
    _chunk,
    _native_rows,
    _frozen_on_host,
    _optimizer_on_host,
    _vllm_share,
    _moments,
    _gradients,
    _lengths,
)
"""In the order in which they are worth trying: first what costs only time, last what changes what is trained."""


def _combine(config: TrainConfig, excess: Callable[[TrainConfig], float]) -> _Step | None:
    """The mildest steps of several levers that together are enough, or None.

    Each lever in turn goes as far as it still helps, until all fits; then each is taken back as far as all still fits.
    """
    chosen: dict[Lever, int] = {}  # number of the lever's step

    def applied(steps: Mapping[Lever, int]) -> _Step:
        changed, flags = config, list[str]()
        for lever in _LEVERS:
            if lever in steps:
                step = list(lever(changed))[steps[lever]]
                changed = step.config
                flags += step.flags
        return _Step(changed, tuple(flags))

    for lever in _LEVERS:
        before = applied(chosen).config
        left = excess(before)
        best, number = min(((excess(step.config), n) for n, step in enumerate(lever(before))), default=(left, 0))
        if best < left:
            chosen[lever] = number
        if best == 0:
            break
    else:
        return None
    for lever, number in tuple(chosen.items()):
        without = {other: n for other, n in chosen.items() if other is not lever}
        for trial in (without, *({**chosen, lever: milder} for milder in range(number))):
            if excess(applied(trial).config) == 0:
                chosen = trial
                break
    return applied(chosen)


def _fallback(config: TrainConfig) -> TrainConfig:
    """The preset mono85_fallback with this run's models and machine."""
    return replace(
        PRESETS["mono85_fallback"],
        teacher=config.teacher,
        student=config.student,
        reference=config.reference,
        budget_gb=config.budget_gb,
        planned_gb=config.planned_gb,
        host_gb=config.host_gb,
    )


def _excess(ledger: Ledger, *, gpu_bytes: float | None, host_bytes: float | None) -> float:
    """Bytes too many, over all phases: what lowering must bring to 0."""
    gpu = [] if gpu_bytes is None else [phase.gpu_bytes - gpu_bytes for phase in ledger.phases]
    host = [] if host_bytes is None else [phase.host_bytes - host_bytes for phase in ledger.phases]
    return sum(max(size, 0.0) for size in (*gpu, *host, missing_for_vllm(ledger)))
