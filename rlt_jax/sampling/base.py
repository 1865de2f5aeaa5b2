"""What the training loop asks of anything that draws completions, in this process or in another one."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from rlt_jax.errors import UserError
from rlt_jax.types import Completion, Request, SamplingParams

Params = Any


class Sampler(Protocol):
    """Draws completions with one version of the weights at a time.

    Life: awake with weights -> `sleep` (no device memory) -> `wake` (memory, but no weights) -> `set_weights` -> awake
    with weights. Weights do not survive a sleep: whoever wakes a sampler brings them, so that no completion can come
    from stale or missing ones. Calls come from one thread, one at a time.

    A sampler that cannot generate (asleep, without weights, closed) raises RuntimeError: the caller's mistake.
    """

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        max_batch: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """Continue every prompt once per seed.

        Order: result[i][j] continues requests[i].prompt_ids with requests[i].seeds[j]; no requests, no results.
        Seeds: a completion depends on weights, prompt, seed and params alone, up to floating-point rounding, not on
        what else is in the batch. Equal prompt and seed give equal completions, other seeds independent ones.
        Versions: all completions of a call carry the version that was set when the call began.
        End: each holds 1 to max_tokens tokens; one of the sampler's EOS tokens ends it, is kept as its last token and
        makes it `finished`.

        Args:
          max_batch: at most so many sequences decoded together, where the sampler decides and not an engine.
          on_progress: called now and then with the number of tokens drawn by this call so far; at the end with all.
        Raises:
          UserError: params out of range, a token outside the vocabulary, or a prompt without room for max_tokens.
          RuntimeError: asleep, no weights since the last wake, or closed.
        """
        ...

    def set_weights(self, params: Params, version: int) -> None:
        """Draw with these weights from now on; on return they are in place, and verified if they went elsewhere.

        Args:
          params: the trainer's parameter tree, of the shapes the sampler was built with. A sampler in this process
            keeps a reference, no copy: call again after every update that donates the tree. One in another process
            turns it to (Hugging Face name, array[out, in]) pairs and returns when the other side holds them all.
          version: stamped on every completion that these weights draw.
        Raises:
          ValueError: a leaf is missing, extra or misshaped; the weights from before stay in force.
          RuntimeError: asleep or closed.
        """
        ...

    def sleep(self) -> None:
        """Give back all device memory it can: weights and caches. Asleep already: nothing happens."""
        ...

    def wake(self) -> None:
        """Take memory back. `generate` is refused until `set_weights` was called. Awake already: nothing happens."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers about the sampler itself, by name, for the run's metrics; empty where there are none."""
        ...

    def close(self) -> None:
        """Release everything for good. A second call does nothing; any other call raises RuntimeError."""
        ...


def check_params(params: SamplingParams) -> None:
    """Raise UserError for a value no sampler can draw with. Ranges are vLLM's."""
    if params.max_tokens < 1:
        raise UserError(f"max_tokens={params.max_tokens}: expected at least 1 token per completion")
    if not 0 <= params.temperature < float("inf"):
        raise UserError(f"temperature={params.temperature}: expected a finite number >= 0 (0 is greedy)")
    if params.top_k < 0:
        raise UserError(f"top_k={params.top_k}: expected a number of tokens to keep, or 0 for all")
    if not 0 < params.top_p <= 1:
        raise UserError(f"top_p={params.top_p}: expected 0 < top_p <= 1 (1 keeps all)")
    if not 0 <= params.min_p <= 1:
        raise UserError(f"min_p={params.min_p}: expected 0 <= min_p <= 1 (0 keeps all)")


def check_requests(requests: Sequence[Request], max_tokens: int, *, vocab_size: int, max_positions: int) -> None:
    """Raise UserError for a prompt the model cannot continue by max_tokens; names the request by its index."""
    for i, request in enumerate(requests):
        length = len(request.prompt_ids)
        if length == 0:
            raise UserError(f"request {i} has an empty prompt: give it at least one token")
        if length + max_tokens > max_positions:
            raise UserError(
                f"request {i} has a prompt of {length} tokens, with max_tokens={max_tokens} that is "
                f"{length + max_tokens}, but the model has {max_positions} positions: "
                f"shorten the prompt to {max_positions - max_tokens} tokens or draw fewer"
            )
        low, high = int(np.min(request.prompt_ids)), int(np.max(request.prompt_ids))
        if low < 0 or high >= vocab_size:
            raise UserError(
                f"request {i} has token id {low if low < 0 else high}, but the model knows 0 to {vocab_size - 1}: "
                "tokenise with the tokenizer that belongs to the model"
            )
