"""What `VllmSampler` asks of a vLLM engine, in a child process or behind a server, and how an engine fails."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlt_jax.sampling.weights import Tensor


@dataclass(frozen=True)
class Job:
    """One completion to draw."""

    index: int  # of the completion in its submission
    prompt_ids: np.ndarray  # i32[P]
    seed: int


@dataclass(frozen=True)
class Drawn:
    """One completion as the engine drew it."""

    index: int
    token_ids: np.ndarray  # i32[N]
    logps: np.ndarray  # f32[N] nats, after temperature, top-k, top-p and min-p
    finished: bool  # True: ended by a stop token


class EngineFailed(Exception):
    """The engine did not do what it was asked."""


class EngineDied(EngineFailed):
    """Its process or server is gone; whatever it was doing is lost."""


class EngineRefused(EngineFailed):
    """It answered with an error, and may not be fit for more."""


class Engine(Protocol):
    """A vLLM engine that draws with the weights it was given last. Any call may raise EngineFailed."""

    facts: dict[str, Any]  # version, device, block_size, kv_tokens

    def start(self) -> None:
        """Start anew, without weights; ends what still runs."""
        ...

    def generate(
        self,
        jobs: Sequence[Job],
        sampling: Mapping[str, Any],
        on_drawn: Callable[[Drawn], None],
        on_tokens: Callable[[int], None],
    ) -> None:
        """Draw all jobs in one submission. Each completion is handed over when it is done, in any order.

        Args:
          sampling: arguments of `vllm.SamplingParams`, without the seed.
          on_tokens: called now and then with the tokens drawn so far.
        """
        ...

    def prompt_logprobs(self, prompt_ids: np.ndarray) -> np.ndarray:
        """f32[P - 1] nats, log-probs of prompt_ids[1:] at temperature 1."""
        ...

    def load(self, tensors: Sequence[Tensor]) -> None:
        """Replace the weights."""
        ...

    def reset_prefix_cache(self) -> None:
        """Forget keys and values that older weights made."""
        ...

    def sleep(self) -> None:
        """Give the GPU's memory back; weights and caches are lost."""
        ...

    def wake_weights(self) -> None:
        """Take back the memory of the weights, without their values."""
        ...

    def wake_cache(self) -> None:
        """Take back the memory of keys and values."""
        ...

    def close(self) -> None:
        """End it for good."""
        ...

    def log_tail(self, lines: int = 20) -> str:
        """The end of the engine's log, empty where there is none."""
        ...
