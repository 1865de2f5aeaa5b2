"""The sampler that a run asks for: the native one, a vLLM child process, or a vLLM server that runs already."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from rlt_jax.configs import TrainConfig
from rlt_jax.errors import UserError
from rlt_jax.models import Model, Params, checkpoint_shapes, placed_tensors, read_config, resolve_folder
from rlt_jax.sampling.base import Sampler
from rlt_jax.sampling.child import ChildEngine
from rlt_jax.sampling.engine import Engine
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.sampling.server import ServerEngine
from rlt_jax.sampling.vllm import PROBE_TOKENS, Probe, VllmSampler
from rlt_jax.sampling.weights import Tensor
from rlt_jax.scoring import row_logprobs
from rlt_jax.types import Prompt

log = logging.getLogger("rlt_jax")

MOST_SEQUENCES = 1024  # that vLLM decodes together
PROBE_LENGTH = 256  # most tokens of the probe's prompt
SYNC_TOLERANCE = {"bfloat16": 0.1, "float32": 1e-3}  # nats; a push gone wrong shows as 1 and more
TIED_HEAD = "lm_head.weight"


@contextmanager
def running_engine(config: TrainConfig, run_dir: Path) -> Iterator[Engine | None]:
    """The vLLM engine of a run, asleep; None for the native sampler.

    Enter it before JAX takes memory: vLLM measures the card's memory while it starts, and refuses to if others move.

    Raises:
      UserError: the engine does not start, or the server does not answer.
    """
    engine: Engine
    match config.sampler.kind:
        case "native":
            yield None
            return
        case "vllm":
            engine = _start_child(config, run_dir)
        case "vllm-server":
            assert config.sampler.url is not None  # check_config
            engine = ServerEngine(config.sampler.url, allow_remote=config.sampler.allow_remote)
    facts = engine.facts
    room = f", room for {facts['kv_tokens']:,} tokens" if facts["kv_tokens"] else ""
    log.info("vLLM %s on %s%s", facts["version"], facts["device"], room)
    try:
        engine.sleep()
        yield engine
    finally:
        engine.close()


def make_sampler(
    config: TrainConfig,
    engine: Engine | None,
    model: Model,
    params: Params,
    *,
    version: int,
    eos_ids: Sequence[int],
    prompts: Sequence[Prompt],
) -> Sampler:
    """A sampler that draws from `params`.

    Args:
      engine: from `running_engine`.
      version: of the weights.
      prompts: the first of them becomes the probe that verifies a sync.
    Raises:
      UserError: the engine's sequences are too short for the run, or the first sync does not agree.
    """
    if engine is None:
        return NativeSampler(model, params, eos_ids=eos_ids, max_batch=config.sampler.max_batch, version=version)
    tied = model.config.tie_word_embeddings

    def tensors(params: Params) -> Iterator[Tensor]:
        for name, leaf, index in placed_tensors(model, params):
            yield Tensor(name, leaf, index)
        if tied:
            yield Tensor(TIED_HEAD, model.head(params), None)

    shapes = checkpoint_shapes(config.teacher)
    if tied:
        shapes[TIED_HEAD] = shapes["model.embed_tokens.weight"]

    def logprobs(params: Params, ids: np.ndarray, temperature: float) -> np.ndarray:
        chunk = config.loss.logprob_chunk
        return row_logprobs(model, params, [ids], temperature=temperature, batch_size=1, chunk=chunk)[0]

    most = _context_length(config, model.config.max_position_embeddings)
    if engine.facts.get("max_model_len", most) < most:
        raise UserError(
            f"the vLLM server takes sequences of up to {engine.facts['max_model_len']} tokens, expected {most} for "
            f"prompt and completion: start it with --max-model-len {most}, or lower --max-prompt-length or "
            "--max-completion-length"
        )
    tolerance = config.sampler.sync_tolerance
    sampler = VllmSampler(
        engine,
        tensors=tensors,
        shapes=shapes,
        probe=Probe(
            _probe_prompt(prompts[0].teacher_ids, engine.facts["block_size"], most - PROBE_TOKENS),
            logprobs,
            temperature=config.temperature,
            tolerance=SYNC_TOLERANCE[config.dtype] if tolerance is None else tolerance,
            on_mismatch=config.sampler.on_mismatch,
        ),
        eos_ids=eos_ids,
        vocab_size=model.config.vocab_size,
        max_positions=most,
    )
    sampler.wake()
    sampler.set_weights(params, version)
    return sampler


def _start_child(config: TrainConfig, run_dir: Path) -> ChildEngine:
    folder = resolve_folder(config.teacher)
    share = config.vllm_gpu_memory_utilization
    return ChildEngine(
        folder,
        python=config.sampler.python or sys.executable,
        gpu_memory_bytes=None if config.budget_gb is None else round(share * config.budget_gb * 1e9),
        options={
            "dtype": config.dtype,
            "max_model_len": _context_length(config, read_config(folder).max_position_embeddings),
            "max_num_seqs": min(config.train_batch_size, MOST_SEQUENCES),
            "gpu_memory_utilization": share,  # of the card, where the run has no budget
            "seed": config.seed,
        },
        log_file=run_dir / "logs" / "vllm.log",
        weights_on_gpu=jax.default_backend() == "gpu",
    )


def _context_length(config: TrainConfig, max_positions: int) -> int:
    return min(config.max_prompt_length + config.max_completion_length, max_positions)


def _probe_prompt(ids: np.ndarray, block_size: int, most: int) -> np.ndarray:
    """A prompt's first tokens, repeated if need be until they fill two blocks of the engine's prefix cache."""
    least = 2 * max(block_size, 16) + 1
    return np.resize(ids, min(max(min(len(ids), PROBE_LENGTH), least), most)).astype(np.int32)
