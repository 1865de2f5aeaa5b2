"""The protocol of a vLLM engine that `VllmSampler` uses, in a child process or behind a server, and its failures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlt_jax.sampling.weights import Tensor


@dataclass(frozen=True)
class Job:
    """One completion to sample."""

    index: int  # of the completion in its submission
    prompt_ids: np.ndarray  # i32[P]
    seed: int


@dataclass(frozen=True)
class EngineCompletion:
    """One completion as the engine sampled it."""

    index: int  # of its job
    token_ids: np.ndarray  # i32[N]
    logps: np.ndarray  # f32[N] nats, after temperature, top-k, top-p and min-p
    finished: bool  # True: ended by a stop token


class EngineFailed(Exception):
    """The engine did not do what it was asked to do."""


class EngineDied(EngineFailed):
    """The engine's process or server is gone, and what it was doing is lost."""


class EngineRefused(EngineFailed):
    """The engine answered with an error, and may be unusable from now on."""


class Engine(Protocol):
    """A vLLM engine that samples with the weights it got last. Any call may raise EngineFailed."""

    facts: dict[str, Any]  # version, device, block_size, kv_tokens

    def start(self) -> None:
        """Start afresh, without weights; ends what is still running."""
        ...

    def generate(
        self,
        jobs: Sequence[Job],
        sampling: Mapping[str, Any],
        on_completion: Callable[[EngineCompletion], None],
        on_tokens: Callable[[int], None],
    ) -> None:
        """Sample all jobs in one submission.

        Args:
          sampling: arguments of `vllm.SamplingParams`, without the seed.
          on_completion: called with each completion when it is done, in any order.
          on_tokens: called now and then with the number of tokens sampled so far.
        """
        ...

    def prompt_logprobs(self, prompt_ids: np.ndarray) -> np.ndarray:
        """Log-probs of prompt_ids[1:] at temperature 1, f32[P - 1] nats."""
        ...

    def load(self, tensors: Sequence[Tensor]) -> None:
        """Replace the weights."""
        ...

    def reset_prefix_cache(self) -> None:
        """Drop cached keys and values, which older weights computed."""
        ...

    def sleep(self) -> None:
        """Release the GPU's memory; weights and caches are lost."""
        ...

    def wake_weights(self) -> None:
        """Allocate the weights' memory again, without values."""
        ...

    def wake_cache(self) -> None:
        """Allocate the key-value cache again."""
        ...

    def close(self) -> None:
        """End the engine for good."""
        ...

    def log_tail(self, lines: int = 20) -> str:
        """The end of the engine's log; empty if there is no log."""
        ...
