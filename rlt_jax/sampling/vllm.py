"""`Sampler` over a vLLM engine in another process: syncs and verifies weights, and recovers from crashes.

An engine reports few of the ways in which a push of weights can fail: a tensor left out, old keys and values kept, or a
wake without a push all lead to wrong log-probs without an error. So names and shapes are compared with the checkpoint's
before anything is sent, the prefix cache is emptied, and then a probe compares engine and trainer on the log-probs of
the same tokens.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from rlt_jax import stops
from rlt_jax.errors import UserError
from rlt_jax.sampling.base import Params, SamplerState, check_params, check_requests, excluded_ids
from rlt_jax.sampling.engine import Engine, EngineCompletion, EngineFailed, Job
from rlt_jax.sampling.weights import Tensor, check_tensors
from rlt_jax.types import Completion, Request, SamplingParams

log = logging.getLogger("rlt_jax")

MAX_FAILURES = 3  # of the engine, in a row
PROBE_TOKENS = 16  # sampled by the probe after its prompt
MAX_EXCLUDED = 1024  # biased ids of a request: the limit of vLLM's newer model runner
EXCLUDED_BIAS = -1e9  # logits; a server raises it to -100, the least of OpenAI's interface


@dataclass(frozen=True)
class Probe:
    """Tokens on whose log-probs engine and trainer must agree after every sync."""

    prompt_ids: np.ndarray  # i32[P], long enough to fill blocks of the engine's prefix cache
    logprobs: Callable[[Params, np.ndarray, float], np.ndarray]
    """(params, ids i32[T], temperature) -> f32[T] nats by the trainer's model; position 0 is not read."""
    temperature: float  # of the sampled tokens: not 1, to expose an engine that reports log-probs before temperature
    tolerance: float  # nats, mean absolute difference
    on_mismatch: Literal["stop", "warn"]


@dataclass(frozen=True)
class Agreement:
    """How much the engine's log-probs differ from the trainer's, nats."""

    mean: float  # absolute difference over the prompt's tokens or over those sampled after it, whichever is larger
    largest: float  # over all tokens


