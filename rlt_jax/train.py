"""Train a teacher with GRPO on the RLT reward (arXiv 2506.08388): `python -m rlt_jax.train --preset tiny`.

The loop in `train` is the algorithm; `runs/rlt.py` builds its parts, `runs/session.py` keeps files and checkpoints.

Departures from the original:
- Prompts that are too long are skipped and counted: a truncated solution would make the reward meaningless.
- Checkpoints include the reference: a resumed run is the same run. Without a KL term there is no reference.
- Pads of a row without EOS are not trained on, and a group of equal rewards gets advantages of exactly 0.
"""

import logging
import math
import sys
from pathlib import Path

import jax

from rlt_jax.configs import TrainConfig, check_config, parse_train_args, run_or_print
from rlt_jax.device.placement import to_device
from rlt_jax.errors import command
from rlt_jax.finite import NotFinite
from rlt_jax.models import Params, Work
from rlt_jax.report.curves import draw_curves_or_warn
from rlt_jax.report.paired import print_summary
from rlt_jax.report.step_lines import latest_lines
from rlt_jax.report.writer import COMPLETIONS_FILE, METRICS_FILE
from rlt_jax.rewards.rlt import RewardFn
from rlt_jax.runs.announce import evaluated_rows
from rlt_jax.runs.batch import Batch, rows_of, turn_of
from rlt_jax.runs.chats import show_chat
from rlt_jax.runs.evaluation import SOLUTION_LOGP, evaluation_requests, evaluation_results, read_changes
from rlt_jax.runs.machine import on_this_machine
from rlt_jax.runs.open_rlt import open_rlt
from rlt_jax.runs.own_reward import pinned
from rlt_jax.runs.rlt import Rlt
from rlt_jax.runs.session import Session, open_session
from rlt_jax.runs.step_metrics import step_metrics
from rlt_jax.sampling.base import Sampler
from rlt_jax.stops import StopRequested

log = logging.getLogger("rlt_jax")


def train(config: TrainConfig, *, reward_fn: RewardFn | None = None) -> Path:
    """Train a teacher with GRPO, from the start or from the run folder's newest checkpoint, to config.max_steps.

    Args:
      reward_fn: your own reward function (see `rewards.rlt.RewardFn`). None: that of config.reward.fn, or the paper's.
    Returns:
      The run folder: config.yaml, metrics.jsonl, eval.jsonl, completions.jsonl, curves.png, logs, checkpoints, final/.
    Raises:
      UserError: an inconsistent config, or unusable files, models or data.
    """
    check_config(config)
    config = pinned(on_this_machine(config))
    with (
        open_session(config) as session,
        open_rlt(config, session.folder, reward_fn=reward_fn, compare_inputs=session.compare_inputs) as rlt,
    ):
        state, reference = session.resume(
            rlt.params, like=rlt.state_like(), fresh=rlt.fresh_state, max_steps=config.max_steps
        )
        rlt.watch.restore(latest_lines(session.folder / METRICS_FILE))
        key = session.facts.get("batch", "")  # of a batch on disk, while a draw is used for several steps
        batch = rlt.read_batch(turn_of(config, session.start_step + 1), key)
        state = rlt.set_aside(state)
        sampler = rlt.open_sampler(state.params, version=session.start_step)
        try:
            if session.owes_evaluation():
                evaluate(session, rlt, sampler, state.params, reference, step=session.start_step)
            for step in session.steps():
                turn = turn_of(config, step)
                earlier, losses = None if turn.is_first else batch, None  # what an earlier step has left of this draw
                drawn = rlt.draw(session, sampler, state.params, turn, earlier)

                policy = to_device(state.params)  # a copy if they were set aside: a save may still read them there
                try:
                    batch = earlier
                    if batch is None:
                        with session.phase("score"):
                            batch = rlt.batch(policy, reference, drawn)
                        batch = rlt.replaced(session, sampler, policy, reference, batch, turn)
                        key = rlt.write_batch(turn, batch)

                    with session.phase("update"):
                        gradients, losses, work = rlt.gradients(policy, batch.part(rows_of(config, turn)))
                        session.wait_for_save()  # it reads what is donated now
                        state, grad_norm = rlt.apply(state, policy, gradients)
                        reference = rlt.move_reference(step, reference, state.params)
                        losses = jax.device_get({**losses, "grad_norm": grad_norm})
                except NotFinite as fault:  # nothing has changed yet
                    session.skip(step, fault, rlt.evidence(turn, drawn, earlier), (state.params, reference))

                if turn.is_last or batch is None or session.evaluates(step):
                    with session.phase("sync"):
                        state = rlt.set_aside(state, policy)
                        sampler.wake()
                        sampler.set_weights(state.params, step)

                if losses is not None and batch is not None:
                    report(session, rlt, sampler, batch, losses, work, step=step, drawn=earlier is None)
                session.end_step(step)
                if session.evaluates(step):
                    evaluate(session, rlt, sampler, state.params, reference, step=step)
                if session.saves(step):
                    session.save(step, (state, reference), **rlt.facts(step, key))
                    rlt.rollouts.drop(until=session.oldest_checkpoint(), steps_per_draw=config.steps_per_draw)
        except StopRequested:  # before `apply`, or after the end of a step: the state is that of the last whole one
            session.save_last((state, reference), **rlt.facts(session.done, key))
            raise

        sampler.sleep()
        summarise(session, rlt, to_device(state.params))
    return session.folder


