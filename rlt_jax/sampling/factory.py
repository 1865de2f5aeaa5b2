"""Make the sampler that a command asks for: native, a vLLM child process, or a vLLM server that is running already."""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from rlt_jax.configs import EvaluateConfig, GenerateConfig, SamplerConfig, TrainConfig
from rlt_jax.configs.dtype import decided_dtype
from rlt_jax.errors import UserError
from rlt_jax.models import (
    Model,
    Params,
    checkpoint_shapes,
    find_weights,
    placed_tensors,
    read_config,
    resolve_folder,
)
from rlt_jax.rewards.by_parts import sequence_logprobs_by_parts
from rlt_jax.sampling.base import Sampler
from rlt_jax.sampling.child import ChildEngine
from rlt_jax.sampling.engine import Engine
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.sampling.server import ServerEngine
from rlt_jax.sampling.vllm import PROBE_TOKENS, Probe, VllmSampler
from rlt_jax.sampling.weights import Tensor
from rlt_jax.types import GB, Dtype, Request, SamplingParams

log = logging.getLogger("rlt_jax")

MAX_SEQUENCES = 1024  # that vLLM decodes together
PROBE_LENGTH = 256  # most tokens of the probe's prompt
# Nats, for the probe: rounding of random 7B weights gave 0.05 to 0.1, a failed push shows as 0.5 to 4.
SYNC_TOLERANCE = {"bfloat16": 0.2, "float32": 1e-3}
PROBE_TEMPERATURE = 0.7  # if completions are greedy
TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """What a sampler needs to know about the command that uses it."""

    model: str  # folder or hub name
    sampler: SamplerConfig
    dtype: Dtype
    temperature: float
    max_length: int  # most tokens of a prompt with its completion
    max_sequences: int  # most completions per call
    gpu_memory_utilization: float  # vLLM's share of budget_gb, or of the GPU if there is no budget
    budget_gb: float | None = None
    logprob_chunk: int
    seed: int


def train_settings(config: TrainConfig) -> SamplerSettings:
    """The sampler settings of a training run."""
    return SamplerSettings(
        model=config.teacher,
        sampler=config.sampler,
        dtype=decided_dtype(config.dtype),
        temperature=config.temperature,
        max_length=config.max_prompt_length + config.max_completion_length,
        max_sequences=config.train_batch_size,
        gpu_memory_utilization=config.vllm_gpu_memory_utilization,
        budget_gb=config.budget_gb,
        logprob_chunk=config.loss.logprob_chunk,
        seed=config.seed,
    )


def text_settings(
    config: GenerateConfig | EvaluateConfig, *, model: str, max_length: int, max_sequences: int
) -> SamplerSettings:
    """The sampler settings of a command that generates texts with a model."""
    return SamplerSettings(
        model=model,
        sampler=config.sampler,
        dtype=decided_dtype(config.dtype),
        temperature=config.temperature,
        max_length=max_length,
        max_sequences=max_sequences,
        gpu_memory_utilization=config.vllm_gpu_memory_utilization,
        logprob_chunk=config.logprob_chunk,
        seed=config.seed,
    )


def weight_files(model: str) -> dict[str, list[int]]:
    """Size and modification time of the files that a model is loaded from, which show whether it has changed since."""
    files = find_weights(resolve_folder(model)).files
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def sample_request(prompt_ids: np.ndarray, *, seed: int, row: int, samples: Iterable[int], draw: int = 0) -> Request:
    """A request for some completions of a row; their seeds depend only on the arguments, so they can be repeated.

    Args:
      row: number of the row in its data set.
      samples: numbers of the completions among those of the row.
      draw: how often these completions were sampled before.
    """
    entropy = [(seed, row, sample, draw) for sample in samples]
    return Request(prompt_ids, tuple(int(np.random.SeedSequence(key).generate_state(1)[0]) for key in entropy))


