"""Supervised fine-tuning of a teacher or a student: `python -m rlt_jax.sft --target teacher --model DIR ...`.

The teacher learns to write a row's trace after question and solution; the student, to write thought and solution after
the question (RLT, arXiv 2506.08388, section 3; only completion tokens count in the loss).
"""

import logging
import sys
from pathlib import Path

import jax

from rlt_jax.configs import SftConfig, check_sft_config, parse_command, run_or_print
from rlt_jax.device.backoff import explain_out_of_memory
from rlt_jax.device.placement import free
from rlt_jax.errors import UserError, command
from rlt_jax.finite import NotFinite
from rlt_jax.learner.state import TrainState
from rlt_jax.runs.chats import show_chat
from rlt_jax.runs.machine import on_this_machine
from rlt_jax.runs.session import Session, open_session
from rlt_jax.runs.sft import Sft, load_sft
from rlt_jax.runs.sft_check import (
    TextCheck,
    describe_check,
    is_in_metrics,
    next_command,
    read_check,
    save_check,
    shortened,
)
from rlt_jax.stops import StopRequested

log = logging.getLogger("rlt_jax")

TOO_LARGE = (
    "lower --max-length (and --packed-length with --packing), or keep the optimizer's state on the host with "
    "--memory.optimizer host"
)


def sft(config: SftConfig) -> Path:
    """Fine-tune a model, from the start or from the run folder's newest checkpoint, to the last step.

    Returns:
      The run folder: config.yaml, metrics.jsonl, logs, checkpoints, final/ (the model, with its tokenizer).
    Raises:
      UserError: an inconsistent config, or unusable files, model or data.
    """
    check_sft_config(config)
    config = on_this_machine(config)
    with open_session(config) as session, explain_out_of_memory(lambda: TOO_LARGE):
        run = load_sft(config, session.folder, exhausted=TOO_LARGE, compare_inputs=session.compare_inputs)
        session.settle(run.config)
        state = session.resume(
            run.params,
            like=run.optimizer.like(run.params),
            fresh=run.optimizer.init,
            max_steps=run.schedule.max_steps,
        )
        try:
            if session.owes_evaluation() and run.held_out:
                evaluate(session, run, state, step=session.start_step)

            for step in session.steps():
                batch = run.batch(step)
                try:
                    with session.phase("update"):
                        gradients, losses, work = run.gradients(state.params, batch)
                        session.wait_for_save()
                        state, grad_norm = run.optimizer.apply(state, gradients)
                        free(gradients)
                        losses = jax.device_get({**losses, "grad_norm": grad_norm})
                except NotFinite as fault:  # nothing has changed yet
                    session.skip(step, fault, run.evidence(step, batch), state.params)
                else:
                    if session.logs(step):
                        rate = run.optimizer.learning_rate(step - 1 - session.skipped_steps)
                        metrics = {**losses, "learning_rate": rate, "skipped_steps": session.skipped_steps}
                        metrics |= run.meter.metrics(work)
                        tokens = {"update": work["update"].real}
                        session.log(step, metrics, tokens=tokens, at_peak=run.meter.at_peak(work))
                session.end_step(step)
                if session.evaluates(step) and run.held_out:
                    evaluate(session, run, state, step=step)
                if session.saves(step):
                    session.save(step, state)
        except StopRequested:  # before `apply`, or after the end of a step: the state is that of the last whole one
            session.save_last(state)
            raise

        check = check_model(session, run, state)
        exported = session.finish(
            run.model, state.params, tokenizer_from=config.model, eos_ids=run.eos_ids, about=run.about
        )
        summarise(session, run, check, exported)
    return session.folder


def evaluate(session: Session, run: Sft, state: TrainState, *, step: int) -> None:
    """Measure the loss of the held-out rows."""
    with session.phase("score"):
        loss = run.held_out_loss(state.params)
    session.write(step, {"eval/loss": loss})


def check_model(session: Session, run: Sft, state: TrainState) -> TextCheck | None:
    """Sample texts from the trained model and count those that close their tags; None if that is switched off.

    Frees what the optimizer keeps, which no further step needs, so that the sampler has its memory. A finished run that
    is started again has been checked already.
    """
    if not run.questions:
        return None
    check = read_check(session.folder, step=session.max_steps) if session.start_step == session.max_steps else None
    if check is not None:
        return check
    free((state.low, state.opt_state))
    try:
        with session.phase("generate"):
            check = run.check(state.params, step=session.max_steps, on_progress=session.show_tokens)
    except UserError as error:  # too little memory: the model is still to be exported
        log.warning("no texts were drawn to check the model: %s", error)
        return None
    if not is_in_metrics(session.folder, check):  # of a start that was stopped right here
        session.write(session.max_steps, check.metrics())
    save_check(session.folder, check)
    return check


def summarise(session: Session, run: Sft, check: TextCheck | None, exported: Path | None) -> None:
    """Say what the model writes, where it is, and what to do next."""
    ready = True
    if check is not None:
        text, ready = describe_check(check, run.config, session.folder)
        log.log(logging.INFO if ready else logging.WARNING, text)
        log.info("the first drawn text: %s", shortened(check.example))
    if exported is None:
        return
    log.info("the model is in %s", exported)
    if ready:
        log.info("next: %s", next_command(run.config, exported))


@command
def main() -> None:
    parsed = parse_command(SftConfig, sys.argv[1:], command="sft", description=__doc__, shows_chat=True)
    run_or_print(*parsed, run=sft, show_chat=show_chat)


if __name__ == "__main__":
    main()
