"""The memory plan of a training run: its configuration and models as the ledger's shapes, what fits, what to lower.

Nothing is downloaded but a config.json, and no device is touched. Lengths are worst cases: every prompt and completion
as long as the run allows, padded to its bucket.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from rlt_jax.batching import bucket_length
from rlt_jax.configs import PRESETS, TrainConfig
from rlt_jax.errors import UserError
from rlt_jax.memory.ledger import (
    GB,
    Ledger,
    ModelShape,
    PhaseName,
    RunShape,
    kept_layers,
    largest_micro_batch,
    longest_sequence,
    make_ledger,
    vllm_cache_tokens,
    vllm_least_bytes,
    vllm_sequences,
)
from rlt_jax.models import ModelConfig, read_config, resolve_folder
from rlt_jax.models.known import known_config

__all__ = [
    "Found",
    "Lowering",
    "at_sizes",
    "find_model",
    "kept_layers",
    "largest_batch",
    "ledger_lines",
    "longest_context",
    "model_config_of",
    "model_shape",
    "plan",
    "planned_bytes",
    "run_shape",
    "shortfalls",
    "vllm_line",
    "what_to_lower",
]

log = logging.getLogger("rlt_jax")

STUDENT_EXTRA_TOKENS = 256
"""Longest that a student's sequence is beyond the teacher's: its system prompt and tags may be longer."""
SMALLEST_CHUNK = 256  # tokens of logits; below it the head's matrix products become slow
SMALLEST_LENGTH = 512  # tokens of prompt or completion, below which shortening is no advice
SHARE_STEP = 0.05  # in which vLLM's share is lowered
_SHOWN = 4  # phases in one message


class Found(NamedTuple):
    """A model's architecture, and where it was read."""

    config: ModelConfig
    source: str  # "its folder", "the hub's cache", "known", "the hub"


def find_model(path: str) -> Found:
    """The architecture of a model before its weights are downloaded.

    From its folder, the hub's cache, the table of known models, or a config.json of a few KB from the hub.

    Raises:
      UserError: nothing of that name, or an unsupported architecture.
    """
    if Path(path).expanduser().exists():
        return Found(read_config(resolve_folder(path)), "its folder")
    try:
        cached = huggingface_hub.try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        return Found(read_config(resolve_folder(path)), "its folder")  # says what is wrong with the path
    if isinstance(cached, str):
        return Found(read_config(Path(cached).parent), "the hub's cache")
    known = known_config(path)
    if known is not None:
        return Found(known, "known")
    log.info("fetching config.json of %s from the hub", path)
    try:
        fetched = huggingface_hub.hf_hub_download(path, "config.json")
    except (OSError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"expected a model's folder, a known model or one on the Hugging Face hub, but there is no folder {path!r} "
            f"and the hub gave no config.json of that name ({reason}): check the name and the network, or give a "
            "folder, as in --teacher FOLDER --student FOLDER"
        ) from None
    return Found(read_config(Path(fetched).parent), "the hub")


def model_config_of(path: str) -> ModelConfig:
    """`find_model`'s architecture alone."""
    return find_model(path).config


def model_shape(config: ModelConfig) -> ModelShape:
    """A model's sizes as the ledger takes them."""
    return ModelShape(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        tied=config.tie_word_embeddings,
        qkv_bias=config.qkv_bias,
        qk_norm=config.qk_norm,
        output_bias=config.output_bias,
    )


def run_shape(
    config: TrainConfig, teacher: ModelConfig, student: ModelConfig, *, card_bytes: float | None = None
) -> RunShape:
    """A run's sizes as the ledger takes them, at its longest sequences.

    Layers to keep that the configuration leaves open are those that planned_gb has room for.

    Args:
      card_bytes: of the card, which vLLM takes its share of when the run has no budget. None: not known; then the
        share is the least that it can work with.
    """
    shape, heads = model_shape(teacher), (teacher.head_dim, student.head_dim)
    engine = config.sampler.kind != "native"
    tokens = min(config.max_prompt_length + config.max_completion_length, teacher.max_position_embeddings)
    prompt = min(config.max_prompt_length, tokens)
    run = RunShape(
        student=model_shape(student),
        weight_bytes=_bytes_of(config.dtype),
        accumulator_bytes=_bytes_of(config.memory.accumulators),
        moments=config.memory.moments,
        optimizer_on_host=config.memory.optimizer == "host",
        frozen_on_host=config.memory.frozen == "host",
        micro_batch=config.per_device_train_batch_size,
        score_batch=config.score_batch_size,
        teacher_tokens=bucket_length(tokens),
        student_tokens=bucket_length(tokens + STUDENT_EXTRA_TOKENS),
        prompt_tokens=prompt,
        completion_tokens=min(config.max_completion_length, tokens),
        logprob_chunk=config.loss.logprob_chunk,
        kept_attention=0,
        kept_mlp=0,
        completions=config.train_batch_size,
        generations=config.num_generations,
        sampler=config.sampler.kind,
        vllm_bytes=0,
        native_batch=config.sampler.max_batch,
        # As models.qwen chooses on a card: cuDNN's kernel takes 16 bits and heads of these sizes.
        fused_attention=config.dtype == "bfloat16" and all(size % 8 == 0 and size <= 128 for size in heads),
    )
    if engine:
        total = config.budget_gb * GB if config.budget_gb is not None else card_bytes
        share = vllm_least_bytes(shape, run) if total is None else round(config.vllm_gpu_memory_utilization * total)
        run = replace(run, vllm_bytes=share)
    attention, mlp = kept_layers(
        shape,
        run,
        0.0 if config.planned_gb is None else config.planned_gb * GB,
        run.micro_batch,
        run.teacher_tokens,
        kept_attention=config.loss.kept_attention,
        kept_mlp=config.loss.kept_mlp,
    )
    return replace(run, kept_attention=attention, kept_mlp=mlp)


