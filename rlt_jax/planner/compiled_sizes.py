"""Measure the temporaries of a run's programs by compiling them from shapes; nothing is allocated.

The figures are the compiler's own for the backend that JAX runs on; unlike a formula, it knows the GPU's kernels.
"""

from functools import partial
from typing import Any

import jax

from rlt_jax.configs import TrainConfig
from rlt_jax.learner.backward import make_layerwise_accumulate
from rlt_jax.learner.objective import grpo_objective
from rlt_jax.models import Model, ModelConfig, build_model
from rlt_jax.planner.ledger import PhaseName
from rlt_jax.planner.run_plan import planned_dtype
from rlt_jax.planner.shapes import RunShape
from rlt_jax.rewards.logprobs import sequence_logprobs
from rlt_jax.types import TrainBatch


def compiled_temporaries(
    config: TrainConfig, run: RunShape, teacher: ModelConfig, student: ModelConfig
) -> dict[PhaseName, float]:
    """Phase -> bytes of its program's temporaries, for `planner.ledger.make_ledger`.

    The programs are the trainer's, at the run's longest sequences. Compiling them takes minutes for a large model on a
    GPU, and seconds if they are in the compilation cache.

    Args:
      run: of `config`; the update is compiled with its saved activations.
    """
    teacher_model, student_model = build_model(teacher), build_model(student)
    score_bytes = partial(_score_bytes, dtype=planned_dtype(config), batch=run.score_batch, chunk=run.logprob_chunk)
    sizes: dict[PhaseName, float] = {"update": _update_bytes(config, run, teacher_model)}
    if run.reads_teacher or run.kl_term:
        teacher_bytes = score_bytes(teacher_model, tokens=run.teacher_tokens)
        sizes |= {"score teacher": teacher_bytes, "score reference": teacher_bytes}  # one program
    if run.reads_student:
        sizes["score student"] = score_bytes(student_model, tokens=run.student_tokens)
    return sizes


def _score_bytes(model: Model, *, dtype: str, batch: int, tokens: int, chunk: int) -> int:
    program = jax.jit(sequence_logprobs, static_argnames=("model", "chunk"))
    ids = jax.ShapeDtypeStruct((batch, tokens), "int32")
    lowered = program.lower(model, model.shapes(dtype), ids, temperature=1.0, chunk=chunk)
    return _temporaries(lowered)


def _update_bytes(config: TrainConfig, run: RunShape, model: Model) -> int:
    accumulate: Any = make_layerwise_accumulate(  # Any: its type does not say that it is jitted
        model,
        grpo_objective(config.loss, compare_sampler=config.compares_sampler),
        temperature=config.policy_temperature,
        chunk=run.logprob_chunk,
        saved_mlp=run.saved_mlp,
        saved_attention=run.saved_attention,
    )
    shape = (run.micro_batch, run.teacher_tokens)
    batch = TrainBatch(
        ids=jax.ShapeDtypeStruct(shape, "int32"),
        mask=jax.ShapeDtypeStruct(shape, "bool"),
        ref_logps=jax.ShapeDtypeStruct(shape, "float32") if run.kl_term else None,
        sampler_logps=jax.ShapeDtypeStruct(shape, "float32"),
        advantages=jax.ShapeDtypeStruct(shape[:1], "float32"),
    )
    shapes, gradients = model.shapes(planned_dtype(config)), model.shapes(config.memory.gradients)
    return _temporaries(accumulate.lower(shapes, gradients, batch, 1.0))


def _temporaries(lowered: jax.stages.Lowered) -> int:
    sizes: Any = lowered.compile().memory_analysis()
    return int(sizes.temp_size_in_bytes)
