"""The sections of a run's settings: a frozen dataclass each, and its checks; the line below a field is its `--help`.

Names keep those of the original RLT code where it has one. Every default here is the paper's RLT run (arXiv 2506.08388)
where that states a value; what differs from run to run has no default and comes from a preset (`presets.py`).
A GB is 1e9 bytes, a log-prob is in nats, a share lies between 0 and 1. A field of type `MayChange` alters where, how
fast or in how much memory a result is computed, but not the result: work that was begun may resume with another value.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlt_jax.configs.checks import text_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.types import Dtype, Normalization, Reduction, TagFormat

Resume = Literal["auto", "never", "must"]


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
    tags: TagFormat = "bespoke"
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


def data_problems(data: DataConfig, *, eval_steps: int) -> Iterator[str]:
    """What is wrong with the choice of rows, one message each."""
    yield from text_problems(
        {
            "data.path": (data.path, "a hub name, folder or file"),
            "data.split": (data.split, "the name of a split, such as train"),
            "data.eval_path": (data.eval_path, "a hub name, folder or file, or None"),
            "data.eval_split": (data.eval_split, "the name of a split, or None"),
        }
    )
    if data.artificial_epochs < 1:
        yield f"data.artificial_epochs={data.artificial_epochs}: expected a positive whole number"
    if data.eval_rows < 0:
        yield f"data.eval_rows={data.eval_rows}: expected a positive whole number, or 0 for none"
    if eval_steps > 0 and data.eval_rows == 0:
        yield (
            f"eval_steps={eval_steps} but data.eval_rows=0: give the number of held-out rows, "
            "or --eval-steps 0 for no evaluation"
        )
    eval_split = "train" if data.eval_split is None else data.eval_split
    same_path = data.path == data.eval_path or (data.eval_path is None and data.eval_split is not None)
    if same_path and eval_split == data.split:
        yield (
            f"data.eval_split={eval_split} of {data.path} is what is trained on: "
            "name another split, or leave out data.eval_path and data.eval_split to hold out the last rows"
        )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the teacher's explanations are drawn."""

    kind: Literal["native", "vllm", "vllm-server"] = "native"
    """Who draws: the JAX sampler, which runs everywhere; vLLM in a process of its own; a vLLM server that runs."""
    python: MayChange[str | None] = None
    """vllm: interpreter to run it with, a path; its packages need not be the trainer's. None: the trainer's."""
    url: MayChange[str | None] = None
    """vllm-server: where it listens, such as http://127.0.0.1:8000."""
    allow_remote: MayChange[bool] = False
    """vllm-server: accept a URL on another machine, which must see the trainer's shared memory under the same path."""
    on_mismatch: MayChange[Literal["stop", "warn"]] = "stop"
    """vllm kinds: what to do when log-probs of vLLM and trainer differ too much after a sync of the weights."""
    sync_tolerance: MayChange[float | None] = None
    """vllm kinds: most mean difference of those log-probs, nats. None: 0.2 for bfloat16, 0.001 for float32."""
    top_k: int = 0
    """Draw among the k likeliest tokens, tokens. 0: off."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this share of the probability, in (0, 1]. 1: off."""
    min_p: float = 0.0
    """Drop tokens below this share of the likeliest token's probability, in [0, 1). 0: off."""
    max_batch: MayChange[int] = 32
    """Native sampler: most sequences decoded together, sequences. More is faster and takes more memory."""


def sampler_problems(sampler: SamplerConfig) -> Iterator[str]:
    """What is wrong with how completions are drawn, one message each."""
    yield from text_problems(
        {
            "sampler.python": (sampler.python, "the path of a Python interpreter, or None"),
            "sampler.url": (sampler.url, "the address of a vLLM server, or None"),
        }
    )
    if sampler.max_batch < 1:
        yield f"sampler.max_batch={sampler.max_batch}: expected a positive whole number"
    if sampler.top_k < 0:
        yield f"sampler.top_k={sampler.top_k}: expected a positive whole number, or 0 for off"
    if not 0 < sampler.top_p <= 1:
        yield f"sampler.top_p={sampler.top_p:g}: expected a share above 0 and at most 1, where 1 is off"
    if not 0 <= sampler.min_p < 1:
        yield f"sampler.min_p={sampler.min_p:g}: expected a share from 0, which is off, to below 1"
    if sampler.kind == "vllm-server" and sampler.url is None:
        yield "sampler.kind=vllm-server without sampler.url: give the server's address, such as http://127.0.0.1:8000"
    if sampler.kind != "vllm-server" and sampler.url is not None:
        yield f"sampler.url={sampler.url} with sampler.kind={sampler.kind}: only vllm-server talks to a server"
    if sampler.kind != "vllm" and sampler.python is not None:
        yield f"sampler.python={sampler.python} with sampler.kind={sampler.kind}: only vllm starts a Python of its own"
    if sampler.sync_tolerance is not None and sampler.sync_tolerance <= 0:
        yield f"sampler.sync_tolerance={sampler.sync_tolerance:g}: expected a positive number of nats, or None"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The GRPO objective and how it is computed."""

    beta: float = 0.04
    """Weight of the KL to the reference in the loss, per nat. 0: no KL term."""
    unbias_log_probabilities: bool = True
    """Divide policy and reference logits by the sampling temperature."""
    logprob_chunk: MayChange[int] = 1024
    """Tokens whose logits over the vocabulary are held at once, tokens. Changes memory, not results."""
    saved_mlp: MayChange[int | None] = None
    """Last layers whose MLP projections are kept for the backward pass instead of computed again: time for memory.
    None: as many as planned_gb leaves room for, which is none without a plan."""
    saved_attention: MayChange[int | None] = None
    """Last layers whose attention is kept for the backward pass: more time saved per GB, on a GPU. None: as saved_mlp,
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

    def teacher_temperature(self, sampling_temperature: float) -> float:
        """Divides the teacher's logits; greedy explanations (temperature 0) have none."""
        return (sampling_temperature if self.unbias_teacher_log_probs else 1.0) or 1.0

    @property
    def student_temperature(self) -> float:
        """Divides the student's logits."""
        return self.unbias_student_log_probs_temp or 1.0


