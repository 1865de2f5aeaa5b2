"""The sections of a run's settings: a frozen dataclass each, and its checks. The line below a field is its `--help`.

Names are those of the original RLT code where it has one. Defaults are those of the paper's RLT run (arXiv 2506.08388)
where it states a value; what differs from run to run has no default and comes from a preset (`presets.py`).
A GB is 1e9 bytes, a log-prob is in nats, a share lies between 0 and 1. A field of type `MayChange` alters where, how
fast or in how much memory a result is computed, but not the result: interrupted work may resume with another value.
One of type `Steers` changes how a run trains, but not what its evaluations measure: a resumed run names the change.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlt_jax.configs.checks import column_problems, count_problems, same_path, text_problems
from rlt_jax.configs.numbers import overflow_problems
from rlt_jax.configs.resume import MayChange, Steers
from rlt_jax.configs.settings import Settings
from rlt_jax.types import Dtype, SamplerKind, TagFormat

Resume = Literal["auto", "never", "must"]

VLLM_MIN_TEMPERATURE = 0.01  # it raises lower ones to this


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Rows to train and evaluate on, and how they become prompts."""

    path: str
    """Training rows: a hub name, a local folder, or a .jsonl, .json, .parquet or .csv file."""
    split: str = "train"
    """Split of data.path to train on."""
    subset: str | None = None
    """Subset (configuration) of data.path. None: the only one, or the default that the data set names."""
    eval_path: str | None = None
    """Held-out rows, in the same form as data.path. None: rows of data.path itself (see data.eval_split)."""
    eval_split: str | None = None
    """Held-out split. None: `train` of data.eval_path; without data.eval_path, the last rows of data.split, which are
    then not trained on."""
    eval_subset: str | None = None
    """Subset of data.eval_path, as data.subset. Without data.eval_path, held-out rows are of data.subset."""
    eval_rows: int | None = None
    """Number of held-out rows to evaluate on. 0: none. None: none without evaluations (eval_steps 0); else up to 128:
    those of the held-out source, or without one a fifth of the rows of data.path, which are not trained on."""
    tags: TagFormat | None = None
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`. None: as the
    model was trained (rlt_jax.json in its folder), else bespoke."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the one that the teacher was trained with (rlt_jax.json in its
    folder), else the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the one that the student was
    trained with (rlt_jax.json in its folder), else the default prompt."""
    on_contradiction: MayChange[Literal["stop", "warn"]] = "stop"
    """What to do if tags, prompts, roles or chat templates contradict rlt_jax.json in a model's folder: stop, or
    warn and go on. No effect in sft, which may teach another format: there they are logged."""
    question_column: str | None = None
    """Column with the question. None: `question`, or `prompt`."""
    solution_column: str | None = None
    """Column with the solution, as text or as a number. None: `solution`. A named question or solution is read instead
    of the row's `conversations`."""
    trace_column: str | None = None
    """Column with the reasoning trace. None: `reasoning_trace`."""
    system_column: str | None = None
    """Column with the student's system prompt. None: `system`."""
    truncate_prompts: bool = False
    """Truncate prompts longer than max_prompt_length on the left, as the original does, instead of skipping the row."""
    on_bad_row: Steers[Literal["skip", "stop"]] = "skip"
    """What to do with an unusable row: skip (number, reason and count are reported) or stop."""
    artificial_epochs: Steers[int] = 1
    """Number of shuffled passes over the data that are joined before they are split into steps."""

    @property
    def held_out_source(self) -> tuple[str, str, str | None]:
        """(path, split, subset) of held-out rows that are not the last ones of data.split."""
        subset = self.subset if self.eval_path is None else self.eval_subset
        return self.eval_path or self.path, self.eval_split or "train", subset

    @property
    def eval_subset_flag(self) -> str:
        """The flag that names the subset of held-out rows."""
        return "--data.subset" if self.eval_path is None else "--data.eval-subset"


def data_problems(data: DataConfig, *, eval_steps: int) -> Iterator[str]:
    """Invalid settings of the data, one message each."""
    yield from text_problems(
        {
            "data.path": (data.path, "a hub name, folder or file"),
            "data.split": (data.split, "the name of a split, such as train"),
            "data.subset": (data.subset, "the name of a subset, or None"),
            "data.eval_path": (data.eval_path, "a hub name, folder or file, or None"),
            "data.eval_split": (data.eval_split, "the name of a split, or None"),
            "data.eval_subset": (data.eval_subset, "the name of a subset, or None"),
        }
    )
    yield from column_problems(data, "data.")
    yield from count_problems({"data.artificial_epochs": data.artificial_epochs})
    if data.eval_rows is not None and data.eval_rows < 0:
        yield f"data.eval_rows={data.eval_rows}: expected a positive whole number, 0 for none, or None"
    if eval_steps > 0 and data.eval_rows == 0:
        yield (
            f"eval_steps={eval_steps} but data.eval_rows=0: give the number of held-out rows, such as "
            "--data.eval-rows 32, or --eval-steps 0 for no evaluation"
        )
    eval_split = "train" if data.eval_split is None else data.eval_split
    within = data.eval_split is not None
    if data.eval_path is not None:
        within = same_path(data.path, data.eval_path) and data.subset == data.eval_subset
    if within and eval_split == data.split:
        yield (
            f"data.eval_split={eval_split} of {data.path} is what is trained on: "
            "name another split, or leave out data.eval_path and data.eval_split to hold out the last rows"
        )
    if data.eval_subset is not None and data.eval_path is None:
        yield (
            f"data.eval_subset={data.eval_subset} without data.eval_path: held-out rows are of data.subset: leave it "
            f"out, or add --data.eval-path {data.path}"
        )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(Settings):
    """How texts are sampled."""

    kind: SamplerKind = "native"
    """native: the JAX sampler, runs everywhere; vllm: vLLM in its own process; vllm-server: a running vLLM server."""
    python: MayChange[str | None] = None
    """vllm: path of the Python interpreter for vLLM, which may have other packages than the trainer's. None: the
    trainer's."""
    url: MayChange[str | None] = None
    """vllm-server: the server's address, such as http://127.0.0.1:8000."""
    allow_remote: MayChange[bool] = False
    """vllm-server: accept a URL on another machine, which must see the trainer's shared memory under the same path."""
    on_mismatch: MayChange[Literal["stop", "warn"]] = "stop"
    """vllm, vllm-server: what to do if the log-probs of vLLM and the trainer differ too much after a sync of the
    weights."""
    sync_tolerance: MayChange[float | None] = None
    """vllm, vllm-server: limit of the mean difference of these log-probs, nats. None: 0.2 for bfloat16, 0.001 for
    float32."""
    top_k: int = 0
    """Sample from the k likeliest tokens. 0: off. With vLLM, a filter (this or the next two) rules out
    loss.importance_correction and the metrics that compare log-probs of sampler and policy."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability, in (0, 1]. 1: off."""
    min_p: float = 0.0
    """Do not sample tokens below this share of the likeliest token's probability, in [0, 1). 0: off."""
    max_batch: MayChange[int] = 32
    """native: maximum number of sequences decoded together. More is faster and takes more memory."""

    @property
    def filters(self) -> dict[str, float]:
        """The filters that are on, by field name."""
        values = {"top_k": (self.top_k, 0), "top_p": (self.top_p, 1), "min_p": (self.min_p, 0)}
        return {name: value for name, (value, off) in values.items() if value != off}


def sampler_problems(sampler: SamplerConfig, *, temperature: float) -> Iterator[str]:
    """Invalid settings of the sampler, one message each."""
    yield from text_problems(
        {
            "sampler.python": (sampler.python, "the path of a Python interpreter, or None"),
            "sampler.url": (sampler.url, "the address of a vLLM server, or None"),
        }
    )
    yield from count_problems({"sampler.max_batch": sampler.max_batch})
    if sampler.top_k < 0:
        yield f"sampler.top_k={sampler.top_k}: expected a positive whole number, or 0 for off"
    if not 0 < sampler.top_p <= 1:
        yield f"sampler.top_p={sampler.top_p:g}: expected a share above 0 and at most 1, where 1 is off"
    if not 0 <= sampler.min_p < 1:
        yield f"sampler.min_p={sampler.min_p:g}: expected a share from 0, which is off, to below 1"
    if sampler.kind == "vllm-server" and sampler.url is None:
        yield "sampler.kind=vllm-server without sampler.url: give the server's address, such as http://127.0.0.1:8000"
    if sampler.kind != "vllm-server" and sampler.url is not None:
        yield (
            f"sampler.url={sampler.url} with sampler.kind={sampler.kind}: only vllm-server has a URL: "
            "leave it out, or add --sampler.kind vllm-server"
        )
    if sampler.kind != "vllm" and sampler.python is not None:
        yield (
            f"sampler.python={sampler.python} with sampler.kind={sampler.kind}: only vllm starts an interpreter: "
            "leave it out, or add --sampler.kind vllm"
        )
    if sampler.kind != "native" and 0 < temperature < VLLM_MIN_TEMPERATURE:
        yield (
            f"temperature={temperature:g} with sampler.kind={sampler.kind}: vLLM would sample at "
            f"{VLLM_MIN_TEMPERATURE:g}, its minimum: raise the temperature, or use --sampler.kind native"
        )
    if sampler.sync_tolerance is not None and sampler.sync_tolerance <= 0:
        yield f"sampler.sync_tolerance={sampler.sync_tolerance:g}: expected a positive number of nats, or None"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings):
    """AdamW and its learning rate schedule; the peak rate is learning_rate."""

    adam_beta1: float = 0.9
    """Decay of the first moment, share kept per step."""
    adam_beta2: float = 0.999
    """Decay of the second moment, share kept per step."""
    adam_epsilon: float = 1e-8
    """Added to the square root of the second moment, gradient units."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate at each step."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this global L2 norm."""
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after warm-up: constant, or decaying to 0 at max_steps."""
    warmup_ratio: float = 0.0
    """Share of max_steps over which the learning rate rises to its peak, with any schedule."""


def optimizer_problems(optimizer: OptimizerConfig, *, learning_rate: float) -> Iterator[str]:
    """Invalid settings of the optimizer, one message each."""
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
    yield from overflow_problems(optimizer, learning_rate=learning_rate)


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Settings):
    """Where optimizer state and frozen models are stored, and in which dtype. Host memory is pinned."""

    optimizer: Literal["device", "host"] = "device"
    """AdamW's moments and the low halves of the float32 master weights: on the GPU, or on the host and streamed by
    layer."""
    frozen: Literal["device", "host"] = "device"
    """Student and reference: always on the GPU, or on the host and copied to the GPU to score."""
    policy: Literal["device", "host"] = "device"
    """The policy's weights while vLLM is awake: on the GPU, or on the host, from where they are copied to the GPU to
    score and update."""
    moments: Dtype = "float32"
    """Dtype of the moments on the host; bfloat16 halves their memory and rounds them at every step."""
    gradients: Dtype = "float32"
    """Dtype of the summed gradients on the GPU; bfloat16 halves their memory and rounds them at every micro-batch."""


def memory_problems(memory: MemoryConfig) -> Iterator[str]:
    """Invalid settings of the memory, one message each."""
    if memory.moments == "bfloat16" and memory.optimizer == "device":
        yield (
            "memory.moments=bfloat16 with memory.optimizer=device: only moments on the host can be "
            "bfloat16, add --memory.optimizer host or leave memory.moments at float32"
        )


@dataclass(frozen=True, kw_only=True)
class RefConfig(Settings):
    """The reference model of the loss's KL term, and how it follows the policy (TR-DPO, arXiv 2404.09656)."""

    sync_ref_model: bool = True
    """Move the reference towards the policy. Off: keep it as loaded."""
    ref_model_sync_steps: int = 32
    """Steps between two moves of the reference."""
    ref_model_mixup_alpha: float = 0.9
    """Share a of the policy in reference = a * policy + (1 - a) * reference."""


@dataclass(frozen=True, kw_only=True)
class LogConfig(Settings):
    """What a run writes and shows besides metrics.jsonl and logs/training.log."""

    tensorboard: bool = True
    """Write TensorBoard events."""
    wandb: bool = False
    """Write to Weights & Biases."""
    wandb_project: str = "rlt_jax"
    """Weights & Biases project."""
    sample_probability: float = 0.05
    """Probability that a completion of a training step is written to completions.jsonl."""
    progress: bool = True
    """Show a progress bar with the time left."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Settings):
    """Which checkpoints a run saves, and whether it exports the model."""

    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_best: str | None = None
    """Also keep the checkpoint with the best value of this metric of the evaluation at its step, such as eval/reward;
    names that end in loss: the lowest."""
    at_end: bool = True
    """Write a checkpoint after the last step. Off: a finished run cannot be extended from its last step."""
    export: bool = True
    """At the end, export the trained model with its tokenizer as a Hugging Face folder."""


def checkpoint_problems(checkpoint: CheckpointConfig, *, save_steps: int, eval_steps: int) -> Iterator[str]:
    """Invalid settings of the checkpoints, one message each."""
    yield from count_problems({"checkpoint.keep": checkpoint.keep})
    best, expected = checkpoint.keep_best, "a metric of the evaluation, such as eval/reward, or None"
    yield from text_problems({"checkpoint.keep_best": (best, expected)})
    if best is None or not best.strip():
        return
    if eval_steps <= 0:
        yield f"checkpoint.keep_best={best} without evaluations: add --eval-steps, or leave it out"
    elif save_steps > 0 and save_steps % eval_steps:
        yield (
            f"checkpoint.keep_best={best} needs an evaluation at every checkpoint, but save_steps={save_steps} is no "
            f"multiple of eval_steps={eval_steps}: use --save-steps {-(-save_steps // eval_steps) * eval_steps}"
        )
