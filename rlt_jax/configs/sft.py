"""Settings of supervised fine-tuning. The defaults are the paper's warm-up of the teacher."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from rlt_jax.configs.checks import (
    check_problems,
    count_problems,
    micro_batch_problems,
    off_at_zero_problems,
    seed_problems,
    stop_problems,
    text_problems,
)
from rlt_jax.configs.numbers import ChecksConfig, number_problems
from rlt_jax.configs.resume import MayChange, Steers
from rlt_jax.configs.schema import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    MemoryConfig,
    OptimizerConfig,
    Resume,
    checkpoint_problems,
    data_problems,
    memory_problems,
    optimizer_problems,
)
from rlt_jax.configs.settings import Settings
from rlt_jax.types import RunDtype

BATCH = 16  # rows per gradient step, if there are as many


@dataclass(frozen=True, kw_only=True)
class SftConfig(Settings):
    """One supervised run: of a teacher, on explanations, or of a student, on thoughts and solutions."""

    target: Literal["teacher", "student"] = "teacher"
    """Texts to train on. teacher: the explanation, given question and solution. student: thought and solution, given
    the question."""
    student_gap: Literal["as-row", "blank-line"] | None = None
    """What separates a student's thought and solution. as-row: a blank line if the row's solution is padded
    with one, else nothing, as in the original. blank-line: a blank line, as when the student scores explanations. None:
    as the model was trained (rlt_jax.json in its folder), else as-row."""
    model: str
    """Model to train: a local Hugging Face folder or a hub name."""
    output_dir: MayChange[str]
    """Run folder: resolved configuration, metrics, logs, checkpoints, exported model."""
    resume: MayChange[Resume] = "auto"
    """auto: resume if the run folder has a checkpoint; never: refuse a folder with files; must: refuse to start without
    a checkpoint."""
    stop_grace: MayChange[float] = 60.0
    """Seconds in which a run that is asked to stop (SIGTERM, Ctrl-C) saves; after them it ends without."""
    accept_changes: MayChange[bool] = False
    """Resume even if a setting, prompt or row that decides what is measured has changed: it is logged and recorded, and
    no summary compares evaluations before and after it."""
    seed: int = 42
    """Seed of the data order."""
    dtype: RunDtype = "auto"
    """Dtype of weights and activations; losses are float32. auto: float32 on a CPU, bfloat16 on a GPU."""
    max_steps: Steers[int | None] = None
    """Gradient steps. None: as many as num_train_epochs take."""
    num_train_epochs: Steers[int | None] = None
    """Passes over the data if max_steps is None. None: 10, or more if these are few steps for a small model."""
    train_batch_size: Steers[int | None] = None
    """Rows per gradient step. None: 16, or all rows if there are fewer."""
    per_device_train_batch_size: MayChange[int] = 1
    """Micro-batch: as many tokens per forward and backward pass on a device as this many of the longest rows have (with
    packing, of the longest sequences). Changes memory, not results."""
    update_tokens: MayChange[int | None] = None
    """Tokens per forward and backward pass. None: see --per-device-train-batch-size."""
    packing: Steers[bool] = False
    """Put several rows into one sequence, without attention between them, to have less padding. Changes speed and
    memory, not results. Hopper GPUs do so anyway, in 16 bits."""
    packed_length: Steers[int] = 4096
    """Maximum length of a packed sequence, tokens (rounded up to 32, 48, 64, 96, 128, ...); a longer row gets its own
    sequence. Of the lengths up to this one, the one with the least padding is used."""
    max_length: int = 16384
    """Maximum length of an example, tokens; longer ones are skipped and counted."""
    learning_rate: Steers[float | None] = None
    """Peak learning rate of AdamW, per step. None: 1e-5 from 7B parameters on, more for a smaller model: 1e-5 times the
    root of 7e9 / parameters, at most 1e-3."""
    logging_steps: Steers[int] = 1
    """Steps between two lines of metrics."""
    save_steps: MayChange[int] = 0
    """Steps between two checkpoints. 0: only at the end."""
    eval_steps: Steers[int] = 0
    """Steps between two measurements of the held-out loss. 0: none."""
    check_texts: MayChange[int] = 16
    """Texts to sample from the trained model at the end, to say how many of them close their tags. 0: none."""
    logprob_chunk: MayChange[int] = 1024
    """Chunk size for logits over the vocabulary, tokens. Changes memory, not results."""
    saved_mlp: MayChange[int] = 0
    """Save the MLP projections of this many last layers for the backward pass instead of recomputing them: less time,
    more memory."""
    saved_attention: MayChange[int] = 0
    """Save the attention of this many last layers for the backward pass: on a GPU, more time saved per GB than with
    saved_mlp."""
    memory: MayChange[MemoryConfig] = MemoryConfig()
    """Where optimizer state is stored, and in which dtype; memory.frozen and memory.policy have no effect, as no
    model is frozen and no engine draws."""
    data: DataConfig
    """Rows to train and evaluate on; each needs a reasoning_trace."""
    optimizer: Steers[OptimizerConfig] = field(
        default_factory=lambda: OptimizerConfig(
            adam_beta2=0.95, weight_decay=1e-4, lr_scheduler="cosine", warmup_ratio=0.05
        )
    )
    """AdamW and its learning rate schedule; the peak rate is --learning-rate."""
    log: MayChange[LogConfig] = LogConfig()
    """What the run writes and shows besides metrics.jsonl and logs/training.log."""
    checkpoint: MayChange[CheckpointConfig] = CheckpointConfig()
    """Which checkpoints the run saves, and whether it exports the model."""
    checks: MayChange[ChecksConfig] = ChecksConfig()
    """What happens to a step with numbers that are not finite."""

    @property
    def tokens_of_update(self) -> int:
        """Tokens per forward and backward pass."""
        longest = self.packed_length if self.packing else self.max_length
        return self.per_device_train_batch_size * longest if self.update_tokens is None else self.update_tokens


def check_sft_config(config: SftConfig) -> None:
    """Reject inconsistent settings.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    check_problems(config, _sft_problems)


