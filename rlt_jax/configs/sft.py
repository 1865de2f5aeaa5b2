"""What supervised fine-tuning can be told. Defaults are the paper's warm-up of the teacher."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from rlt_jax.configs.checks import not_finite_problems, text_problems
from rlt_jax.configs.files import type_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.schema import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    MemoryConfig,
    OptimizerConfig,
    Resume,
    data_problems,
    memory_problems,
    optimizer_problems,
)
from rlt_jax.errors import UserError
from rlt_jax.types import Dtype


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """One supervised run: of a teacher (it writes the explanation), or of a student (thought and solution)."""

    target: Literal["teacher", "student"] = "teacher"
    """Which texts to train on: teacher: explanation after question and solution; student: thought and solution."""
    student_gap: Literal["as-row", "blank-line"] = "as-row"
    """Between a student's thought and solution: as-row follows the row as the original does, a blank line where its
    solution is padded with one, else nothing; blank-line is what the student reads when it scores explanations."""
    model: str
    """Model to train: a local Hugging Face folder or a hub name."""
    output_dir: MayChange[str]
    """Run folder: resolved configuration, metrics, logs, checkpoints, exported model."""
    resume: MayChange[Resume] = "auto"
    """auto: continue if the folder has a checkpoint; never: refuse a folder with files; must: refuse to start anew."""
    seed: int = 42
    """Seed of the data order."""
    dtype: Dtype = "bfloat16"
    """Number format of weights and activations; losses are float32."""
    max_steps: int | None = None
    """Gradient steps, steps. None: num_train_epochs of the data."""
    num_train_epochs: int = 10
    """Passes over the data when max_steps is not given, epochs."""
    train_batch_size: int = 16
    """Rows per gradient step."""
    per_device_train_batch_size: MayChange[int] = 1
    """Micro-batch: rows per forward and backward pass on a device. Changes memory, not results."""
    packing: bool = False
    """Let rows share sequences, without attention between them, so that little is padding. A micro-batch then counts
    sequences, not rows. Changes speed and memory, not results."""
    packed_length: int = 4096
    """Longest sequence with packing, tokens (rounded up to 32, 48, 64, 96, 128, ...); a longer row has one of its own
    length. Of the lengths up to it, the one that leaves the least padding is used."""
    max_length: int = 16384
    """Longest example, tokens; longer ones are skipped and counted."""
    learning_rate: float = 1e-5
    """Peak learning rate of AdamW, per step."""
    logging_steps: int = 1
    """Steps between two lines of metrics, steps."""
    save_steps: MayChange[int] = 0
    """Steps between two checkpoints, steps. 0: only at the end."""
    eval_steps: int = 0
    """Steps between two measurements of the held-out loss, steps. 0: none."""
    logprob_chunk: MayChange[int] = 1024
    """Tokens whose logits over the vocabulary are held at once, tokens. Changes memory, not results."""
    saved_mlp: MayChange[int] = 0
    """Last layers whose MLP projections are kept for the backward pass instead of computed again: time for memory."""
    saved_attention: MayChange[int] = 0
    """Last layers whose attention is kept for the backward pass: more time saved per GB, on a GPU."""
    memory: MayChange[MemoryConfig] = MemoryConfig()
    """Where the step keeps what it does not need at the moment; memory.frozen is without effect, nothing is frozen."""
    data: DataConfig
    """Rows to train and evaluate on; each needs a reasoning_trace."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            adam_beta2=0.95, weight_decay=1e-4, lr_scheduler="cosine", warmup_ratio=0.05
        )
    )
    """AdamW and its schedule; the peak rate is --learning-rate."""
    log: MayChange[LogConfig] = LogConfig()
    """What the run writes besides metrics.jsonl and logs/training.log."""
    checkpoint: MayChange[CheckpointConfig] = CheckpointConfig()
    """What is kept of the run."""


def check_sft_config(config: SftConfig) -> None:
    """Stop if the run cannot be what the user wants.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(not_finite_problems(asdict(config)))
    if not problems:
        problems = [
            *text_problems(
                {
                    "model": (config.model, "a model folder or hub name"),
                    "output_dir": (config.output_dir, "a folder for the run"),
                    "log.wandb_project": (config.log.wandb_project, "the name of a project"),
                }
            ),
            *_sft_problems(config),
            *data_problems(config.data, eval_steps=config.eval_steps),
            *memory_problems(config.memory),
            *optimizer_problems(config.optimizer, learning_rate=config.learning_rate),
        ]
    if problems:
        raise UserError("\n".join(problems))


def _sft_problems(config: SftConfig) -> Iterator[str]:
    positive = {
        "max_steps": 1 if config.max_steps is None else config.max_steps,
        "num_train_epochs": config.num_train_epochs,
        "train_batch_size": config.train_batch_size,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "packed_length": config.packed_length,
        "max_length": config.max_length,
        "logging_steps": config.logging_steps,
        "logprob_chunk": config.logprob_chunk,
        "checkpoint.keep": config.checkpoint.keep,
    }
    for name, count in positive.items():
        if count < 1:
            yield f"{name}={count}: expected a positive whole number"
    off_at_zero = {
        "save_steps": config.save_steps,
        "eval_steps": config.eval_steps,
        "saved_mlp": config.saved_mlp,
        "saved_attention": config.saved_attention,
    }
    for name, count in off_at_zero.items():
        if count < 0:
            yield f"{name}={count}: expected a positive whole number, or 0 for none"
    if config.per_device_train_batch_size > config.train_batch_size >= 1:
        yield (
            f"per_device_train_batch_size={config.per_device_train_batch_size} is more than "
            f"train_batch_size={config.train_batch_size}: a micro-batch is a part of the batch, "
            f"use {config.train_batch_size} or less"
        )
    if not config.packing and config.packed_length != SftConfig.packed_length:
        yield f"packed_length={config.packed_length} without packing has no effect: add --packing, or leave it out"
    if not 0 <= config.seed < 2**31:
        yield f"seed={config.seed}: expected a whole number from 0 to {2**31 - 1}"
