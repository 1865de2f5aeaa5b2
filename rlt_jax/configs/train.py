"""The settings of a training run, and the check that refuses those that make no sense, alone or together.

Departures from the original:
- `generation_aggregation_steps` changes nothing: a step is one submission to the sampler, so no divisibility rule.
- A prompt that is too long is skipped and counted, as a cut solution makes its reward meaningless;
  `data.truncate_prompts` brings the original's cut back.
- `optimizer.warmup_ratio` counts with the constant schedule too, so that no flag is ignored in silence.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from rlt_jax.configs.checks import not_finite_problems, text_problems
from rlt_jax.configs.files import type_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.schema import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    MemoryConfig,
    OptimizerConfig,
    RefConfig,
    Resume,
    RewardConfig,
    SamplerConfig,
    data_problems,
    memory_problems,
    optimizer_problems,
    reward_problems,
    sampler_problems,
)
from rlt_jax.errors import UserError
from rlt_jax.types import Dtype

PresetName = Literal["tiny", "mono_basic", "mono85", "mono85_fallback", "mono96", "paper"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One GRPO run of the teacher."""

    preset: PresetName = "tiny"
    """Run whose values are the defaults of all flags."""
    teacher: str
    """Model to train: a local Hugging Face folder or a hub name."""
    student: str
    """Frozen model that is asked how likely the solution is: folder or hub name."""
    reference: str | None = None
    """Model that the KL of the loss pulls to: folder or hub name. None: the teacher as loaded."""
    output_dir: MayChange[str]
    """Run folder: resolved configuration, metrics, logs, checkpoints, exported model."""
    resume: MayChange[Resume] = "auto"
    """auto: continue if the run folder has a checkpoint; never: refuse one with files; must: refuse to start anew."""
    seed: int = 42
    """Seed of data order, sampling and evaluation, 0 to 2**31 - 1."""
    dtype: Dtype = "bfloat16"
    """Number format of weights and activations; log-probs and losses are float32."""
    max_steps: int = 125
    """Gradient steps of the whole run, steps."""
    train_batch_size: int
    """Completions per gradient step, a multiple of num_generations."""
    per_device_train_batch_size: MayChange[int]
    """Micro-batch: sequences per forward and backward pass on a device. Changes memory, not results."""
    num_generations: int
    """Completions per question, the group that rewards are compared in, 2 or more."""
    generation_aggregation_steps: int = 1
    """Accepted for compatibility, micro-batches; without effect: a step samples all its completions at once."""
    score_batch_size: MayChange[int]
    """Sequences per forward pass when student, teacher and reference score. Changes memory, not results."""
    max_prompt_length: int
    """Longest teacher prompt, question and solution included, tokens; data.truncate_prompts says what then."""
    max_completion_length: int
    """Completions are cut off here, tokens."""
    temperature: float = 0.7
    """Sampling temperature, no unit, above 0."""
    learning_rate: float = 1e-6
    """Peak learning rate of AdamW, per step."""
    logging_steps: int = 1
    """Steps between two lines of metrics, steps."""
    save_steps: MayChange[int] = 25
    """Steps between two checkpoints, steps. 0: only at the end."""
    eval_steps: int = 0
    """Steps between two evaluations on data.eval_rows held-out rows, steps. 0: none."""
    budget_gb: MayChange[float | None] = None
    """Device memory that the run is meant for, all its devices together, GB. None: no budget."""
    planned_gb: MayChange[float | None] = None
    """Most of the budget that the run is planned to use, GB. None: no plan."""
    host_gb: MayChange[float | None] = None
    """Host memory that the run may use, GB. None: what the machine says it has."""
    vllm_gpu_memory_utilization: MayChange[float] = 0.55
    """Share of budget_gb for a vLLM engine while it samples, in (0, 1]; without effect on the native sampler."""
    data: DataConfig
    """Rows to train and evaluate on, and the prompts they are laid out with."""
    sampler: SamplerConfig = SamplerConfig()
    """How the teacher's explanations are drawn."""
    loss: LossConfig = LossConfig()
    """The GRPO objective and how it is computed."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward. Each `-coeff` goes with the reductions of its kind, in their order."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule; the peak rate is --learning-rate."""
    memory: MayChange[MemoryConfig] = MemoryConfig()
    """Where the step keeps what it does not need at the moment."""
    ref: RefConfig = RefConfig()
    """The reference that the KL of the loss pulls to, and how it follows the policy."""
    log: MayChange[LogConfig] = LogConfig()
    """What the run writes besides metrics.jsonl and logs/training.log."""
    checkpoint: MayChange[CheckpointConfig] = CheckpointConfig()
    """What is kept of the run."""

    @property
    def questions_per_step(self) -> int:
        """Different questions in one gradient step."""
        return self.train_batch_size // self.num_generations

    @property
    def reference_model(self) -> str:
        """Folder or hub name that the reference is loaded from."""
        return self.teacher if self.reference is None else self.reference

    @property
    def policy_temperature(self) -> float:
        """Divides the logits of policy and reference in the loss."""
        return self.temperature if self.loss.unbias_log_probabilities else 1.0


