"""What the commands that write texts with a model have in common: how many, how drawn, by which sampler."""

from collections.abc import Iterator
from typing import Protocol

from rlt_jax.configs.schema import SamplerConfig, sampler_problems
from rlt_jax.types import Dtype


class TextConfig(Protocol):
    """The settings that such commands share."""

    @property
    def samples(self) -> int:
        """Texts for each row."""

    @property
    def temperature(self) -> float:
        """Sampling temperature."""

    @property
    def seed(self) -> int:
        """Seed of sampling."""

    @property
    def sampler(self) -> SamplerConfig:
        """The sampler."""

    @property
    def dtype(self) -> Dtype:
        """Number format of weights and activations."""

    @property
    def vllm_gpu_memory_utilization(self) -> float:
        """Share of the GPU for a vLLM engine."""

    @property
    def logprob_chunk(self) -> int:
        """Tokens whose logits are held at once."""


def sampling_problems(config: TextConfig, *, positive: dict[str, int]) -> Iterator[str]:
    """What is wrong with how a command samples, one message each.

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
            f"vllm_gpu_memory_utilization={config.vllm_gpu_memory_utilization:g}: expected a share of the GPU above 0 "
            "and at most 1, such as 0.55"
        )
    yield from sampler_problems(config.sampler)