def reward_problems(reward: RewardConfig) -> Iterator[str]:
    """What is wrong with the reward's settings, one message each."""
    pairs = (
        ("answer_log_prob_coeff", reward.answer_log_prob_coeff, "reduction_log_prob", reward.reduction_log_prob),
        ("kl_penalty_reward_coeff", reward.kl_penalty_reward_coeff, "reduction_kl", reward.reduction_kl),
    )
    for coeff_name, coeffs, reduction_name, reductions in pairs:
        if not reductions:
            yield f"reward.{reduction_name} is empty: expected at least one; a weight of 0 switches the term off"
        elif len(coeffs) not in (1, len(reductions)):
            yield (
                f"reward.{coeff_name} has {len(coeffs)} weights and reward.{reduction_name} has {len(reductions)} "
                f"reductions: give one weight for all or {len(reductions)}"
            )
        if len(set(reductions)) < len(reductions):
            yield f"reward.{reduction_name} names a reduction twice: give it once, with the sum of the weights"
    for name, clip in (("clip_log_prob", reward.clip_log_prob), ("clip_kl", reward.clip_kl)):
        if clip is not None and clip <= 0:
            yield f"reward.{name}={clip:g}: expected a positive number of nats, or None for no limit"
    if reward.not_matched_penalty > 0:
        yield (
            f"reward.not_matched_penalty={reward.not_matched_penalty:g} would reward unclosed tags: "
            "expected 0 or a negative number"
        )
    if reward.unbias_student_log_probs_temp is not None and reward.unbias_student_log_probs_temp <= 0:
        yield (
            f"reward.unbias_student_log_probs_temp={reward.unbias_student_log_probs_temp:g}: "
            "expected a temperature above 0, or None for 1"
        )


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


def optimizer_problems(optimizer: OptimizerConfig, *, learning_rate: float) -> Iterator[str]:
    """What is wrong with the optimizer's settings, one message each."""
    for name, beta in (("adam_beta1", optimizer.adam_beta1), ("adam_beta2", optimizer.adam_beta2)):
        if not 0 <= beta < 1:
            yield f"optimizer.{name}={beta:g}: expected a share from 0 to below 1"
    positive = {
        "learning_rate": (learning_rate, "such as 1e-6"),
        "optimizer.adam_epsilon": (optimizer.adam_epsilon, "such as 1e-8"),
        "optimizer.max_grad_norm": (optimizer.max_grad_norm, "such as 1; a very large one never clips"),
    }
    for name, (number, example) in positive.items():
        if number <= 0:
            yield f"{name}={number:g}: expected a positive number, {example}"
    if optimizer.weight_decay < 0:
        yield f"optimizer.weight_decay={optimizer.weight_decay:g}: expected 0 or a positive number"
    if not 0 <= optimizer.warmup_ratio <= 1:
        yield f"optimizer.warmup_ratio={optimizer.warmup_ratio:g}: expected a share of max_steps, from 0 to 1"


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Where a step keeps what it does not need at the moment, and how precisely. Host memory is the pinned kind."""

    optimizer: Literal["device", "host"] = "device"
    """AdamW's moments and the low halves of the float32 masters: on the GPU, or on the host and streamed by layer."""
    frozen: Literal["device", "host"] = "device"
    """Student and reference: on the GPU throughout, or on the host and on the GPU while they score."""
    moments: Dtype = "float32"
    """Type of the moments on the host; bfloat16 takes half as much, and rounds them at every step."""
    gradients: Dtype = "float32"
    """Type of the gradient sums on the GPU; bfloat16 takes half as much, and rounds them at every micro-batch."""


def memory_problems(memory: MemoryConfig) -> Iterator[str]:
    """What is wrong with the memory settings, one message each."""
    if memory.moments == "bfloat16" and memory.optimizer == "device":
        yield (
            "memory.moments=bfloat16 with memory.optimizer=device: only moments on the host are stored so, "
            "add --memory.optimizer host or leave memory.moments at float32"
        )


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
