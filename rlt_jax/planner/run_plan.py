"""The memory plan of a training run: turn its configuration and models into a ledger, and say what does not fit.

Nothing but a config.json is downloaded, and no device is touched. Lengths are worst cases: every prompt and completion
is as long as the run allows, and passes are as large.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import huggingface_hub

from rlt_jax.configs import TrainConfig
from rlt_jax.configs.dtype import dtype_on
from rlt_jax.hub import fetch, local_folder
from rlt_jax.models import ModelConfig, read_config, resolve_folder
from rlt_jax.models.attention import planned_kernel
from rlt_jax.models.config import known_config
from rlt_jax.planner.capacity import largest_update, longest_sequence, saved_layers
from rlt_jax.planner.ledger import (
    Ledger,
    PhaseName,
    make_ledger,
    vllm_cache_tokens,
    vllm_min_bytes,
    vllm_missing_bytes,
    vllm_sequences,
)
from rlt_jax.planner.shapes import ModelShape, RunShape, pass_of
from rlt_jax.rewards.by_name import reads_of
from rlt_jax.types import GB, Dtype, ScoringModel

STUDENT_EXTRA_TOKENS = 256
"""Most tokens by which a student's sequence exceeds the teacher's: its system prompt and tags may be longer."""
_MAX_SHOWN = 4  # phases in one message


class FoundModel(NamedTuple):
    """A model's architecture, and where it was found."""

    config: ModelConfig
    source: str  # "its folder", "the hub's cache", "known", "the hub"


def find_model(path: str) -> FoundModel:
    """Find a model's architecture before its weights are downloaded.

    Looks in its folder, in the hub's cache, in the table of known models, and last on the hub, for a config.json of a
    few KB.

    Raises:
      UserError: there is no such model, or its architecture is not supported.
    """
    folder = local_folder(path)
    if folder is not None:
        return FoundModel(read_config(resolve_folder(folder)), "its folder")
    cached = huggingface_hub.try_to_load_from_cache(path, "config.json")
    if isinstance(cached, str):
        return FoundModel(read_config(Path(cached).parent), "the hub's cache")
    known = known_config(path)
    if known is not None:
        return FoundModel(known, "known")
    return FoundModel(read_config(fetch(path, files=["config.json"])), "the hub")


def model_config_of(path: str) -> ModelConfig:
    """The architecture that `find_model` finds."""
    return find_model(path).config


def model_shape(config: ModelConfig) -> ModelShape:
    """A model's sizes, as the ledger takes them."""
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
    config: TrainConfig,
    teacher: ModelConfig,
    student: ModelConfig,
    *,
    gpu_bytes: float | None = None,
    capability: tuple[int, int] | None = None,
    reads: Collection[ScoringModel] | None = None,
) -> RunShape:
    """A run's sizes at its longest rows, as the ledger takes them.

    Where the configuration leaves the saved activations open, as many as planned_gb has room for are saved.

    Args:
      gpu_bytes: GPU memory, of which vLLM takes its share when the run has no budget. None: not known; the share is
        then the smallest that vLLM can work with.
      capability: the GPU's compute capability, as in `planned_kernel`.
      reads: the models that the reward reads; None: those of config.reward, whose own function is loaded.
    """
    read = reads_of(config.reward) if reads is None else reads
    shape, dtype = model_shape(teacher), planned_dtype(config)
    tokens = min(config.max_prompt_length + config.max_completion_length, teacher.max_positions)
    prompt, student_tokens = min(config.max_prompt_length, tokens), tokens + STUDENT_EXTRA_TOKENS
    kernel, student_kernel = (
        planned_kernel(dtype, model.head_dim, capability=capability) for model in (teacher, student)
    )
    run = RunShape(
        student=model_shape(student),
        weight_bytes=_bytes_of(dtype),
        gradient_bytes=_bytes_of(config.memory.gradients),
        moments=config.memory.moments,
        optimizer_on_host=config.memory.optimizer == "host",
        frozen_on_host=config.memory.frozen == "host",
        policy_on_host=config.memory.policy == "host",
        update=pass_of(kernel, config.tokens_of_update, tokens),
        score=pass_of(kernel, config.tokens_of_score, tokens),
        score_student=pass_of(student_kernel, config.tokens_of_score, student_tokens),
        teacher_tokens=tokens,
        student_tokens=student_tokens,
        prompt_tokens=prompt,
        completion_tokens=min(config.max_completion_length, tokens),
        logprob_chunk=config.loss.logprob_chunk,
        saved_attention=0,
        saved_mlp=0,
        completions=config.train_batch_size,
        generations=config.num_generations,
        sampler=config.sampler.kind,
        vllm_bytes=0,
        native_batch=config.sampler.max_batch,
        reads_teacher="teacher" in read,
        reads_student="student" in read,
        kl_term=config.loss.beta > 0,
        reference_teacher=config.reward.use_reference_teacher_model,
    )
    if config.sampler.kind != "native":
        total = config.budget_gb * GB if config.budget_gb is not None else gpu_bytes
        share = vllm_min_bytes(shape, run) if total is None else round(config.vllm_gpu_memory_utilization * total)
        run = replace(run, vllm_bytes=share)
    attention, mlp = saved_layers(
        shape,
        run,
        0.0 if config.planned_gb is None else config.planned_gb * GB,
        run.update.sequences,
        run.update.length,
        saved_attention=config.loss.saved_attention,
        saved_mlp=config.loss.saved_mlp,
    )
    return replace(run, saved_attention=attention, saved_mlp=mlp)


