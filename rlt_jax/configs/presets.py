"""Ready-made runs. `python -m rlt_jax.train --preset NAME` starts one; any flag after it changes a value.

The mono presets are full-parameter 7B runs for one GPU with the memory in their name, `paper` is the run of the RLT
paper (arXiv 2506.08388), and `tiny` shows on two CPU cores that everything works. All but `tiny` share the defaults of
`schema.py` (AdamW at 1e-6, KL weight 0.04, temperature 0.7, bf16 on a GPU, 125 steps, a checkpoint every 25) and the
paper's models, data and reward weights.

Tokens of a pass (`update_tokens`, `score_tokens`) hold a prompt and several of its completions, all as long as they may
be, without padding; the plan (`python -m rlt_jax.plan`) says what fits beside them. Where rows of a pass are given
(`--per-device-train-batch-size`, `--score-batch-size`), they count instead.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlt_jax.configs.checks import same_path
from rlt_jax.configs.files import build, read_yaml
from rlt_jax.configs.following import Layer, for_rows, given_keys, print_note, rows_note, settle
from rlt_jax.configs.loss import LossConfig
from rlt_jax.configs.schema import DataConfig, LogConfig, MemoryConfig, SamplerConfig
from rlt_jax.configs.train import PresetName, TrainConfig
from rlt_jax.errors import UserError

_TINY_ASSETS = Path(__file__).resolve().parents[1] / "assets" / "tiny"

TINY = TrainConfig(
    preset="tiny",
    teacher=str(_TINY_ASSETS / "teacher"),
    student=str(_TINY_ASSETS / "student"),
    output_dir="runs/tiny",
    dtype="float32",
    max_steps=40,
    train_batch_size=64,
    per_device_train_batch_size=32,
    num_generations=8,
    score_batch_size=64,
    max_prompt_length=512,  # its own prompts have fewer than 96; the default prompt with rows of a user's, more
    max_completion_length=64,
    learning_rate=1e-4,
    eval_steps=10,
    data=DataConfig(
        path=str(_TINY_ASSETS / "train.jsonl"),
        eval_path=str(_TINY_ASSETS / "eval.jsonl"),
        eval_rows=128,
    ),
    sampler=SamplerConfig(max_batch=64),
    loss=LossConfig(saved_mlp=3, saved_attention=3),
    log=LogConfig(sample_probability=0.1),
)
"""Two small checkpoints that come with the package, on synthetic arithmetic.

    python -m rlt_jax.train --preset tiny

Hardware: two CPU cores. Measured 2026-11-23 with an empty compilation cache: 51 s, 1.2 GB of host memory, and on 128
held-out prompts reward -1.11 -> -0.31 (z 6.7), solution log-prob -0.75 -> -0.17 nats per token (z 6.5).
"""

MONO85 = TrainConfig(
    preset="mono85",
    teacher="Qwen/Qwen2.5-7B-Instruct",
    student="bespokelabs/Bespoke-Stratos-7B",
    output_dir="runs/mono85",
    train_batch_size=96,
    per_device_train_batch_size=3,
    update_tokens=43_008,
    num_generations=24,
    generation_aggregation_steps=3,
    score_batch_size=3,
    score_tokens=55_296,
    max_prompt_length=6144,
    max_completion_length=6144,
    eval_steps=25,
    budget_gb=85.0,
    planned_gb=77.0,
    vllm_gpu_memory_utilization=0.55,
    data=DataConfig(path="bespokelabs/Bespoke-Stratos-17k", eval_rows=32),
    sampler=SamplerConfig(kind="vllm"),
    memory=MemoryConfig(optimizer="host", frozen="host"),
)
"""A 7B teacher on one 80 GiB GPU (85 GB): 96 completions of up to 6144 tokens per step, 24 per question.

    python -m rlt_jax.train --preset mono85 --teacher FOLDER

