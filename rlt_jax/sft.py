"""Supervised fine-tuning of a teacher or a student: `python -m rlt_jax.sft --target teacher --model DIR ...`.

The teacher learns to write a row's trace after question and solution; the student to write thought and solution after
the question (RLT, arXiv 2506.08388, section 3; the loss counts completion tokens alone).
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rlt_jax.backward import make_fitting_accumulate
from rlt_jax.checkpoint import open_checkpoints, save_checkpoint
from rlt_jax.configs import SftConfig, check_sft_config, parse_command, run_or_print, save_config
from rlt_jax.data import Layout, SftExample, build_sft_examples, describe_skipped, questions_of_step
from rlt_jax.errors import UserError, run_command
from rlt_jax.fitting import Fitted, Sizes, explaining_out_of_memory
from rlt_jax.memory.monitor import PeakMonitor, memory_metrics
from rlt_jax.memory.pinned import host_bytes
from rlt_jax.models import Model, Params, save_model
from rlt_jax.optimizer import open_optimizer
from rlt_jax.placement import free
from rlt_jax.planning import model_config_of, model_shape
from rlt_jax.report.log import setup_logging
from rlt_jax.report.progress import open_progress
from rlt_jax.report.timing import PhaseClock
from rlt_jax.run import (
    continue_run,
    load_fitting_model,
    load_layout,
    load_split_rows,
    open_run_folder,
    open_run_writer,
    phases,
    prepare_memory,
    use_compilation_cache,
)
from rlt_jax.scoring import row_logprobs
from rlt_jax.types import Row
from rlt_jax.update import sft_batches, sft_objective, sum_gradients

log = logging.getLogger("rlt_jax")

TOO_LARGE = (
    "lower --max-length (and --packed-length with --packing), or keep what the optimizer knows on the host with "
    "--memory.optimizer host"
)


def sft(config: SftConfig) -> Path:
    """Fine-tune from the config's start, or from the run folder's newest checkpoint, to its last step.

    Returns:
      The run folder: config.yaml, metrics.jsonl, logs, checkpoints, final/ (the model, with its tokenizer).
    Raises:
      UserError: anything in the config, its files, model or data that cannot work.
    """
    check_sft_config(config)
    run_dir = open_run_folder(config.output_dir, resume=config.resume)
    setup_logging(run_dir)
    use_compilation_cache()

    layout = layout_of(config)
    examples, held_out = load_examples(config, layout)
    steps_per_epoch = len(examples) // config.train_batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"train_batch_size={config.train_batch_size}: expected at most the {len(examples)} usable rows of "
            f"{config.data.path}: lower it, or give more rows"
        )
    max_steps = config.max_steps or config.num_train_epochs * steps_per_epoch
    pinned = 0
    if config.memory.optimizer == "host":
        parameters = model_shape(model_config_of(config.model)).parameters
        pinned = host_bytes(parameters, config.memory.moments, master_in_weights=config.dtype == "float32")
    prepare_memory(shared=False, pinned_bytes=pinned)
    model, params = load_fitting_model(config.model, layout, dtype=config.dtype)
    optimizer = open_optimizer(config.optimizer, config.memory, learning_rate=config.learning_rate, max_steps=max_steps)
    like = optimizer.like(params)
    checkpoints = open_checkpoints(run_dir / "checkpoints", keep=config.checkpoint.keep, like=like)
    state, first_step = continue_run(
        checkpoints,
        like=like,
        fresh=lambda: optimizer.init(params),
        seed=config.seed,
        max_steps=max_steps,
    )
    if first_step:
        free(params)
    save_config(config, run_dir / "config.yaml")

    fit_accumulate = partial(make_fitting_accumulate, model, sft_objective, temperature=1.0, chunk=config.logprob_chunk)
    layers = model.config.num_hidden_layers
    most_kept = min(config.kept_attention, layers), min(config.kept_mlp, layers)
    accumulate = {
        True: fit_accumulate(kept=lambda batch, tokens: most_kept),
        False: fit_accumulate(kept=lambda batch, tokens: (0, 0)),
    }
    size = config.per_device_train_batch_size
    packed_length = config.packed_length if config.packing else None
    fitted = Fitted(Sizes(generate=1, score=size, update=size), run_dir, exhausted=lambda: TOO_LARGE)

    def gradients_of(batch, sizes):
        batches = sft_batches(batch, batch_size=sizes.update, packed_length=packed_length)
        return sum_gradients(accumulate[sizes.keep], state.params, batches, dtype=config.memory.accumulators)

    def held_out_loss_with(sizes):
        return held_out_loss(config, model, state.params, held_out, batch_size=sizes.score)

    clock = PhaseClock()
    with (
        explaining_out_of_memory(lambda: TOO_LARGE),
        open_run_writer(run_dir, config, resume_step=first_step) as writer,
        open_progress(max_steps, start_step=first_step, show=config.log.progress) as progress,
        PeakMonitor() as monitor,
    ):
        phase = phases(clock, monitor, progress)

        def evaluate(step):
            metrics = {"eval/loss": fitted.run("score", held_out_loss_with)}
            writer.write(step, metrics)
            progress.log(step, metrics)

        if held_out and config.eval_steps and first_step == 0:
            evaluate(0)
        for step in range(first_step + 1, max_steps + 1):
            clock.reset()
            monitor.reset()
            chosen = questions_of_step(
                step - 1, num_rows=len(examples), questions_per_step=config.train_batch_size, seed=config.seed
            )
            batch = [examples[i] for i in chosen]
            with phase("update"):
                gradients, losses = fitted.run("update", partial(gradients_of, batch))
                state, grad_norm = optimizer.apply(state, gradients)
                free(gradients)
                losses, grad_norm = jax.device_get((losses, grad_norm))
            if step % config.logging_steps == 0 or step == max_steps:
                metrics = {**losses, "grad_norm": grad_norm, "learning_rate": optimizer.learning_rate(step - 1)}
                metrics |= clock.metrics({"update": sum(len(example.ids) for example in batch)})
                metrics |= memory_metrics() | monitor.metrics()
                writer.write(step, metrics)
                progress.log(step, metrics)
            progress.step(step)
            if held_out and config.eval_steps and (step % config.eval_steps == 0 or step == max_steps):
                evaluate(step)
            is_due = config.save_steps and step % config.save_steps == 0
            if config.checkpoint.at_end if step == max_steps else is_due:
                save_checkpoint(checkpoints, step, state, {"step": step, "seed": config.seed})

    if config.checkpoint.export:
        save_model(run_dir / "final", model, state.params, tokenizer_from=config.model)
        log.info("the model is in %s", run_dir / "final")
    return run_dir


def layout_of(config: SftConfig) -> Layout:
    """The run's layout, with the gap between a student's thought and solution that it asks for."""
    layout = load_layout(
        config.model,
        config.model,
        tags=config.data.tags,
        teacher_prompt_file=config.data.teacher_prompt_file,
        student_prompt_file=config.data.student_prompt_file,
    )
    return replace(layout, student_sft_gap="\n\n") if config.student_gap == "blank-line" else layout


def load_examples(config: SftConfig, layout: Layout) -> tuple[Sequence[SftExample], Sequence[SftExample]]:
    """(examples to train on, held-out examples); rows that give none are skipped and counted in the log."""

    def built(rows: Sequence[Row], name: str) -> Sequence[SftExample]:
        if not rows:
            return ()
        done = build_sft_examples(rows, layout, target=config.target, max_length=config.max_length)
        if done.skipped:
            log.warning("%d %s rows skipped: %s", len(done.skipped), name, describe_skipped(done.skipped))
        log.info("%d %s examples", len(done.examples), name)
        return done.examples

    rows, held_out = load_split_rows(config.data)
    return built(rows, "training"), built(held_out, "held-out")


def held_out_loss(
    config: SftConfig, model: Model, params: Params, examples: Sequence[SftExample], *, batch_size: int
) -> float:
    """Mean of −log π over all trained tokens of the examples, nats per token."""
    logps = row_logprobs(
        model,
        params,
        [example.ids for example in examples],
        temperature=1.0,
        batch_size=batch_size,
        chunk=config.logprob_chunk,
        packed_length=config.packed_length if config.packing else None,
    )
    return -float(np.mean(np.concatenate([row[example.trained] for row, example in zip(logps, examples)])))


def main() -> None:
    parsed = parse_command(SftConfig, sys.argv[1:], prog="python -m rlt_jax.sft", description=__doc__)
    run_or_print(*parsed, run=sft)


if __name__ == "__main__":
    run_command(main)
