"""Settings shared by the commands that sample texts from a model, and their checks."""

from collections.abc import Iterator
from typing import Protocol

from rlt_jax.configs.checks import count_problems, seed_problems, vllm_share_problems
from rlt_jax.configs.schema import SamplerConfig, sampler_problems
from rlt_jax.types import RunDtype


class SamplingConfig(Protocol):
    """What the configurations of these commands have in common."""

    @property
    def samples(self) -> int:
        """Texts per row."""

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
    def dtype(self) -> RunDtype:
        """Number format of weights and activations."""

    @property
    def vllm_gpu_memory_utilization(self) -> float:
        """Share of the GPU's memory for a vLLM engine."""

    @property
    def logprob_chunk(self) -> int:
        """Chunk size for logits, tokens."""


def sampling_problems(config: SamplingConfig, *, positive: dict[str, int]) -> Iterator[str]:
    """Invalid sampling settings, one message each.

    Args:
      positive: counts besides `samples` that must be 1 or more, by field name.
    """
    yield from count_problems({"samples": config.samples, **positive})
    if config.temperature < 0:
        yield f"temperature={config.temperature:g}: expected a number above 0, or 0 for greedy sampling"
    if config.temperature == 0 and config.samples > 1:
        yield (
            f"temperature=0 with samples={config.samples}: all samples of a row would be the same: use --samples 1, "
            "or a temperature above 0"
        )
    yield from seed_problems(config.seed)
    yield from vllm_share_problems(config.vllm_gpu_memory_utilization, of="the GPU")
    yield from sampler_problems(config.sampler, temperature=config.temperature)