class VllmSampler:
    """A vLLM engine as a `Sampler`, whose docstring documents the methods. Starts asleep: wake it and set its weights.

    An engine that fails is restarted and gets the weights again; finished completions are kept, and the others sampled
    again from their own seeds. Three failures in a row end the run.

    Args:
      engine: a running one, which may be asleep.
      tensors: the trainer's parameter tree -> every tensor under its Hugging Face name; a tied head as
        `lm_head.weight` too, because some engines keep a packed copy of it.
      shapes: the same names with their shapes, as in the checkpoint.
      probe: what verifies a sync.
      eos_ids: tokens that end a completion.
      token_ids: i32[K] tokens that may be sampled, besides eos_ids: those of the tokenizer. None: all. vLLM gets a bias
        for each of the others, and its log-probs are of the distribution without them: larger than the model's by
        -log(1 - their probability), which is next to nothing where they are unused rows of an embedding.
      vocab_size, max_positions: limits of the model, or of the engine where they are lower.
    Raises:
      UserError: more ids to exclude than vLLM takes.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        tensors: Callable[[Params], Iterable[Tensor]],
        shapes: Mapping[str, tuple[int, ...]],
        probe: Probe,
        eos_ids: Sequence[int],
        token_ids: np.ndarray | None = None,
        vocab_size: int,
        max_positions: int,
    ):
        self._engine = engine
        self._tensors = tensors
        self._shapes = shapes
        self._probe = probe
        # vLLM refuses ids beyond the model's vocabulary, which a tokenizer may have.
        self._eos_ids = sorted(eos_id for eos_id in set(eos_ids) if eos_id < vocab_size)
        self._bias = _bias(excluded_ids(token_ids, eos_ids, vocab_size=vocab_size))
        self._vocab_size = vocab_size
        self._max_positions = max_positions
        self._params: Params | None = None
        self._version = 0
        self._failures = 0  # in a row
        self._restarts = 0
        self._state = SamplerState(asleep=True)
        self.agreement: Agreement | None = None  # of the last sync

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        max_batch: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        self._state.check_generate(has_weights=self._params is not None)
        check_params(params)
        check_requests(requests, params.max_tokens, vocab_size=self._vocab_size, max_positions=self._max_positions)
        report = on_progress if on_progress is not None else lambda count: None
        prompts = [(request.prompt_ids, seed) for request in requests for seed in request.seeds]
        jobs = [Job(index, prompt_ids, seed) for index, (prompt_ids, seed) in enumerate(prompts)]
        done: dict[int, EngineCompletion] = {}
        while missing := [job for job in jobs if job.index not in done]:
            tokens_done = sum(len(completion.token_ids) for completion in done.values())

            def on_completion(completion: EngineCompletion) -> None:
                done[completion.index] = completion

            def on_tokens(count: int, tokens_done: int = tokens_done) -> None:
                report(tokens_done + count)

            try:
                self._engine.generate(missing, self._sampling(params) | self._bias, on_completion, on_tokens)
                if len(done) < len(jobs):
                    raise EngineFailed(f"{len(jobs) - len(done)} completions did not come back")
            except EngineFailed as error:
                log.warning("%d of %d completions were lost: sampling them again", len(jobs) - len(done), len(jobs))
                self._recover(error)
        self._failures = 0
        in_order = (done[job.index] for job in jobs)
        completions = (
            Completion(one.token_ids, _known_logps(one.logps, params), one.finished, self._version) for one in in_order
        )
        return [tuple(next(completions) for _ in request.seeds) for request in requests]

    def set_weights(self, params: Params, version: int) -> None:
        self._state.check_set_weights()
        tensors = list(self._tensors(params))
        check_tensors(tensors, self._shapes)
        self._params, self._version = None, version
        jax.block_until_ready(params)  # copying the arrays' memory does not wait for the program that writes them
        try:
            self._push(params, tensors)
        except EngineFailed as error:
            self._params = params
            if self._is_stopping(error):
                return
            self._recover(error)
        self._params = params
        self._failures = 0

    def sleep(self) -> None:
        self._state.check_open()
        if self._state.asleep:
            return
        self._state.asleep, self._params = True, None
        try:
            self._engine.sleep()
        except EngineFailed as error:
            log.warning("%s while going to sleep: the engine is restarted when it is needed", error)

    def wake(self) -> None:
        self._state.check_open()
        if not self._state.asleep:
            return
        try:
            self._engine.wake_weights()
        except EngineFailed as error:
            if not self._is_stopping(error):
                self._recover(error)
        self._state.asleep = False

    def metrics(self) -> dict[str, float]:
        agreement = {}
        if self.agreement is not None:
            agreement = {"sync_logp_diff": self.agreement.mean, "sync_logp_diff_max": self.agreement.largest}
        return agreement | {"engine_restarts": float(self._restarts)}

    def close(self) -> None:
        self._params = None
        if not self._state.closed:
            self._engine.close()
        self._state.closed = True

    def _sampling(self, params: SamplingParams) -> dict[str, Any]:
        """Every sampling parameter, so that no default of the engine or the model folder applies."""
        return {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_tokens": 0,
            "stop_token_ids": self._eos_ids,
        }

    def _push(self, params: Params, tensors: Sequence[Tensor]) -> None:
        """Send and verify the weights, in the order that a sleeping engine needs."""
        self._engine.load(tensors)
        self._engine.wake_cache()
        self._engine.reset_prefix_cache()
        self.agreement = self._measure(params)
        log.debug("sync %d: log-probs differ by %.2g nats on average", self._version, self.agreement.mean)
        if not self.agreement.mean <= self._probe.tolerance:  # NaN must not pass
            self._mismatch(self.agreement)

    def _measure(self, params: Params) -> Agreement:
        """Compare log-probs of the probe's prompt, and of tokens sampled after it, with the trainer's.

        Sampling comes first, because it reads the prefix cache, where keys and values of older weights would show. It
        excludes no ids, so that the log-probs are those of the whole distribution.
        """
        probe = self._probe
        completions: list[EngineCompletion] = []
        sampling = self._sampling(SamplingParams(PROBE_TOKENS, probe.temperature)) | {"stop_token_ids": []}
        self._engine.generate([Job(0, probe.prompt_ids, 0)], sampling, completions.append, lambda count: None)
        prompt_logps = self._engine.prompt_logprobs(probe.prompt_ids)
        (completion,) = completions
        ids = np.concatenate([probe.prompt_ids, completion.token_ids])
        start = len(probe.prompt_ids)
        in_prompt = np.abs(prompt_logps - probe.logprobs(params, ids, 1.0)[1:start])
        sampled = np.abs(completion.logps - probe.logprobs(params, ids, probe.temperature)[start:])
        return Agreement(float(max(in_prompt.mean(), sampled.mean())), float(max(in_prompt.max(), sampled.max())))

    def _mismatch(self, agreement: Agreement) -> None:
        message = (
            f"weight sync {self._version}: log-probs of the engine and of the trainer differ by {agreement.mean:.3g} "
            f"nats on average (at most {agreement.largest:.3g}), expected {self._probe.tolerance:g} or less"
        )
        if self._probe.on_mismatch == "stop":
            raise UserError(
                f"{message}: the engine does not sample with the weights that are trained. Look at its log, raise "
                "--sampler.sync-tolerance if the difference is rounding, or continue with --sampler.on-mismatch warn"
            )
        log.warning("%s: continuing, as --sampler.on-mismatch is warn", message)

    def _is_stopping(self, error: EngineFailed) -> bool:
        """Whether nobody needs an engine any more: the signal that stops the run may have ended a server, too."""
        stops.check()
        if stops.requested() is not None:
            log.warning("%s: not restarted, as the run is stopping", error)
        return stops.requested() is not None

    def _recover(self, error: EngineFailed) -> None:
        """Restart the engine, with the weights if it had any; the caller then repeats what was lost."""
        while True:
            stops.check()
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise UserError(
                    f"the vLLM engine failed {self._failures} times in a row, last: {error}\n"
                    f"the end of its log:\n{self._engine.log_tail()}"
                ) from None
            log.warning("%s: restarting the engine (failure %d of %d)", error, self._failures, MAX_FAILURES)
            try:
                self._engine.start()
                self._restarts += 1
                if self._params is not None:
                    self._push(self._params, list(self._tensors(self._params)))
                return
            except EngineFailed as failed_again:
                error = failed_again


def _bias(excluded: np.ndarray) -> dict[str, Any]:
    """The sampling parameter that keeps vLLM from sampling these ids: none for none, so that nothing is paid then.

    `logit_bias` is a few hundred numbers per request; `allowed_token_ids` would be the rest of the vocabulary.
    """
    if len(excluded) > MAX_EXCLUDED:
        raise UserError(
            f"the model has {len(excluded)} token ids that its tokenizer does not know, and vLLM can exclude "
            f"{MAX_EXCLUDED} at most: use --sampler.kind native, or the tokenizer that belongs to the model"
        )
    return {"logit_bias": dict.fromkeys(excluded.tolist(), EXCLUDED_BIAS)} if len(excluded) else {}


def _known_logps(logps: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The engine's log-probs f32[N] where they are those of the whole distribution, else NaN: it has them filtered."""
    return np.full_like(logps, np.nan) if params.filtered else logps