FOLDER is the teacher after its supervised warm-up; without the flag, training starts from plain Qwen2.5-7B-Instruct.
The last 32 rows are held out for evaluation. Hardware: one A100 or H100 80 GB, and 128 GiB of host memory (about 97 GB
with --memory.moments bfloat16). A pass of the update holds a prompt and 6 completions at full length, one of scoring 8.
`python -m rlt_jax.plan --preset mono85` lists its memory. Measured 2026-11-25 on an H100 with 3 rows a pass, random
weights, bfloat16 moments, all lengths at their limit: a GPU peak of 76.3 GB; 24 completions in 128 s (generate 58,
score 30, update 40, sync 0.4). 96 completions, hours of a whole run, expected numbers: not measured yet.
"""

MONO85_FALLBACK = replace(
    MONO85,
    preset="mono85_fallback",
    output_dir="runs/mono85_fallback",
    train_batch_size=64,
    per_device_train_batch_size=2,
    num_generations=16,
    score_batch_size=2,
    update_tokens=28_672,
    score_tokens=53_248,
    max_prompt_length=4096,
    max_completion_length=6144,
    planned_gb=None,
    vllm_gpu_memory_utilization=0.5,
)
"""mono85 for a GPU on which it does not fit: shorter prompts, smaller batches and groups. planned_gb is not set.

    python -m rlt_jax.train --preset mono85_fallback --teacher FOLDER

A pass of the update holds a prompt and 4 completions at full length, one of scoring 8: the plan is 66.8 GB of GPU
memory. Hardware: meant for one A100 or H100 80 GB. Hours, memory, expected numbers: not measured yet.
"""

MONO_BASIC = replace(
    MONO85,
    preset="mono_basic",
    output_dir="runs/mono_basic",
    train_batch_size=32,
    num_generations=8,
    update_tokens=6_144,
    score_tokens=18_432,
    max_prompt_length=2048,
    max_completion_length=2048,
    budget_gb=40.0,
    planned_gb=None,
    vllm_gpu_memory_utilization=0.7,
    memory=replace(MONO85.memory, policy="host", gradients="bfloat16"),
)
"""The smallest 7B run, for a first look: 32 completions of up to 2048 tokens per step, 40 GB.

    python -m rlt_jax.train --preset mono_basic --teacher FOLDER

Gradients are summed in bfloat16: the weights and float32 gradients of 7.6 B parameters alone take 45.7 GB. vLLM gets 28
GB, beside which 15.2 GB of weights have no room: the policy waits on the host while vLLM is awake. A pass of the update
holds a prompt and 2 completions at full length, one of scoring a prompt and all 8. The plan is 39.4 GB of GPU memory
and 142.8 GB on the host (112.7 with --memory.moments bfloat16, for a host of 128 GiB). planned_gb is not
set. Rows whose question and solution do not fit are skipped and counted. Hardware: meant for one 40 GB GPU. Hours,
memory, expected numbers: not measured yet.
"""

MONO96 = replace(
    MONO85,
    preset="mono96",
    output_dir="runs/mono96",
    train_batch_size=128,
    per_device_train_batch_size=4,
    num_generations=32,
    generation_aggregation_steps=4,
    score_batch_size=4,
    update_tokens=40_960,
    score_tokens=73_728,
    max_prompt_length=8192,
    max_completion_length=8192,
    budget_gb=96.0,
    planned_gb=89.0,
    vllm_gpu_memory_utilization=0.6,
)
"""A 7B teacher on one 96 GB GPU: 128 completions of up to 8192 tokens per step, 32 per question.

    python -m rlt_jax.train --preset mono96 --teacher FOLDER

A pass of the update holds a prompt and 4 completions at full length, one of scoring 8: the plan is 87.9 GB of GPU
memory, with the attention of 21 of the 28 layers saved. Hardware: meant for one GH200 96 GB. Hours, memory, expected
numbers: not measured yet.
"""

PAPER = replace(
    MONO85,
    preset="paper",
    output_dir="runs/paper",
    train_batch_size=1024,
    per_device_train_batch_size=1,
    num_generations=64,
    generation_aggregation_steps=256,
    score_batch_size=1,
    update_tokens=81_920,
    score_tokens=81_920,
    max_prompt_length=16384,
    max_completion_length=16384,
    eval_steps=0,
    budget_gb=640.0,
    planned_gb=None,
    data=replace(MONO85.data, eval_rows=0),
    sampler=SamplerConfig(max_batch=8),
    memory=MemoryConfig(),
)
"""The paper's run: 1024 completions of up to 16384 tokens per step, 64 per question. Nothing is held out.

    python -m rlt_jax.train --preset paper --teacher FOLDER

