"""Measure the temporaries of a run's programs by compiling them from shapes; nothing is allocated.

The figures are the compiler's own for the backend that JAX runs on; unlike a formula, it knows the GPU's kernels.
"""

from functools import partial
from typing import Any

import jax

from rlt_jax.batching import power_of_two
from rlt_jax.configs import TrainConfig
from rlt_jax.learner.backward import make_layerwise_accumulate
from rlt_jax.learner.objective import objective_of, reads_entropies
from rlt_jax.models import Model, ModelConfig, build_model
from rlt_jax.models.attention import sum_bytes
from rlt_jax.planner.ledger import PhaseName
from rlt_jax.planner.run_plan import planned_dtype
from rlt_jax.planner.shapes import Pass, RunShape
from rlt_jax.rewards.logprobs import sequence_logprobs
from rlt_jax.segments import Layout, Limits, limits_of, part_of
from rlt_jax.types import TrainBatch

PER_TOKEN = ("segment", "group", "leads", "position", "before")  # arrays [B, T] of a layout


def compiled_temporaries(
    config: TrainConfig, run: RunShape, teacher: ModelConfig, student: ModelConfig
) -> dict[PhaseName, float]:
    """Phase -> bytes of its program's temporaries, for `planner.ledger.make_ledger`.

    The programs are the trainer's, at the run's longest rows. Compiling them takes minutes for a large model on a
    GPU, and seconds if they are in the compilation cache.

    Args:
      run: of `config`; the update is compiled with its saved activations.
    """
    teacher_model, student_model = build_model(teacher), build_model(student)
    score_bytes = partial(_score_bytes, dtype=planned_dtype(config), run=run)
    sizes: dict[PhaseName, float] = {"update": _update_bytes(config, run, teacher_model)}
    if run.reads_teacher or run.kl_term:
        teacher_bytes = score_bytes(teacher_model, of=run.score, longest=run.teacher_tokens)
        sizes |= {"score teacher": teacher_bytes, "score reference": teacher_bytes}  # one program
    if run.reads_student:
        sizes["score student"] = score_bytes(student_model, of=run.score_student, longest=run.student_tokens)
    return sizes


def _score_bytes(model: Model, *, dtype: str, run: RunShape, of: Pass, longest: int) -> int:
    program = jax.jit(sequence_logprobs, static_argnames=("model", "chunk"))
    tokens = of.sequences, of.length
    ids, wanted = jax.ShapeDtypeStruct(tokens, "int32"), jax.ShapeDtypeStruct(tokens, "bool")
    layout = planned_layout(model, run, of, longest)
    lowered = program.lower(
        model, model.shapes(dtype), ids, temperature=1.0, chunk=run.logprob_chunk, layout=layout, wanted=wanted
    )
    return _temporaries(lowered)


def _update_bytes(config: TrainConfig, run: RunShape, model: Model) -> int:
    accumulate: Any = make_layerwise_accumulate(  # Any: its type does not say that it is jitted
        model,
        objective_of(config),
        temperature=config.policy_temperature,
        chunk=run.logprob_chunk,
        saved_mlp=run.saved_mlp,
        saved_attention=run.saved_attention,
        entropies=reads_entropies(config.loss),
    )
    update = run.update
    tokens, rows = (update.sequences, update.length), (_rows_of(run), run.completion_tokens)
    batch = TrainBatch(
        ids=jax.ShapeDtypeStruct(tokens, "int32"),
        mask=jax.ShapeDtypeStruct(tokens, "bool"),
        layout=planned_layout(model, run, update, run.teacher_tokens),
        places=jax.ShapeDtypeStruct(rows, "int32"),
        row_mask=jax.ShapeDtypeStruct(rows, "bool"),
        ref_logps=jax.ShapeDtypeStruct(rows, "float32") if run.kl_term else None,
        sampler_logps=jax.ShapeDtypeStruct(rows, "float32"),
        advantages=jax.ShapeDtypeStruct(rows[:1], "float32"),
        old_logps=jax.ShapeDtypeStruct(rows, "float32") if config.steps_per_draw > 1 else None,
    )
    shapes, gradients = model.shapes(planned_dtype(config)), model.shapes(config.memory.gradients)
    return _temporaries(accumulate.lower(shapes, gradients, batch, 1.0))


def _rows_of(run: RunShape) -> int:
    """Rows of a full pass of the update, of which each sequence has a prompt and completions, all the longest."""
    if run.update.attention == "rows":
        return run.update.sequences
    own = max((run.update.length - run.prompt_tokens) // run.completion_tokens, 1)
    return power_of_two(min(run.update.sequences * own, run.completions))


def planned_layout(model: Model, run: RunShape, of: Pass, longest: int) -> Layout | None:
    """The shapes of a layout of `longest` tokens a row, as `segments.MicroBatch.layout` makes it."""
    if of.attention == "rows":
        return None
    limits = Limits(0, 0)
    if of.is_flat:
        queries = model.config.num_attention_heads * model.config.head_dim
        limits = limits_of(run.completions, of.length, longest, sum_bytes=sum_bytes(of.attention, queries))
    of_token = {name: jax.ShapeDtypeStruct((of.sequences, of.length), "int32") for name in PER_TOKEN}
    return Layout(
        **of_token | {"leads": jax.ShapeDtypeStruct((of.sequences, of.length), "bool")},
        spans=jax.ShapeDtypeStruct((limits.segments, 2), "int32"),
        groups=jax.ShapeDtypeStruct((limits.groups, 4), "int32"),
        longest=part_of(of.length, longest) if of.is_flat else 0,
    )


def _temporaries(lowered: jax.stages.Lowered) -> int:
    sizes: Any = lowered.compile().memory_analysis()
    return int(sizes.temp_size_in_bytes)