def plan(
    config: TrainConfig,
    *,
    teacher: ModelConfig | None = None,
    student: ModelConfig | None = None,
    gpu_bytes: float | None = None,
    capability: tuple[int, int] | None = None,
    compiled: Mapping[PhaseName, float] | None = None,
    reads: Collection[ScoringModel] | None = None,
) -> Ledger:
    """Compute the ledger of a run.

    Args:
      teacher, student: architectures; None: those of the configuration's models (`model_config_of`).
      gpu_bytes, capability, reads: as in `run_shape`.
      compiled: as in `make_ledger`.
    Raises:
      UserError: as in `find_model`.
    """
    teacher = model_config_of(config.teacher) if teacher is None else teacher
    student = model_config_of(config.student) if student is None else student
    run = run_shape(config, teacher, student, gpu_bytes=gpu_bytes, capability=capability, reads=reads)
    return make_ledger(model_shape(teacher), run, compiled)


def at_batch_sizes(ledger: Ledger, *, generate: int, score: int, update: int, save_activations: bool) -> Ledger:
    """The ledger of the same run with other batch sizes (those of `device.backoff.BatchSizes`)."""
    run = ledger.run
    run = replace(
        run,
        native_batch=generate,
        update=run.update.of(update, run.teacher_tokens),
        score=run.score.of(score, run.teacher_tokens),
        score_student=run.score_student.of(score, run.student_tokens),
    )
    return make_ledger(ledger.shape, run if save_activations else replace(run, saved_attention=0, saved_mlp=0))


def planned_dtype(config: TrainConfig) -> Dtype:
    """The dtype of a run's weights, if the run does not fix it that of a GPU: that is what a plan is for."""
    return dtype_on("gpu", config.dtype)


def planned_bytes(config: TrainConfig) -> float | None:
    """Most GPU memory that the run may take: planned_gb, else budget_gb; None without either."""
    size = config.budget_gb if config.planned_gb is None else config.planned_gb
    return None if size is None else size * GB


def shortfalls(ledger: Ledger, *, gpu_bytes: float | None, host_bytes: float | None) -> list[str]:
    """What does not fit, one line each; empty if everything fits.

    Args:
      gpu_bytes, host_bytes: what may be used; None: not known, so everything fits.
    """
    lines = []
    for place, bound in (("GPU", gpu_bytes), ("host", host_bytes)):
        if bound is None:
            continue
        sizes = {phase.name: phase.gpu_bytes if place == "GPU" else phase.host_bytes for phase in ledger.phases}
        over = sorted((name for name in sizes if sizes[name] > bound), key=lambda name: -sizes[name])
        if over:
            phases = ", ".join(f"{name} {sizes[name] / GB:.2f} GB" for name in over[:_MAX_SHOWN])
            if len(over) > _MAX_SHOWN:
                phases += f" and {len(over) - _MAX_SHOWN} more phases"
            missing = (sizes[over[0]] - bound) / GB
            lines.append(f"{place}: {bound / GB:g} GB may be used, up to {missing:.2f} GB too little for {phases}")
    vllm_missing = vllm_missing_bytes(ledger.shape, ledger.run)
    if vllm_missing:
        run = ledger.run
        lines.append(
            f"vLLM: its share of {run.vllm_bytes / GB:.2f} GB is {vllm_missing / GB:.2f} GB too small for its weights "
            f"and one sequence of {run.sequence_tokens:,} tokens"
        )
    return lines


def ledger_lines(ledger: Ledger) -> list[str]:
    """The plan, one phase a line: GB of GPU and host, and the owners on the GPU, largest first."""
    lines = ["phase              GPU    host  on the GPU, GB"]
    for phase in ledger.phases:
        owners = sorted(phase.gpu, key=lambda entry: -entry.size)
        parts = ", ".join(f"{entry.owner} {entry.size / GB:.2f}" for entry in owners)
        lines.append(f"{phase.name:<16} {phase.gpu_bytes / GB:>6.1f}  {phase.host_bytes / GB:>6.1f}  {parts}")
    return lines


def vllm_line(ledger: Ledger) -> str | None:
    """Say what vLLM's share of the GPU holds; None without vLLM."""
    run = ledger.run
    if run.sampler == "native":
        return None
    own, shared = vllm_sequences(ledger.shape, run)
    return (
        f"vLLM: {run.vllm_bytes / GB:.1f} GB hold the keys and values of {vllm_cache_tokens(ledger.shape, run):,} "
        f"tokens: of the step's {run.completions} completions at full length ({run.sequence_tokens:,} tokens) at least "
        f"{own} at a time, {shared} where the {run.generations} of a question share their prompt"
    )


def longest_context(ledger: Ledger, gpu_bytes: float, *, positions: int) -> int:
    """Most tokens of prompt and completion that fit, one row a pass, without saved activations; 0: none fits."""
    longest = longest_sequence(ledger.shape, ledger.run, gpu_bytes, extra_tokens=STUDENT_EXTRA_TOKENS)
    return min(longest, positions)


def largest_update_tokens(ledger: Ledger, gpu_bytes: float) -> int:
    """Most tokens of a pass of the update that fit without saved activations; at most the step's."""
    run = ledger.run
    whole = run.update.of(run.completions * run.teacher_tokens, run.teacher_tokens)
    return min(largest_update(ledger.shape, run, gpu_bytes), whole.tokens)


def _bytes_of(dtype: Dtype) -> int:
    return {"bfloat16": 2, "float32": 4}[dtype]