A pass holds a prompt and 4 completions at full length. Hardware: 8 GPUs of 80 GB (640 GB in all). Hours, memory: not
measured yet. The paper's numbers after distilling a 7B
student on this teacher's traces: AIME24 23.3, MATH500 82.8, GPQA-D 42.4; Bespoke-Stratos-7B has 20.0, 82.0, 37.8.
"""

PRESETS: dict[PresetName, TrainConfig] = {
    "tiny": TINY,
    "mono_basic": MONO_BASIC,
    "mono85": MONO85,
    "mono85_fallback": MONO85_FALLBACK,
    "mono96": MONO96,
    "paper": PAPER,
}
"""Preset name -> its run."""

SUMMARIES: dict[PresetName, str] = {
    "tiny": "small models that come with the package, on two CPU cores: see that it works",
    "mono_basic": "7B teacher on one 40 GB GPU, completions of up to 2048 tokens",
    "mono85": "7B teacher on one 80 GiB GPU (85 GB), up to 6144 tokens",
    "mono85_fallback": "mono85 with smaller batches and shorter prompts, for GPUs on which mono85 does not fit",
    "mono96": "7B teacher on one 96 GB GPU, up to 8192 tokens",
    "paper": "the paper's run on 8 GPUs of 80 GB, up to 16384 tokens",
}
"""Preset name -> one line for `--help`."""


def load_config(path: str | Path, *, log: Callable[[str], None] = print_note) -> TrainConfig:
    """Read a training run from a YAML file; arguments and errors as `train_config`.

    Raises:
      UserError: also if there is no such file, or it is not YAML.
    """
    return train_config(read_yaml(path), source=str(path), log=log)


def train_config(
    values: Mapping[str, Any],
    *,
    source: str,
    given: frozenset[str] | None = None,
    log: Callable[[str], None] = print_note,
) -> TrainConfig:
    """Build a training run from nested plain values; missing fields come from the preset that they name (else tiny).

    Rows other than the preset's take nothing of its data, and other untouched values follow (see `following.py`).

    Args:
      source: where the values came from, for messages.
      given: fields with their section that the user gave. None: all of `values`.
      log: gets a line for each value that follows another.
    Raises:
      UserError: an unknown preset or key, a value of the wrong type; models of the user's without a preset.
    """
    name = values.get("preset", "tiny")
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(f"{source}: {unknown_preset(name)}")
    preset, given = PRESETS[name], given_keys(values) if given is None else given
    config = build(TrainConfig, values, source=source, base=preset)
    if not same_path(config.data.path, preset.data.path):
        data, dropped = for_rows(preset.data, config.data.path, preset=preset.data)
        config = build(TrainConfig, values, source=source, base=replace(preset, data=data))
        of = f"the preset {name}"
        notes = rows_note(config.data.path, of, dropped, given=given_keys(values))
    else:
        notes = []
    if "preset" not in values and (
        problem := unnamed_preset(config, how="a line `preset: NAME` (of a study: in its base)")
    ):
        raise UserError(f"{source}: {problem}")
    config, followed = settle(config, Layer(given=given, now=given, base=preset))
    for note in [*notes, *followed]:
        log(f"{source}: {note}")
    return config


def own_values(values: Mapping[str, Any]) -> frozenset[str]:
    """The fields that a file of a run sets to other values than its preset: a run's config.yaml has all fields."""
    name = values.get("preset", "tiny")
    return given_keys(values, asdict(PRESETS[name]) if isinstance(name, str) and name in PRESETS else None)


def unnamed_preset(config: TrainConfig, *, how: str) -> str | None:
    """The message for a run that names no preset although its models are not the package's; None if they are.

    Args:
      how: what to write to name one.
    """
    for role in ("teacher", "student"):
        model = getattr(config, role)
        if not same_path(model, getattr(TINY, role)):
            presets = "\n".join(f"  {name}: {summary}" for name, summary in SUMMARIES.items())
            return (
                f"{role}={model} without a preset: expected {how}, as lengths, batches and learning rate would be "
                f"those of tiny, which are made for the package's small models. Presets:\n{presets}\n"
                "for a first run on models of your own take mono_basic; with sampler.kind native where there is no "
                "vLLM or less than 40 GB"
            )
    return None


def unknown_preset(name: object) -> str:
    """The message for a preset that does not exist."""
    near = difflib.get_close_matches(str(name), PRESETS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"preset={name}: no such preset: {hint}use one of {', '.join(PRESETS)}"