def _sft_problems(config: SftConfig) -> Iterator[str]:
    yield from text_problems(
        {
            "model": (config.model, "a model folder or hub name"),
            "output_dir": (config.output_dir, "a folder for the run"),
            "log.wandb_project": (config.log.wandb_project, "the name of a project"),
        }
    )
    positive = {
        "max_steps": 1 if config.max_steps is None else config.max_steps,
        "num_train_epochs": 1 if config.num_train_epochs is None else config.num_train_epochs,
        "train_batch_size": BATCH if config.train_batch_size is None else config.train_batch_size,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "update_tokens": 1 if config.update_tokens is None else config.update_tokens,
        "packed_length": config.packed_length,
        "max_length": config.max_length,
        "logging_steps": config.logging_steps,
        "logprob_chunk": config.logprob_chunk,
    }
    yield from count_problems(positive)
    off_at_zero = {
        "save_steps": config.save_steps,
        "eval_steps": config.eval_steps,
        "check_texts": config.check_texts,
        "saved_mlp": config.saved_mlp,
        "saved_attention": config.saved_attention,
    }
    yield from off_at_zero_problems({name: (count, "0 for none") for name, count in off_at_zero.items()})
    yield from micro_batch_problems(
        micro_batch=config.per_device_train_batch_size,
        batch=BATCH if config.train_batch_size is None else config.train_batch_size,
    )
    if not config.packing and config.packed_length != SftConfig.packed_length:
        yield f"packed_length={config.packed_length} without packing has no effect: add --packing, or leave it out"
    yield from seed_problems(config.seed)
    yield from stop_problems(config.stop_grace)
    yield from data_problems(config.data, eval_steps=config.eval_steps)
    yield from checkpoint_problems(config.checkpoint, save_steps=config.save_steps, eval_steps=config.eval_steps)
    yield from memory_problems(config.memory)
    yield from number_problems(config.checks)
    yield from optimizer_problems(
        config.optimizer, learning_rate=1.0 if config.learning_rate is None else config.learning_rate
    )
