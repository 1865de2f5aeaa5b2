"""Refuse a training run whose values make no sense, alone or together, before anything is loaded."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rlt_jax.configs.files import type_problems
from rlt_jax.configs.schema import DataConfig, MemoryConfig, OptimizerConfig, RewardConfig, SamplerConfig, TrainConfig
from rlt_jax.errors import UserError


def check_config(config: TrainConfig) -> None:
    """Stop if the run cannot be what the user wants.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(not_finite_problems(dataclasses.asdict(config)))
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


def memory_problems(memory: MemoryConfig) -> Iterator[str]:
    """What is wrong with the memory settings, one message each."""
    if memory.moments == "bfloat16" and memory.optimizer == "card":
        yield (
            "memory.moments=bfloat16 with memory.optimizer=card: only moments on the host are stored so, "
            "add --memory.optimizer host or leave memory.moments at float32"
        )


def text_problems(texts: Mapping[str, tuple[str | None, str]]) -> Iterator[str]:
    """Texts that are empty: `texts` maps a field's name to its value and what is expected there."""
    for name, (text, expected) in texts.items():
        if text is not None and not text.strip():
            yield f"{name} is empty: expected {expected}"


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


def not_finite_problems(values: dict[str, Any], section: str = "") -> Iterator[str]:
    """Fields that are NaN or infinite, of a configuration as nested dicts; no comparison catches a NaN."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from not_finite_problems(value, f"{section}{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                yield f"{section}{name}={number}: expected a finite number"


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
        "loss.kept_mlp": (config.loss.kept_mlp, "0 for none"),
        "loss.kept_attention": (config.loss.kept_attention, "0 for none"),
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