def check_config(config: TrainConfig) -> None:
    """Stop if the run cannot be what the user wants.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(not_finite_problems(asdict(config)))
    if not problems:  # the rest compares values, so they must be numbers where numbers are due
        problems = [
            *text_problems(
                {
                    "teacher": (config.teacher, "a model folder or hub name"),
                    "student": (config.student, "a model folder or hub name"),
                    "reference": (config.reference, "a model folder or hub name, or None for the teacher"),
                    "output_dir": (config.output_dir, "a folder for the run"),
                    "log.wandb_project": (config.log.wandb_project, "the name of a project"),
                }
            ),
            *_counts(config),
            *_batches(config),
            *_memory(config),
            *data_problems(config.data, eval_steps=config.eval_steps),
            *_sampling(config),
            *sampler_problems(config.sampler),
            *reward_problems(config.reward),
            *optimizer_problems(config.optimizer, learning_rate=config.learning_rate),
            *_objective(config),
        ]
    if problems:
        raise UserError("\n".join(problems))


def _counts(config: TrainConfig) -> Iterator[str]:
    positive = {
        "max_steps": config.max_steps,
        "train_batch_size": config.train_batch_size,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "num_generations": config.num_generations,
        "generation_aggregation_steps": config.generation_aggregation_steps,
        "score_batch_size": config.score_batch_size,
        "max_prompt_length": config.max_prompt_length,
        "max_completion_length": config.max_completion_length,
        "logging_steps": config.logging_steps,
        "loss.logprob_chunk": config.loss.logprob_chunk,
        "ref.ref_model_sync_steps": config.ref.ref_model_sync_steps,
        "checkpoint.keep": config.checkpoint.keep,
    }
    off_at_zero = {
        "save_steps": (config.save_steps, "0 to save only at the end"),
        "eval_steps": (config.eval_steps, "0 for no evaluation"),
        "loss.saved_mlp": (config.loss.saved_mlp, "0 for none"),
        "loss.saved_attention": (config.loss.saved_attention, "0 for none"),
    }
    for name, count in positive.items():
        if count < 1:
            yield f"{name}={count}: expected a positive whole number"
    for name, (number, off) in off_at_zero.items():
        if number is not None and number < 0:
            yield f"{name}={number}: expected a positive whole number, or {off}"
    if not 0 <= config.seed < 2**31:
        yield f"seed={config.seed}: expected a whole number from 0 to {2**31 - 1}"


def _batches(config: TrainConfig) -> Iterator[str]:
    batch, group, micro = config.train_batch_size, config.num_generations, config.per_device_train_batch_size
    if group == 1:
        yield (
            "num_generations=1 makes every advantage 0, as rewards are compared inside a group: "
            "use 2 or more completions per question"
        )
    if batch >= 1 and group >= 1 and batch % group:
        below = batch // group * group
        choice = f"{below} or {below + group}" if below else f"{group}"
        yield f"num_generations={group} does not divide train_batch_size={batch}: use {choice}"
    if micro > batch >= 1:
        yield (
            f"per_device_train_batch_size={micro} is more than train_batch_size={batch}: "
            f"a micro-batch is a part of the batch, use {batch} or less"
        )


def _memory(config: TrainConfig) -> Iterator[str]:
    sizes = {"budget_gb": config.budget_gb, "planned_gb": config.planned_gb, "host_gb": config.host_gb}
    for name, size in sizes.items():
        if size is not None and size <= 0:
            yield f"{name}={size:g}: expected a positive number of GB, or None"
    if config.budget_gb is not None and config.planned_gb is not None and config.planned_gb > config.budget_gb > 0:
        yield (
            f"planned_gb={config.planned_gb:g} is more than budget_gb={config.budget_gb:g}: "
            "plan for less, or raise the budget"
        )
    yield from memory_problems(config.memory)
    if not 0 < config.vllm_gpu_memory_utilization <= 1:
        yield (
            f"vllm_gpu_memory_utilization={config.vllm_gpu_memory_utilization:g}: "
            "expected a share of the budget above 0 and at most 1, such as 0.55"
        )


def _sampling(config: TrainConfig) -> Iterator[str]:
    if config.temperature <= 0:
        yield (
            f"temperature={config.temperature:g}: expected a number above 0, "
            "as the completions of a group must differ to be compared"
        )
    if not 0 <= config.log.sample_probability <= 1:
        yield f"log.sample_probability={config.log.sample_probability:g}: expected a probability from 0 to 1"


def _objective(config: TrainConfig) -> Iterator[str]:
    if config.loss.beta < 0:
        yield f"loss.beta={config.loss.beta:g}: expected 0 or a positive number"
    if config.loss.importance_cap <= 0:
        yield f"loss.importance_cap={config.loss.importance_cap:g}: expected a positive number, such as 2"
    if not 0 <= config.ref.ref_model_mixup_alpha <= 1:
        yield (
            f"ref.ref_model_mixup_alpha={config.ref.ref_model_mixup_alpha:g}: expected the policy's share, from 0 to 1"
        )
