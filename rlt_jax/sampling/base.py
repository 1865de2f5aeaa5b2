"""The `Sampler` protocol: what the training loop asks of a sampler, in this process or another; and shared checks.

Departure from the original: ids that the tokenizer does not know are never sampled, because nobody can read them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlt_jax.errors import UserError
from rlt_jax.models import Params
from rlt_jax.types import Completion, Request, SamplingParams


class Sampler(Protocol):
    """Samples completions with one version of the weights at a time.

    Life cycle: awake with weights -> `sleep` (no device memory) -> `wake` (memory, but no weights) -> `set_weights` ->
    awake with weights. Weights do not survive a sleep: the caller sets them again after waking the sampler, so that no
    completion can come from stale or missing weights. Calls come from one thread, one at a time.

    A sampler that cannot generate (asleep, without weights, closed) raises RuntimeError: a mistake of the caller.
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

        Order: result[i][j] continues requests[i].prompt_ids with requests[i].seeds[j]; no requests give no results.
        Seeds: a completion depends only on weights, prompt, seed and params, up to floating-point rounding, and not on
        the rest of the batch. Equal prompts and seeds give equal completions, other seeds independent ones.
        Versions: all completions of a call carry the version that was set when the call began.
        End: a completion has 1 to max_tokens tokens; one of the sampler's EOS tokens ends it, stays its last token and
        makes it `finished`.
        Excluded ids: those that the sampler was told to leave out (`excluded_ids`) are never sampled.

        Args:
          max_batch: most sequences decoded together, where the sampler decides and not an engine.
          on_progress: called now and then with the number of tokens that this call has sampled; at the end with all.
        Raises:
          UserError: params out of range, a token outside the vocabulary, or a prompt without room for max_tokens.
          RuntimeError: asleep, no weights since the last wake, or closed.
        """
        ...

    def set_weights(self, params: Params, version: int) -> None:
        """Sample with these weights from now on. On return they are in place, and verified if they were copied.

        Args:
          params: the trainer's parameter tree, of the shapes the sampler was built with. A sampler in this process
            keeps a reference instead of a copy: call again after every update that donates the tree. One in another
            process turns it into (Hugging Face name, array[out, in]) pairs and returns when all have arrived there.
          version: stamped on every completion sampled with these weights.
        Raises:
          ValueError: a leaf is missing, extra or misshaped; the previous weights stay in force.
          RuntimeError: asleep or closed.
        """
        ...

    def sleep(self) -> None:
        """Release as much device memory as possible: weights and caches. Does nothing if already asleep."""
        ...

    def wake(self) -> None:
        """Take memory back; `set_weights` must come before `generate`. Does nothing if already awake."""
        ...

    def metrics(self) -> dict[str, float]:
        """The sampler's own metrics, by name; may be empty."""
        ...

    def close(self) -> None:
        """Release everything for good. A second call does nothing; any other call raises RuntimeError."""
        ...


@dataclass
class SamplerState:
    """Whether a sampler is asleep or closed; raises RuntimeError for calls that it does not allow then."""

    asleep: bool = False
    closed: bool = False

    def check_open(self) -> None:
        """Refuse every call but `close` on a closed sampler."""
        if self.closed:
            raise RuntimeError("the sampler is closed: make a new one")

    def check_set_weights(self) -> None:
        """Refuse `set_weights` while asleep or closed."""
        self.check_open()
        if self.asleep:
            raise RuntimeError("the sampler is asleep: call wake before set_weights")

    def check_generate(self, *, has_weights: bool) -> None:
        """Refuse `generate` while asleep, closed or without weights."""
        self.check_open()
        if self.asleep:
            raise RuntimeError("the sampler is asleep: call wake and set_weights before generate")
        if not has_weights:
            raise RuntimeError("the sampler has had no weights since it woke: call set_weights before generate")


def excluded_ids(token_ids: np.ndarray | None, eos_ids: Sequence[int], *, vocab_size: int) -> np.ndarray:
    """Ids below vocab_size that must not be sampled, i32[U], sorted: those neither in token_ids nor in eos_ids.

    Args:
      token_ids: that the tokenizer knows; None: all.
    Raises:
      ValueError: no id is left.
    """
    if token_ids is None:
        return np.empty(0, np.int32)
    sampled = np.union1d(token_ids, np.array(eos_ids, np.int64))
    excluded = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), sampled)
    if len(excluded) == vocab_size:
        raise ValueError(f"token_ids and eos_ids have no id below {vocab_size}: expected at least one to sample")
    return excluded


def check_params(params: SamplingParams) -> None:
    """Raise UserError for a value that no sampler supports. The ranges are vLLM's."""
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
    """Raise UserError, with the request's index, for a prompt that the model cannot continue by max_tokens."""
    for i, request in enumerate(requests):
        length = len(request.prompt_ids)
        if length == 0:
            raise UserError(f"request {i} has an empty prompt: give it at least one token")
        if length + max_tokens > max_positions:
            raise UserError(
                f"request {i} has a prompt of {length} tokens, with max_tokens={max_tokens} that is "
                f"{length + max_tokens}, but the model has {max_positions} positions: "
                f"shorten the prompt to {max_positions - max_tokens} tokens or lower max_tokens"
            )
        low, high = int(np.min(request.prompt_ids)), int(np.max(request.prompt_ids))
        if low < 0 or high >= vocab_size:
            raise UserError(
                f"request {i} has token id {low if low < 0 else high}, but the model knows 0 to {vocab_size - 1}: "
                "use the tokenizer that belongs to the model"
            )