def plan(
    config: TrainConfig,
    *,
    teacher: ModelConfig | None = None,
    student: ModelConfig | None = None,
    card_bytes: float | None = None,
    compiled: Mapping[PhaseName, float] | None = None,
) -> Ledger:
    """The ledger of a run.

    Args:
      teacher, student: architectures; None: those of the configuration's models (`model_config_of`).
      card_bytes: as `run_shape`.
      compiled: as `make_ledger`.
    Raises:
      UserError: as `find_model`.
    """
    teacher = model_config_of(config.teacher) if teacher is None else teacher
    student = model_config_of(config.student) if student is None else student
    return make_ledger(model_shape(teacher), run_shape(config, teacher, student, card_bytes=card_bytes), compiled)


def at_sizes(ledger: Ledger, *, generate: int, score: int, update: int, keep: bool) -> Ledger:
    """The plan of the same run with other sequences of a pass, and no layers kept unless `keep` (`fitting.Sizes`)."""
    run = replace(ledger.run, native_batch=generate, score_batch=score, micro_batch=update)
    return make_ledger(ledger.shape, run if keep else replace(run, kept_attention=0, kept_mlp=0))


def planned_bytes(config: TrainConfig) -> float | None:
    """Most of the card that the run may take: planned_gb, else budget_gb; None without either."""
    size = config.budget_gb if config.planned_gb is None else config.planned_gb
    return None if size is None else size * GB


def shortfalls(ledger: Ledger, *, card_bytes: float | None, host_bytes: float | None) -> list[str]:
    """What does not fit, a line each; empty when all does.

    Args:
      card_bytes, host_bytes: what may be used; None: not known, so that everything fits.
    """
    lines = []
    for place, bound in (("card", card_bytes), ("host", host_bytes)):
        if bound is None:
            continue
        sizes = {phase.name: phase.card_bytes if place == "card" else phase.host_bytes for phase in ledger.phases}
        over = sorted((name for name in sizes if sizes[name] > bound), key=lambda name: -sizes[name])
        if over:
            phases = ", ".join(f"{name} {sizes[name] / GB:.2f} GB" for name in over[:_SHOWN])
            if len(over) > _SHOWN:
                phases += f" and {len(over) - _SHOWN} more phases"
            more = (sizes[over[0]] - bound) / GB
            lines.append(f"{place}: {bound / GB:g} GB may be used, up to {more:.2f} GB too little for {phases}")
    missing = _missing_for_vllm(ledger)
    if missing > 0:
        run = ledger.run
        lines.append(
            f"vLLM: its share of {run.vllm_bytes / GB:.2f} GB is {missing / GB:.2f} GB too small for its weights and "
            f"one sequence of {run.sequence_tokens:,} tokens"
        )
    return lines


def ledger_lines(ledger: Ledger) -> list[str]:
    """The plan, a phase a line: GB of card and host, and what the card's are, largest first."""
    lines = ["phase              card    host  on the card, GB"]
    for phase in ledger.phases:
        owners = sorted(phase.card, key=lambda entry: -entry.size)
        parts = ", ".join(f"{entry.owner} {entry.size / GB:.2f}" for entry in owners)
        lines.append(f"{phase.name:<16} {phase.card_bytes / GB:>6.1f}  {phase.host_bytes / GB:>6.1f}  {parts}")
    return lines


def vllm_line(ledger: Ledger) -> str | None:
    """What vLLM's share of the card holds, in words; None without vLLM."""
    run = ledger.run
    if run.sampler == "native":
        return None
    own, shared = vllm_sequences(ledger.shape, run)
    return (
        f"vLLM: {run.vllm_bytes / GB:.1f} GB hold the keys and values of {vllm_cache_tokens(ledger.shape, run):,} "
        f"tokens: of the step's {run.completions} completions at full length ({run.sequence_tokens:,} tokens) at least "
        f"{own} together, {shared} where the {run.generations} of a question share their prompt"
    )


