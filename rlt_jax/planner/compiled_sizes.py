"""What a run's programs take as temporaries, from the programs themselves: compiled from shapes, nothing allocated.

The compiler's own figure for the backend that JAX runs on; on a GPU it knows its kernels, which a formula does not.
"""

from functools import partial
from typing import Any

import jax

from rlt_jax.configs import TrainConfig
from rlt_jax.learner.backward import make_layerwise_accumulate
from rlt_jax.learner.objective import grpo_objective
from rlt_jax.models import Model, ModelConfig, build_model
from rlt_jax.planner.ledger import PhaseName
from rlt_jax.planner.shapes import RunShape
from rlt_jax.rewards.logprobs import sequence_logprobs
from rlt_jax.types import TrainBatch


def compiled_temporaries(
    config: TrainConfig, run: RunShape, teacher: ModelConfig, student: ModelConfig
) -> dict[PhaseName, float]:
    """Phase -> bytes of its program's temporaries, for `memory.ledger.make_ledger`.

    The programs are those of the trainer at the run's longest sequences; compiling them takes minutes for a large model
    on a GPU, and seconds from the compilation cache.

    Args:
      run: of `config`; its layers to keep are what the update is compiled with.
    """
    policy, reader = build_model(teacher), build_model(student)
    score = partial(_score_bytes, dtype=config.dtype, batch=run.score_batch, chunk=run.logprob_chunk)
    by_teacher = score(policy, tokens=run.teacher_tokens)
    return {
        "score teacher": by_teacher,
        "score student": score(reader, tokens=run.student_tokens),
        "score reference": by_teacher,
        "update": _update_bytes(config, run, policy),
    }


def _score_bytes(model: Model, *, dtype: str, batch: int, tokens: int, chunk: int) -> int:
    program = jax.jit(sequence_logprobs, static_argnames=("model", "chunk"))
    ids = jax.ShapeDtypeStruct((batch, tokens), "int32")
    lowered = program.lower(model, model.shapes(dtype), ids, temperature=1.0, chunk=chunk)
    return _temporaries(lowered)


def _update_bytes(config: TrainConfig, run: RunShape, model: Model) -> int:
    accumulate: Any = make_layerwise_accumulate(  # jitted, which its type does not say
        model,
        grpo_objective(config.loss),
        temperature=config.policy_temperature,
        chunk=run.logprob_chunk,
        saved_mlp=run.saved_mlp,
        saved_attention=run.saved_attention,
    )
    row = (run.micro_batch, run.teacher_tokens)
    batch = TrainBatch(
        ids=jax.ShapeDtypeStruct(row, "int32"),
        mask=jax.ShapeDtypeStruct(row, "bool"),
        ref_logps=jax.ShapeDtypeStruct(row, "float32"),
        sampler_logps=jax.ShapeDtypeStruct(row, "float32"),
        advantages=jax.ShapeDtypeStruct(row[:1], "float32"),
    )
    return _temporaries(accumulate.lower(model.shapes(config.dtype), model.shapes(config.memory.gradients), batch, 1.0))


def _temporaries(lowered: jax.stages.Lowered) -> int:
    sizes: Any = lowered.compile().memory_analysis()
    return int(sizes.temp_size_in_bytes)