def evaluate(
    session: Session, rlt: Rlt, sampler: Sampler, policy: Params, reference: Params | None, *, step: int
) -> None:
    """Sample explanations of the held-out questions, with the same seeds in every evaluation, and score them."""
    requests = evaluation_requests(rlt.eval_prompts, seed=rlt.config.seed)
    with session.phase("generate"):
        drawn = rlt.generate(sampler, requests, policy, name=f"{step}-eval", on_progress=session.show_tokens)
        completions = [completion for (completion,) in drawn]
        sampler.sleep()
    scored = None
    try:
        with session.phase("score"):
            scored = rlt.score(policy, reference, rlt.eval_prompts, completions)
    except NotFinite as fault:
        log.warning("the evaluation of step %d has no result: %s", step, fault.culprit)
    with session.phase("sync"):
        sampler.wake()
        sampler.set_weights(policy, step)
    if scored is None:
        session.write(step, {"eval/reward": math.nan})
        return
    rlt.watch_matches(scored, completions, step=step)
    session.write_evaluation(step, *evaluation_results(scored, completions, rlt.chat))


def report(
    session: Session,
    rlt: Rlt,
    sampler: Sampler,
    batch: Batch,
    losses: dict[str, float],
    update: Work,
    *,
    step: int,
    drawn: bool,
) -> None:
    """Warn of what looks wrong in a step; write its metrics, and some of its completions for reading.

    Args:
      batch: all completions of the draw that the step has used.
      update: the work of the update.
      drawn: whether they were drawn and scored in this step.
    """
    scored, completions = batch.scored, batch.completions
    rlt.watch_memory(session.peaks(), compare=step == session.start_step + 1)
    if drawn:
        rlt.watch_matches(scored, completions, step=step)
        session.write_samples(step, rlt.samples(step, scored, completions))
    if not session.logs(step):
        return
    known = {"skipped_steps": session.skipped_steps, **sampler.metrics()}
    session.log(step, **step_metrics(rlt, batch, losses, update, known, step=step, drawn=drawn))


def summarise(session: Session, rlt: Rlt, policy: Params) -> None:
    """Export the teacher, draw the curves, and print what changed and where the files are."""
    exported = session.finish(
        rlt.model, policy, tokenizer_from=rlt.config.teacher, eos_ids=rlt.eos_ids, about=rlt.about
    )
    folder = session.folder
    files = {"metrics": folder / METRICS_FILE, "completions": folder / COMPLETIONS_FILE}
    if not files["completions"].exists():  # none was drawn for it
        del files["completions"]
    if (curves := draw_curves_or_warn(folder)) is not None:
        files["curves"] = curves
    if exported is not None:
        files["teacher"] = exported
    changes = read_changes(folder, ("reward", SOLUTION_LOGP), first=0, last=session.max_steps)
    print_summary(changes, files, where=evaluated_rows(rlt.config.data))


@command
def main() -> None:
    run_or_print(*parse_train_args(sys.argv[1:]), run=train, show_chat=show_chat)


if __name__ == "__main__":
    main()