def longest_context(ledger: Ledger, card_bytes: float, *, positions: int) -> int:
    """Most tokens of prompt and completion that fit, nothing kept and the rest as in the run; 0: none.

    The longest bucket, as sequences are padded to one, or all positions that the model was made for.
    """
    longest = longest_sequence(ledger.shape, ledger.run, card_bytes, extra_tokens=STUDENT_EXTRA_TOKENS)
    best, bucket = 0, bucket_length(1)
    while bucket <= longest and best < positions:
        best, bucket = bucket, bucket_length(bucket + 1)
    return min(best, positions)


def largest_batch(ledger: Ledger, card_bytes: float) -> int:
    """Most sequences of a micro-batch that fit, nothing kept; at most the step's completions."""
    return min(largest_micro_batch(ledger.shape, ledger.run, card_bytes), ledger.run.completions)


@dataclass(frozen=True)
class Lowering:
    """A set of flags with which a run fits, and the peaks it then has."""

    flags: tuple[str, ...]
    config: TrainConfig
    card_bytes: float  # at the peak
    host_bytes: float  # at the peak


def what_to_lower(
    config: TrainConfig,
    teacher: ModelConfig,
    student: ModelConfig,
    *,
    card_bytes: float | None,
    host_bytes: float | None,
) -> list[Lowering]:
    """Ways to make a run fit, each checked by its own ledger; empty when it fits, or when none is enough.

    First every single flag that is enough alone, what costs only time before what changes results; without one, the
    mildest values that together are enough. Last the preset mono85_fallback, where it fits.

    Args:
      card_bytes, host_bytes: what may be used, as in `shortfalls`.
    """

    def of(changed: TrainConfig) -> Ledger:
        return plan(changed, teacher=teacher, student=student, card_bytes=card_bytes)

    def excess(changed: TrainConfig) -> float:
        return _excess(of(changed), card_bytes=card_bytes, host_bytes=host_bytes)

    if excess(config) == 0:
        return []
    start = _Step(config, ())
    if card_bytes is not None and config.planned_gb is not None and config.planned_gb * GB > card_bytes:
        planned = math.floor(card_bytes / GB)  # else the layers to keep would fill what is not there
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
    return Lowering(step.flags, step.config, plan_of_it.card_peak.card_bytes, plan_of_it.host_peak.host_bytes)


Lever = Callable[[TrainConfig], Iterator[_Step]]  # the mildest step first


def _kept_layers_lever(config: TrainConfig) -> Iterator[_Step]:
    mlp, attention = config.loss.kept_mlp, config.loss.kept_attention  # None follows the plan by itself
    for layers in range(mlp - 1, -1, -1) if mlp else ():
        yield _Step(replace(config, loss=replace(config.loss, kept_mlp=layers)), (f"--loss.kept-mlp {layers}",))
    without_mlp = ("--loss.kept-mlp 0",) if mlp else ()
    for layers in range(attention - 1, -1, -1) if attention else ():
        loss = replace(config.loss, kept_mlp=0 if mlp else mlp, kept_attention=layers)
        yield _Step(replace(config, loss=loss), (*without_mlp, f"--loss.kept-attention {layers}"))


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
    if config.memory.frozen == "card":
        yield _Step(replace(config, memory=replace(config.memory, frozen="host")), ("--memory.frozen host",))


def _optimizer_on_host(config: TrainConfig) -> Iterator[_Step]:
    if config.memory.optimizer == "card":
        yield _Step(replace(config, memory=replace(config.memory, optimizer="host")), ("--memory.optimizer host",))


def _moments(config: TrainConfig) -> Iterator[_Step]:
    if config.memory.moments == "float32" and config.memory.optimizer == "host":
        yield _Step(replace(config, memory=replace(config.memory, moments="bfloat16")), ("--memory.moments bfloat16",))


def _accumulators(config: TrainConfig) -> Iterator[_Step]:
    if config.memory.accumulators == "float32":
        memory = replace(config.memory, accumulators="bfloat16")
        yield _Step(replace(config, memory=memory), ("--memory.accumulators bfloat16",))


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
    _kept_layers_lever,
    _micro_batch,
    _score_batch,
    _chunk,
    _native_rows,
    _frozen_on_host,
    _optimizer_on_host,
    _vllm_share,
    _moments,
    _accumulators,
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


def _excess(ledger: Ledger, *, card_bytes: float | None, host_bytes: float | None) -> float:
    """Bytes too many, over all phases: what lowering must bring to 0."""
    card = [] if card_bytes is None else [phase.card_bytes - card_bytes for phase in ledger.phases]
    host = [] if host_bytes is None else [phase.host_bytes - host_bytes for phase in ledger.phases]
    return sum(max(size, 0.0) for size in (*card, *host, _missing_for_vllm(ledger)))


def _missing_for_vllm(ledger: Ledger) -> float:
    """Bytes that vLLM's share lacks for weights and one sequence of full length; 0 or less: enough."""
    if ledger.run.sampler == "native":
        return 0.0
    return vllm_least_bytes(ledger.shape, ledger.run) - ledger.run.vllm_bytes


def _bytes_of(dtype: str) -> int:
    return {"bfloat16": 2, "float32": 4}[dtype]
