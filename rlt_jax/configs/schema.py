"""What a training run can be told: one frozen dataclass per section; the line below a field becomes its `--help`.

Names keep those of the original RLT code where it has one. Every default here is the paper's RLT run (arXiv 2506.08388)
where that states a value; what differs from run to run has no default and comes from a preset (`presets.py`).
A GB is 1e9 bytes, a log-prob is in nats, a share lies between 0 and 1.

Departures from the original:
  - `generation_aggregation_steps` changes nothing: a step is one submission to the sampler, so no divisibility rule.
  - A prompt that is too long is skipped and counted, as a cut solution makes its reward meaningless;
    `data.truncate_prompts` brings the original's cut back.
  - `optimizer.warmup_ratio` counts with the constant schedule too, so that no flag is ignored in silence.
"""

from dataclasses import dataclass
from typing import Literal

PresetName = Literal["tiny", "mono_basic", "mono85", "mono85_fallback", "mono96", "paper"]
Reduction = Literal["mean", "sum", "min", "max", "median", "first_quartile", "last_quartile"]
Normalization = Literal["exp", "exp_norm"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Rows to train and evaluate on, and the prompts they are laid out with."""

    path: str
    """Training rows: a hub name, a local folder, or a .jsonl or .parquet file."""
    split: str = "train"
    """Split of data.path to train on."""
    eval_path: str | None = None
    """Held-out rows, as data.path. None: rows of data.path itself (see data.eval_split)."""
    eval_split: str | None = None
    """Held-out split. None: `train` of data.eval_path, or without one the last rows of data.split, taken out of it."""
    eval_rows: int = 0
    """Held-out rows to evaluate on, rows. 0: none."""
    tags: Literal["bespoke", "r1"] = "bespoke"
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the default prompt."""
    truncate_prompts: bool = False
    """Cut a prompt longer than max_prompt_length on its left, as the original does, instead of skipping its row."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with a row that cannot be used: skip it, with number, reason and a count, or stop the run."""
    artificial_epochs: int = 1
    """Random orders of the data that are joined before they are cut into steps, count."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the teacher's explanations are drawn."""

    kind: Literal["native", "vllm", "vllm-server"] = "native"
    """Who draws: the JAX sampler, which runs everywhere; vLLM in a process of its own; a vLLM server that runs."""
    python: str | None = None
    """vllm: interpreter to run it with, a path; its packages need not be the trainer's. None: the trainer's."""
    url: str | None = None
    """vllm-server: where it listens, such as http://127.0.0.1:8000."""
    allow_remote: bool = False
    """vllm-server: accept a URL on another machine, which must see the trainer's shared memory under the same path."""
    on_mismatch: Literal["stop", "warn"] = "stop"
    """vllm kinds: what to do when log-probs of vLLM and trainer differ too much after a sync of the weights."""
    sync_tolerance: float | None = None
    """vllm kinds: most mean difference of those log-probs, nats. None: 0.2 for bfloat16, 0.001 for float32."""
    top_k: int = 0
    """Draw among the k likeliest tokens, tokens. 0: off."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this share of the probability, in (0, 1]. 1: off."""
    min_p: float = 0.0
    """Drop tokens below this share of the likeliest token's probability, in [0, 1). 0: off."""
    max_batch: int = 32
    """Native sampler: most sequences decoded together, sequences. More is faster and takes more memory."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The GRPO objective and how it is computed."""

    beta: float = 0.04
    """Weight of the KL to the reference in the loss, per nat. 0: no KL term."""
    unbias_log_probabilities: bool = True
    """Divide policy and reference logits by the sampling temperature."""
    logprob_chunk: int = 1024
    """Tokens whose logits over the vocabulary are held at once, tokens. Changes memory, not results."""
    kept_mlp: int | None = None
    """Last layers whose MLP projections are kept for the backward pass instead of computed again: time for memory.
    None: as many as planned_gb leaves room for, which is none without a plan."""
    kept_attention: int | None = None
    """Last layers whose attention is kept for the backward pass: more time saved per GB, on a card. None: as kept_mlp,
    and before it."""
    importance_correction: Literal["none", "token", "sequence"] = "none"
    """Weigh the gain by policy over sampler probability, of each token or of the whole completion."""
    importance_cap: float = 2.0
    """Importance weights are cut off here (truncated importance sampling), no unit."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The teacher's reward: how well the student then knows the solution, less how far the thought is from its own."""

    answer_log_prob_coeff: tuple[float, ...] = (1.0, 0.01)
    """Weight of each reduction of the student's solution log-probs, per nat. One number: for every reduction."""
    kl_penalty_reward_coeff: tuple[float, ...] = (3.0, 0.03)
    """Weight of each reduction of the thought's KL, subtracted, per nat. One number: for every reduction."""
    reduction_log_prob: tuple[Reduction, ...] = ("mean", "min")
    """How the solution's token log-probs become one number each."""
    reduction_kl: tuple[Reduction, ...] = ("mean", "max")
    """How the thought's token KLs become one number each."""
    normalize_log_prob: Normalization | None = None
    """Map each token log-prob x before the reductions: exp is exp(x), exp_norm is 1 - exp(-x). None: as it is."""
    normalize_kl: Normalization | None = None
    """Map each token KL x before the reductions: exp is exp(x), exp_norm is 1 - exp(-x). None: as it is."""
    clip_log_prob: float | None = 100_000.0
    """Token log-probs, once normalised, are no less than minus this, nats. None: no limit."""
    clip_kl: float | None = 100_000.0
    """Token KLs, once normalised, are no more than this, nats. None: no limit."""
    use_schulman_kl_estimation: bool = False
    """Token KL by k3 = kl - 1 + exp(-kl) instead of the log-ratio kl itself."""
    include_teacher_think_entropy: bool = True
    """KL against the teacher's log-probs of its thought. Off: minus the student's log-probs alone."""
    not_matched_penalty: float = -1.0
    """Added once to the reward of an explanation whose tags are not closed, reward units, 0 or less."""
    unbias_teacher_log_probs: bool = True
    """Divide the teacher's logits by the sampling temperature."""
    unbias_student_log_probs_temp: float | None = 0.7
    """Temperature that divides the student's logits, no unit. None: 1."""
    use_reference_teacher_model: bool = False
    """Take the teacher's log-probs from the reference instead of the current policy."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule; the peak rate is learning_rate."""

    adam_beta1: float = 0.9
    """Decay of the first moment, share kept per step."""
    adam_beta2: float = 0.999
    """Decay of the second moment, share kept per step."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment, gradient units."""
    weight_decay: float = 0.0
    """Decoupled decay of the weights, share of the learning rate per step."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this global L2 norm."""
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after warm-up: constant, or down to 0 at max_steps."""
    warmup_ratio: float = 0.0
    """Share of max_steps in which the rate rises to learning_rate, with any schedule."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Where a step keeps what it does not need at the moment, and how precisely. Host memory is the pinned kind."""

    optimizer: Literal["card", "host"] = "card"
    """AdamW's moments and the low halves of the float32 masters: on the card, or on the host and streamed by layer."""
    frozen: Literal["card", "host"] = "card"
    """Student and reference: on the card throughout, or on the host and on the card while they score."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Type of the moments on the host; bfloat16 takes half as much, and rounds them at every step."""
    accumulators: Literal["float32", "bfloat16"] = "float32"
    """Type of the gradient sums on the card; bfloat16 takes half as much, and rounds them at every micro-batch."""


@dataclass(frozen=True, kw_only=True)
class RefConfig:
    """The reference that the KL of the loss pulls to, and how it follows the policy (TR-DPO, arXiv 2404.09656)."""

    sync_ref_model: bool = True
    """Move the reference towards the policy; off keeps it as loaded."""
    ref_model_sync_steps: int = 32
    """Steps between two such moves, steps."""
    ref_model_mixup_alpha: float = 0.9
    """Share a of the policy in reference = a * policy + (1 - a) * reference."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes besides metrics.jsonl and logs/training.log."""

    tensorboard: bool = True
    """Write TensorBoard events."""
    wandb: bool = False
    """Write to Weights & Biases."""
    wandb_project: str = "rlt_jax"
    """Weights & Biases project."""
    sample_probability: float = 0.05
    """Share of sampled completions that are written to a file, probability per completion."""
    progress: bool = True
    """Show a progress display with the time left."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run."""

    keep: int = 2
    """Newest checkpoints that are kept, checkpoints."""
    at_end: bool = True
    """Write a checkpoint after the last step. Off: a finished run leaves none of it and cannot be continued."""
    export: bool = True
    """At the end, write the teacher as a Hugging Face folder with its tokenizer."""


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
    output_dir: str
    """Run folder: resolved configuration, metrics, logs, checkpoints, exported model."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue if the run folder has a checkpoint; never: refuse one with files; must: refuse to start anew."""
    seed: int = 42
    """Seed of data order, sampling and evaluation, 0 to 2**31 - 1."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of weights and activations; log-probs and losses are float32."""
    max_steps: int = 125
    """Gradient steps of the whole run, steps."""
    train_batch_size: int
    """Completions per gradient step, a multiple of num_generations."""
    per_device_train_batch_size: int
    """Micro-batch: sequences per forward and backward pass on a device. Changes memory, not results."""
    num_generations: int
    """Completions per question, the group that rewards are compared in, 2 or more."""
    generation_aggregation_steps: int = 1
    """Accepted for compatibility, micro-batches; without effect: a step samples all its completions at once."""
    score_batch_size: int
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
    save_steps: int = 25
    """Steps between two checkpoints, steps. 0: only at the end."""
    eval_steps: int = 0
    """Steps between two evaluations on data.eval_rows held-out rows, steps. 0: none."""
    budget_gb: float | None = None
    """Device memory that the run is meant for, all its devices together, GB. None: no budget."""
    planned_gb: float | None = None
    """Most of the budget that the run is planned to use, GB. None: no plan."""
    host_gb: float | None = None
    """Host memory that the run may use, GB. None: what the machine says it has."""
    vllm_gpu_memory_utilization: float = 0.55
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
    memory: MemoryConfig = MemoryConfig()
    """Where the step keeps what it does not need at the moment."""
    ref: RefConfig = RefConfig()
    """The reference that the KL of the loss pulls to, and how it follows the policy."""
    log: LogConfig = LogConfig()
    """What the run writes besides metrics.jsonl and logs/training.log."""
    checkpoint: CheckpointConfig = CheckpointConfig()
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

    @property
    def teacher_temperature(self) -> float:
        """Divides the teacher's logits in the reward."""
        return self.temperature if self.reward.unbias_teacher_log_probs else 1.0

    @property
    def student_temperature(self) -> float:
        """Divides the student's logits in the reward."""
        return self.reward.unbias_student_log_probs_temp or 1.0