def sampling_params(sampler: SamplerConfig, *, max_tokens: int, temperature: float) -> SamplingParams:
    """A command's sampling parameters: its temperature and length, and the filters of its sampler."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
        min_p=sampler.min_p,
    )


@contextmanager
def running_engine(settings: SamplerSettings, *, log_file: Path) -> Iterator[Engine | None]:
    """Start a command's vLLM engine, and put it to sleep; yields None for the native sampler.

    Enter before JAX takes memory: vLLM measures the GPU's memory while it starts, and fails if other use changes.

    Args:
      log_file: where a child process writes its log.
    Raises:
      UserError: the engine does not start, or the server does not answer.
    """
    engine: Engine
    match settings.sampler.kind:
        case "native":
            yield None
            return
        case "vllm":
            engine = _start_child(settings, log_file)
        case "vllm-server":
            assert settings.sampler.url is not None  # checked by sampler_problems
            engine = ServerEngine(settings.sampler.url, allow_remote=settings.sampler.allow_remote)
    try:
        facts = engine.facts
        room = f", room for {facts['kv_tokens']:,} tokens" if facts["kv_tokens"] else ""
        log.info("vLLM %s on %s%s", facts["version"], facts["device"], room)
        engine.sleep()
        yield engine
    finally:
        engine.close()


def make_sampler(
    settings: SamplerSettings,
    engine: Engine | None,
    model: Model,
    params: Params,
    *,
    version: int,
    eos_ids: Sequence[int],
    token_ids: np.ndarray | None = None,
    probe_ids: np.ndarray,
) -> Sampler:
    """Make a sampler that starts with the weights `params`.

    Args:
      engine: from `running_engine`.
      version: of the weights.
      eos_ids: tokens that end a completion.
      token_ids: i32[K] ids that the tokenizer knows; the model's others are never sampled. None: all may be.
      probe_ids: i32[P], a prompt with which every sync is verified.
    Raises:
      UserError: the engine's sequences are too short, it cannot exclude as many ids, or the first sync fails its
        verification.
    """
    if engine is None:
        max_batch = settings.sampler.max_batch
        return NativeSampler(model, params, eos_ids=eos_ids, token_ids=token_ids, max_batch=max_batch, version=version)
    tied = model.config.tie_word_embeddings

    def tensors(params: Params) -> Iterator[Tensor]:
        for name, leaf, index in placed_tensors(model, params):
            yield Tensor(name, leaf, index)
        if tied:
            yield Tensor(TIED_HEAD, model.head(params), None)

    shapes = checkpoint_shapes(settings.model)
    if tied:
        shapes[TIED_HEAD] = shapes["model.embed_tokens.weight"]

    def logprobs(params: Params, ids: np.ndarray, temperature: float) -> np.ndarray:
        chunk = settings.logprob_chunk
        return sequence_logprobs_by_parts(model, params, ids, temperature=temperature, chunk=chunk)

    max_length = _max_length(settings, model.config.max_positions)
    if engine.facts.get("max_model_len", max_length) < max_length:
        raise UserError(
            f"the vLLM server takes sequences of up to {engine.facts['max_model_len']} tokens, expected {max_length} "
            f"for prompt and completion: start it with --max-model-len {max_length}, or allow only shorter prompts or "
            "completions"
        )
    tolerance = settings.sampler.sync_tolerance
    sampler = VllmSampler(
        engine,
        tensors=tensors,
        shapes=shapes,
        probe=Probe(
            _probe_prompt(probe_ids, engine.facts["block_size"], max_length - PROBE_TOKENS),
            logprobs,
            temperature=settings.temperature or PROBE_TEMPERATURE,
            tolerance=SYNC_TOLERANCE[settings.dtype] if tolerance is None else tolerance,
            on_mismatch=settings.sampler.on_mismatch,
        ),
        eos_ids=eos_ids,
        token_ids=token_ids,
        vocab_size=model.config.vocab_size,
        max_positions=max_length,
    )
    sampler.wake()
    sampler.set_weights(params, version)
    return sampler


def _start_child(settings: SamplerSettings, log_file: Path) -> ChildEngine:
    folder = resolve_folder(settings.model)
    config = read_config(folder)
    max_length = _max_length(settings, config.max_positions)
    overrides = {}
    if max_length > config.max_position_embeddings:  # by which vLLM judges a YaRN model, from 0.32 at the latest
        overrides = {"hf_overrides": {"max_position_embeddings": config.max_positions}}
    share = settings.gpu_memory_utilization
    return ChildEngine(
        folder,
        python=settings.sampler.python or sys.executable,
        gpu_memory_bytes=None if settings.budget_gb is None else round(share * settings.budget_gb * GB),
        options={
            "dtype": settings.dtype,
            "max_model_len": max_length,
            **overrides,
            "max_num_seqs": min(settings.max_sequences, MAX_SEQUENCES),
            "gpu_memory_utilization": share,  # of the GPU, if there is no budget
            "seed": settings.seed,
        },
        log_file=log_file,
        weights_on_gpu=jax.default_backend() == "gpu",
    )


def _max_length(settings: SamplerSettings, max_positions: int) -> int:
    return min(settings.max_length, max_positions)


def _probe_prompt(ids: np.ndarray, block_size: int, max_tokens: int) -> np.ndarray:
    """A prompt's first tokens, repeated if necessary until they fill two blocks of the engine's prefix cache."""
    min_tokens = 2 * max(block_size, 16) + 1
    return np.resize(ids, min(max(min(len(ids), PROBE_LENGTH), min_tokens), max_tokens)).astype(np.int32)
