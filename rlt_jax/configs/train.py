"""Settings of a training run, and the check that rejects values that make no sense, alone or together.

Departures from the original:
- `generation_aggregation_steps` has no effect and need not divide anything: a step samples all its completions at once.
- A prompt that is too long is skipped and counted, because a truncated solution makes the reward meaningless;
  `data.truncate_prompts` truncates it as the original does.
- `optimizer.warmup_ratio` applies to the constant schedule too, so that no flag is silently ignored.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from rlt_jax.configs.checks import (
    check_problems,
    count_problems,
    micro_batch_problems,
    off_at_zero_problems,
    seed_problems,
    stop_problems,
    text_problems,
    vllm_share_problems,
)
from rlt_jax.configs.loss import AdvantagesConfig, LossConfig, advantages_problems, loss_problems
from rlt_jax.configs.numbers import AlarmsConfig, ChecksConfig, number_problems
from rlt_jax.configs.resume import MayChange, Steers
from rlt_jax.configs.reward import RewardConfig, reward_problems
from rlt_jax.configs.schema import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    MemoryConfig,
    OptimizerConfig,
    RefConfig,
    Resume,
    SamplerConfig,
    checkpoint_problems,
    data_problems,
    memory_problems,
    optimizer_problems,
    sampler_problems,
)
from rlt_jax.configs.settings import Settings
from rlt_jax.types import RunDtype, ScoringModel

PresetName = Literal["tiny", "mono_basic", "mono85", "mono85_fallback", "mono96", "paper"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """One GRPO run of the teacher."""

    preset: Steers[PresetName] = "tiny"
    """Preset that gives the defaults of all flags."""
    teacher: str
    """Model to train: a local Hugging Face folder or a hub name."""
    student: str
    """Frozen model whose log-probs make the reward: folder or hub name."""
    reference: str | None = None
    """Reference model of the loss's KL term: folder or hub name. None: the teacher as loaded. No effect without a
    reference (see loss.beta)."""
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
    """Seed of data order, sampling and evaluation, 0 to 2**31 - 1."""
    dtype: RunDtype = "auto"
    """Dtype of weights and activations; log-probs and losses are float32. auto: float32 on a CPU, bfloat16 on a GPU."""
    max_steps: Steers[int] = 125
    """Gradient steps of the whole run; each draw is used for num_iterations x num_minibatches of them."""
    train_batch_size: Steers[int]
    """Completions drawn and scored together, a multiple of num_generations. A gradient step uses them all, unless
    num_minibatches splits them."""
    per_device_train_batch_size: MayChange[int]
    """Micro-batch: as many tokens per forward and backward pass on a device as this many of the longest rows have.
    Changes memory, not results."""
    update_tokens: MayChange[int | None] = None
    """Tokens per forward and backward pass, shared prompts counted once. None: see --per-device-train-batch-size."""
    num_generations: Steers[int]
    """Completions per question, 2 or more: the group within which rewards are compared."""
    num_iterations: Steers[int] = 1
    """Passes over the completions of a draw: each of its parts is used for this many gradient steps."""
    num_minibatches: Steers[int] = 1
    """Parts into which the completions of a draw are split, whole groups each; a gradient step uses one part."""
    generation_aggregation_steps: Steers[int] = 1
    """Accepted for compatibility, no effect: a step samples all its completions at once."""
    score_batch_size: MayChange[int]
    """As many tokens per forward pass for log-probs of student, teacher and reference as this many of the longest rows
    have. Changes memory, not results."""
    score_tokens: MayChange[int | None] = None
    """Tokens per forward pass for log-probs, shared prompts counted once. None: see --score-batch-size."""
    max_prompt_length: int
    """Maximum length of the teacher's prompt, with question and solution, tokens; longer ones are skipped and counted,
    or truncated (data.truncate_prompts)."""
    max_completion_length: int
    """Maximum length of a completion, tokens; longer ones are cut off."""
    temperature: float = 0.7
    """Sampling temperature, no unit, above 0."""
    learning_rate: Steers[float] = 1e-6
    """Peak learning rate of AdamW, per step."""
    logging_steps: Steers[int] = 1
    """Steps between two lines of metrics."""
    save_steps: MayChange[int] = 25
    """Steps between two checkpoints. 0: only at the end."""
    eval_steps: Steers[int] = 0
    """Steps between two evaluations on held-out rows (data.eval_rows). 0: none."""
    budget_gb: MayChange[float | None] = None
    """Device memory for the run, over all its devices, GB. None: no budget."""
    planned_gb: MayChange[float | None] = None
    """How much of budget_gb to plan for, GB. None: no plan."""
    host_gb: MayChange[float | None] = None
    """Host memory for the run, GB. None: what the machine reports."""
    vllm_gpu_memory_utilization: MayChange[float] = 0.55
    """Share of budget_gb for a vLLM engine while it samples, in (0, 1]; no effect with the native sampler."""
    data: DataConfig
    """Rows to train and evaluate on, and how they become prompts."""
    sampler: SamplerConfig = SamplerConfig()
    """How the teacher's explanations are sampled."""
    loss: Steers[LossConfig] = LossConfig()
    """The policy's loss and how it is computed."""
    advantages: Steers[AdvantagesConfig] = AdvantagesConfig()
    """How rewards become advantages."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward. Each `-coeff` has a weight for each reduction of its kind, in the same order."""
    optimizer: Steers[OptimizerConfig] = OptimizerConfig()
    """AdamW and its learning rate schedule; the peak rate is --learning-rate."""
    memory: MayChange[MemoryConfig] = MemoryConfig()
    """Where optimizer state and frozen models are stored, and in which dtype."""
    ref: Steers[RefConfig] = RefConfig()
    """The reference model of the loss's KL term, and how it follows the policy. No effect without one (loss.beta 0)."""
    log: MayChange[LogConfig] = LogConfig()
    """What the run writes and shows besides metrics.jsonl and logs/training.log."""
    checkpoint: MayChange[CheckpointConfig] = CheckpointConfig()
    """Which checkpoints the run saves, and whether it exports the model."""
    checks: MayChange[ChecksConfig] = ChecksConfig()
    """What happens to a step with numbers that are not finite."""
    alarms: MayChange[AlarmsConfig] = AlarmsConfig()
    """Limits of metrics beyond which the log warns. None switches an alarm off."""

    @property
    def questions_per_draw(self) -> int:
        """Different questions whose completions are drawn together."""
        return self.train_batch_size // self.num_generations

    @property
    def steps_per_draw(self) -> int:
        """Gradient steps that use the completions of one draw."""
        return self.num_iterations * self.num_minibatches

    @property
    def reads_old_log_probs(self) -> bool:
        """Whether the policy's log-probs before the first gradient step on a draw are computed on their own."""
        return (
            self.steps_per_draw > 1
            or self.loss.top_entropy_quantile < 1
            or (self.loss.kl_in == "reward" and self.loss.beta > 0)
        )

    def uses_reference(self, reads: Collection[ScoringModel] | None = None) -> bool:
        """Whether there is a reference: for the loss's KL term, or as the teacher that the reward reads.

        Args:
          reads: the models that the reward reads; None: those of `reward`, as without a reward function of one's own.
        """
        read = self.reward.reads if reads is None else reads
        return self.loss.beta > 0 or (self.reward.use_reference_teacher_model and "teacher" in read)

    @property
    def tokens_of_update(self) -> int:
        """Tokens per forward and backward pass."""
        longest = self.max_prompt_length + self.max_completion_length
        return self.per_device_train_batch_size * longest if self.update_tokens is None else self.update_tokens

    @property
    def tokens_of_score(self) -> int:
        """Tokens per forward pass."""
        longest = self.max_prompt_length + self.max_completion_length
        return self.score_batch_size * longest if self.score_tokens is None else self.score_tokens

    @property
    def reference_model(self) -> str:
        """Folder or hub name of the reference model, if there is one."""
        return self.teacher if self.own_reference is None else self.own_reference

    @property
    def own_reference(self) -> str | None:
        """Folder or hub name of a reference that is not the teacher; None: it is, or nothing can read a reference."""
        return self.reference if self.loss.beta > 0 or self.reward.use_reference_teacher_model else None

    @property
    def policy_temperature(self) -> float:
        """Temperature that divides the logits of policy and reference in the loss."""
        return self.temperature if self.loss.unbias_log_probabilities else 1.0

    @property
    def compares_sampler(self) -> bool:
        """Whether the sampler's log-probs and the policy's in the loss are of one distribution."""
        return not any(_unlike_log_probs(self))


