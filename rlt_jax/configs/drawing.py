"""What the commands that write text with a model have in common: their counts, their sampler, what makes a resumed
start the same work.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rlt_jax.configs.check import sampler_problems

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from rlt_jax.configs.evaluate import EvaluateConfig
    from rlt_jax.configs.generate import GenerateConfig

# no part of what is drawn (up to rounding), so that they may change when a command goes on
FREE = frozenset({"out", "score_batch_size", "logprob_chunk", "vllm_gpu_memory_utilization"})
FREE_OF_SAMPLER = frozenset({"python", "url", "allow_remote", "on_mismatch", "sync_tolerance", "max_batch"})


def drawing_problems(config: "GenerateConfig | EvaluateConfig", *, positive: dict[str, int]) -> Iterator[str]:
    """What is wrong with how a command draws, one message each.

    Args:
      positive: counts beside `samples` that must be 1 or more, by the name of their field.
    """
    for name, count in {"samples": config.samples, **positive}.items():
        if count < 1:
            yield f"{name}={count}: expected a positive whole number"
    if config.temperature < 0:
        yield f"temperature={config.temperature:g}: expected a number above 0, or 0 for the likeliest token each time"
    if config.temperature == 0 and config.samples > 1:
        yield (
            f"temperature=0 with samples={config.samples}: all samples of a row would be the same text: use --samples "
            "1, or a temperature above 0"
        )
    if not 0 <= config.seed < 2**31:
        yield f"seed={config.seed}: expected a whole number from 0 to {2**31 - 1}"
    if not 0 < config.vllm_gpu_memory_utilization <= 1:
        yield (
            f"vllm_gpu_memory_utilization={config.vllm_gpu_memory_utilization:g}: expected a share of the card above 0 "
            "and at most 1, such as 0.55"
        )
    yield from sampler_problems(config.sampler)


def deciding_settings(config: "DataclassInstance") -> dict[str, Any]:
    """The values of a command that decide what it draws, as nested dicts: a command goes on only with the same."""
    values = {name: value for name, value in asdict(config).items() if name not in FREE}
    sampler = {name: value for name, value in values["sampler"].items() if name not in FREE_OF_SAMPLER}
    return values | {"sampler": sampler}
