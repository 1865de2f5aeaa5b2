"""Suggest what to lower when a run does not fit: single flags that are enough, or the mildest set of several."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from rlt_jax.configs import PRESETS, TrainConfig
from rlt_jax.models import ModelConfig
from rlt_jax.planner.ledger import Ledger, vllm_missing_bytes
from rlt_jax.planner.run_plan import plan
from rlt_jax.segments import SIZE_STEP, flat_sizes
from rlt_jax.types import GB

MIN_CHUNK = 256  # tokens of logits; with fewer the head's matrix products become slow
MIN_LENGTH = 512  # tokens of prompt or completion; shorter ones are not suggested
SHARE_STEP = 0.05  # by which vLLM's share is lowered


@dataclass(frozen=True)
class Suggestion:
    """Flags with which a run fits, and its peaks with them."""

    flags: tuple[str, ...]
    config: TrainConfig
    gpu_bytes: float  # at the peak
    host_bytes: float  # at the peak


def suggest(
    config: TrainConfig,
    teacher: ModelConfig,
    student: ModelConfig,
    *,
    gpu_bytes: float | None,
    host_bytes: float | None,
    capability: tuple[int, int] | None = None,
) -> list[Suggestion]:
    """Suggest ways to make a run fit, each checked by a ledger; empty if it fits already, or if nothing is enough.

    First come all single flags that are enough alone, those that cost only time before those that change results; if
    there are none, the mildest values that are enough together. The preset mono85_fallback comes last, where it fits.

    Args:
      gpu_bytes, host_bytes: what may be used, as in `run_plan.shortfalls`.
      capability: the GPU's, as in `run_plan.run_shape`.
    """

    def ledger_of(changed: TrainConfig) -> Ledger:
        return plan(changed, teacher=teacher, student=student, gpu_bytes=gpu_bytes, capability=capability)

    def excess(changed: TrainConfig) -> float:
        return _excess(ledger_of(changed), gpu_bytes=gpu_bytes, host_bytes=host_bytes)

    def suggestion(change: _Change) -> Suggestion:
        ledger = ledger_of(change.config)
        return Suggestion(change.flags, change.config, ledger.gpu_peak.gpu_bytes, ledger.host_peak.host_bytes)

    if excess(config) == 0:
        return []
    start = _Change(config, ())
    if gpu_bytes is not None and config.planned_gb is not None and config.planned_gb * GB > gpu_bytes:
        planned = math.floor(gpu_bytes / GB)  # else saved activations would fill memory that the GPU does not have
        start = _Change(replace(config, planned_gb=float(planned)), (f"--planned-gb {planned}",))
    if excess(start.config) == 0:
        return [suggestion(start)]
    enough = ((change for change in lever(start.config) if excess(change.config) == 0) for lever in _LEVERS)
    changes = [mildest for fitting in enough if (mildest := next(fitting, None)) is not None]
    combined = _combine(start.config, excess) if not changes else None
    if combined is not None:
        changes.append(combined)
    changes = [_Change(change.config, start.flags + change.flags) for change in changes]
    fallback = _fallback(start.config)
    if config.preset == "mono85" and excess(fallback) == 0:
        changes.append(_Change(fallback, ("--preset mono85_fallback", *start.flags)))
    return [suggestion(change) for change in changes]


class _Change(NamedTuple):
    """A configuration with something lowered, and the flags that lower it."""

    config: TrainConfig
    flags: tuple[str, ...]


Lever = Callable[[TrainConfig], Iterator[_Change]]  # yields the mildest change first


def _saved_layers(config: TrainConfig) -> Iterator[_Change]:
    mlp, attention = config.loss.saved_mlp, config.loss.saved_attention  # None follows from planned_gb
    for layers in range(mlp - 1, -1, -1) if mlp else ():
        yield _Change(replace(config, loss=replace(config.loss, saved_mlp=layers)), (f"--loss.saved-mlp {layers}",))
    without_mlp = ("--loss.saved-mlp 0",) if mlp else ()
    for layers in range(attention - 1, -1, -1) if attention else ():
        loss = replace(config.loss, saved_mlp=0 if mlp else mlp, saved_attention=layers)
        yield _Change(replace(config, loss=loss), (*without_mlp, f"--loss.saved-attention {layers}"))


def _update_tokens(config: TrainConfig) -> Iterator[_Change]:
    for size in _fewer_tokens(config, config.tokens_of_update):
        yield _Change(replace(config, update_tokens=size), (f"--update-tokens {size}",))


def _score_tokens(config: TrainConfig) -> Iterator[_Change]:
    for size in _fewer_tokens(config, config.tokens_of_score):
        yield _Change(replace(config, score_tokens=size), (f"--score-tokens {size}",))


def _fewer_tokens(config: TrainConfig, tokens: int) -> range:
    """Smaller sizes of a pass, down to one longest row."""
    least = flat_sizes(config.max_prompt_length + config.max_completion_length)[0]
    return range((tokens - 1) // SIZE_STEP * SIZE_STEP, least - 1, -SIZE_STEP)


def _logprob_chunk(config: TrainConfig) -> Iterator[_Change]:
    size = config.loss.logprob_chunk // 2
    while size >= MIN_CHUNK:
        yield _Change(replace(config, loss=replace(config.loss, logprob_chunk=size)), (f"--loss.logprob-chunk {size}",))
        size //= 2


def _native_batch(config: TrainConfig) -> Iterator[_Change]:
    if config.sampler.kind == "native":
        for size in (config.sampler.max_batch >> n for n in range(1, config.sampler.max_batch.bit_length())):
            yield _Change(
                replace(config, sampler=replace(config.sampler, max_batch=size)), (f"--sampler.max-batch {size}",)
            )


def _vllm_share(config: TrainConfig) -> Iterator[_Change]:
    if config.sampler.kind != "native":
        for n in range(math.ceil(config.vllm_gpu_memory_utilization / SHARE_STEP - 1e-9) - 1, 0, -1):
            share = round(n * SHARE_STEP, 2)
            yield _Change(
                replace(config, vllm_gpu_memory_utilization=share), (f"--vllm-gpu-memory-utilization {share:g}",)
            )


def _frozen_on_host(config: TrainConfig) -> Iterator[_Change]:
    if config.memory.frozen == "device":
        yield _Change(replace(config, memory=replace(config.memory, frozen="host")), ("--memory.frozen host",))


def _optimizer_on_host(config: TrainConfig) -> Iterator[_Change]:
    if config.memory.optimizer == "device":
        yield _Change(replace(config, memory=replace(config.memory, optimizer="host")), ("--memory.optimizer host",))


def _policy_on_host(config: TrainConfig) -> Iterator[_Change]:
    if config.memory.policy == "device" and config.sampler.kind != "native":
        yield _Change(replace(config, memory=replace(config.memory, policy="host")), ("--memory.policy host",))


def _moments(config: TrainConfig) -> Iterator[_Change]:
    if config.memory.moments == "float32" and config.memory.optimizer == "host":
        memory = replace(config.memory, moments="bfloat16")
        yield _Change(replace(config, memory=memory), ("--memory.moments bfloat16",))


def _gradients(config: TrainConfig) -> Iterator[_Change]:
    if config.memory.gradients == "float32":
        memory = replace(config.memory, gradients="bfloat16")
        yield _Change(replace(config, memory=memory), ("--memory.gradients bfloat16",))


def _lengths(config: TrainConfig) -> Iterator[_Change]:
    """Shorten both lengths by the same factor."""
    whole = config.max_prompt_length + config.max_completion_length
    for length in range((whole - 1) // SIZE_STEP * SIZE_STEP, 0, -SIZE_STEP):
        prompt = config.max_prompt_length * length // whole
        if min(prompt, length - prompt) < MIN_LENGTH:
            return
        flags = f"--max-prompt-length {prompt}", f"--max-completion-length {length - prompt}"
        yield _Change(replace(config, max_prompt_length=prompt, max_completion_length=length - prompt), flags)


_LEVERS: tuple[Lever, ...] = (
    _saved_layers,
    _update_tokens,
    _score_tokens,
    _logprob_chunk,
    _native_batch,
    _frozen_on_host,
    _optimizer_on_host,
    _policy_on_host,
    _vllm_share,
    _moments,
    _gradients,
    _lengths,
)
"""In the order in which to try them: what costs only time first, what changes the training last."""


def _combine(config: TrainConfig, excess: Callable[[TrainConfig], float]) -> _Change | None:
    """Find the mildest changes of several levers that are enough together, or None.

    Each lever in turn is pulled as far as it helps, until the run fits; then each is eased for as long as it fits.
    """
    chosen: dict[Lever, int] = {}  # index of the lever's change

    def applied(indices: Mapping[Lever, int]) -> _Change:
        changed, flags = config, list[str]()
        for lever in _LEVERS:
            if lever in indices:
                change = list(lever(changed))[indices[lever]]
                changed = change.config
                flags += change.flags
        return _Change(changed, tuple(flags))

    for lever in _LEVERS:
        before = applied(chosen).config
        left = excess(before)
        least, index = min(((excess(change.config), i) for i, change in enumerate(lever(before))), default=(left, 0))
        if least < left:
            chosen[lever] = index
        if least == 0:
            break
    else:
        return None
    for lever, index in tuple(chosen.items()):
        without = {other: i for other, i in chosen.items() if other is not lever}
        for trial in (without, *({**chosen, lever: milder} for milder in range(index))):
            if excess(applied(trial).config) == 0:
                chosen = trial
                break
    return applied(chosen)


def _fallback(config: TrainConfig) -> TrainConfig:
    """The preset mono85_fallback with this run's models and budgets."""
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
    """Bytes that are missing, summed over all phases: 0 if the run fits."""
    gpu = [] if gpu_bytes is None else [phase.gpu_bytes - gpu_bytes for phase in ledger.phases]
    host = [] if host_bytes is None else [phase.host_bytes - host_bytes for phase in ledger.phases]
    return sum(max(size, 0.0) for size in (*gpu, *host, vllm_missing_bytes(ledger.shape, ledger.run)))