def check_config(config: TrainConfig) -> None:
    """Reject inconsistent settings.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    check_problems(config, _train_problems)


def _train_problems(config: TrainConfig) -> Iterator[str]:
    yield from text_problems(
        {
            "teacher": (config.teacher, "a model folder or hub name"),
            "student": (config.student, "a model folder or hub name"),
            "reference": (config.reference, "a model folder or hub name, or None for the teacher"),
            "output_dir": (config.output_dir, "a folder for the run"),
            "log.wandb_project": (config.log.wandb_project, "the name of a project"),
        }
    )
    yield from _number_problems(config)
    yield from stop_problems(config.stop_grace)
    yield from _batch_problems(config)
    yield from _budget_problems(config)
    yield from data_problems(config.data, eval_steps=config.eval_steps)
    yield from checkpoint_problems(config.checkpoint, save_steps=config.save_steps, eval_steps=config.eval_steps)
    yield from _sampling_problems(config)
    yield from sampler_problems(config.sampler, temperature=config.temperature)
    yield from reward_problems(config.reward)
    yield from optimizer_problems(config.optimizer, learning_rate=config.learning_rate)
    yield from _objective_problems(config)
    yield from number_problems(config.checks, config.alarms)


def _number_problems(config: TrainConfig) -> Iterator[str]:
    positive = {
        "max_steps": config.max_steps,
        "train_batch_size": config.train_batch_size,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "num_generations": config.num_generations,
        "num_iterations": config.num_iterations,
        "num_minibatches": config.num_minibatches,
        "generation_aggregation_steps": config.generation_aggregation_steps,
        "score_batch_size": config.score_batch_size,
        "update_tokens": 1 if config.update_tokens is None else config.update_tokens,
        "score_tokens": 1 if config.score_tokens is None else config.score_tokens,
        "max_prompt_length": config.max_prompt_length,
        "max_completion_length": config.max_completion_length,
        "logging_steps": config.logging_steps,
        "loss.logprob_chunk": config.loss.logprob_chunk,
        "ref.ref_model_sync_steps": config.ref.ref_model_sync_steps,
    }
    off_at_zero = {
        "save_steps": (config.save_steps, "0 to save only at the end"),
        "eval_steps": (config.eval_steps, "0 for no evaluation"),
        "loss.saved_mlp": (config.loss.saved_mlp, "0 for none"),
        "loss.saved_attention": (config.loss.saved_attention, "0 for none"),
    }
    yield from count_problems(positive)
    yield from off_at_zero_problems(off_at_zero)
    yield from seed_problems(config.seed)


def _batch_problems(config: TrainConfig) -> Iterator[str]:
    batch, group = config.train_batch_size, config.num_generations
    if group == 1:
        yield (
            "num_generations=1 makes every advantage 0, as rewards are compared inside a group: "
            "use 2 or more completions per question"
        )
    if batch >= 1 and group >= 1 and batch % group:
        below = batch // group * group
        choice = f"--train-batch-size {below} or {below + group}" if below else f"--train-batch-size {group}"
        divisor = next((size for size in range(min(group, batch), 1, -1) if batch % size == 0), None)
        other = "" if divisor is None else f", or --num-generations {divisor}"
        yield f"num_generations={group} does not divide train_batch_size={batch}: use {choice}{other}"
    parts = config.num_minibatches
    if batch >= 1 and group >= 1 and parts >= 1 and batch % group == 0 and batch // group % parts:
        yield (
            f"num_minibatches={parts} does not divide the {batch // group} questions of a draw (train_batch_size / "
            "num_generations), whose completions stay together: use one of "
            f"{', '.join(str(n) for n in range(1, batch // group + 1) if batch // group % n == 0)}"
        )
    yield from micro_batch_problems(micro_batch=config.per_device_train_batch_size, batch=batch)


def _budget_problems(config: TrainConfig) -> Iterator[str]:
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
    if config.memory.policy == "host" and config.sampler.kind == "native":
        yield (
            "memory.policy=host with sampler.kind=native: the native sampler reads the policy's weights on the GPU: "
            "add --sampler.kind vllm, or leave memory.policy at device"
        )
    if config.memory.policy == "host" and config.advantages.zero_spread == "replace":
        yield (
            "advantages.zero_spread=replace with memory.policy=host: a second draw in a step needs the weights on the "
            "GPU beside vLLM: leave memory.policy at device, or choose keep or drop"
        )
    yield from vllm_share_problems(config.vllm_gpu_memory_utilization, of="the budget")


def _sampling_problems(config: TrainConfig) -> Iterator[str]:
    if config.temperature <= 0:
        yield (
            f"temperature={config.temperature:g}: expected a number above 0, "
            "as the completions of a group must differ to be compared"
        )
    if not 0 <= config.log.sample_probability <= 1:
        yield f"log.sample_probability={config.log.sample_probability:g}: expected a probability from 0 to 1"


def _objective_problems(config: TrainConfig) -> Iterator[str]:
    yield from loss_problems(config.loss)
    yield from advantages_problems(config.advantages)
    if config.loss.importance_correction != "none":
        for reason in _unlike_log_probs(config):
            yield f"loss.importance_correction={config.loss.importance_correction} with {reason}"
    if not 0 <= config.ref.ref_model_mixup_alpha <= 1:
        yield (
            f"ref.ref_model_mixup_alpha={config.ref.ref_model_mixup_alpha:g}: expected the policy's share, from 0 to 1"
        )


def _unlike_log_probs(config: TrainConfig) -> Iterator[str]:
    """Settings under which log-probs of sampler and policy are not of one distribution, and what to do about each."""
    sampler, temperature = config.sampler, config.temperature
    if sampler.kind != "native" and sampler.filters:
        filters = " and ".join(f"sampler.{name}={value}" for name, value in sampler.filters.items())
        yield (
            f"{filters} and sampler.kind={sampler.kind}: expected log-probs of the whole distribution, but vLLM gives "
            "those after its filters: switch the filters off, or use --sampler.kind native or "
            "--loss.importance-correction none"
        )
    if config.policy_temperature != temperature:
        yield (
            f"temperature={temperature:g} and loss.unbias_log_probabilities off: expected log-probs at one "
            f"temperature, but the sampler's are at {temperature:g} and the policy's at 1: switch "
            "loss.unbias_log_probabilities on, or use --temperature 1 or --loss.importance-correction none"
        )
