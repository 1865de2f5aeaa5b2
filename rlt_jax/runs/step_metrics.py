"""The metrics of a gradient step of RLT."""

from collections.abc import Mapping
from typing import TypedDict

from rlt_jax.models import Work
from rlt_jax.report.timing import Shares
from rlt_jax.rewards.records import rollout_metrics
from rlt_jax.runs.advantages import reward_kl
from rlt_jax.runs.batch import Batch
from rlt_jax.runs.rlt import Rlt
from rlt_jax.runs.work import by_phase


class StepMetrics(TypedDict):
    """What `Session.log` takes."""

    metrics: dict[str, float]
    tokens: dict[str, int]  # by phase
    at_peak: Shares


def step_metrics(
    rlt: Rlt,
    batch: Batch,
    losses: Mapping[str, float],
    update: Work,
    known: Mapping[str, float],
    *,
    step: int,
    drawn: bool,
) -> StepMetrics:
    """The metrics of a step.

    Args:
      batch: all completions of the draw that the step has used.
      losses: diagnostics of the loss.
      update: the work of the update.
      known: those of sampler and session, with `skipped_steps`.
      drawn: whether the completions were drawn and scored in this step.
    """
    work = {**(batch.work if drawn else {}), "update": update}
    metrics = rollout_metrics(batch.scored, batch.completions, rlt.chat, num_generations=rlt.config.num_generations)
    rate = rlt.optimizer.learning_rate(step - 1 - known["skipped_steps"])
    metrics |= {**losses, "learning_rate": rate, **known}
    if (kl := reward_kl(rlt.config, batch.policy, batch.reference)) is not None:
        metrics["reward_kl"] = float(kl.mean())
    if rlt.config.advantages.zero_spread == "replace":
        metrics["replaced_groups"] = batch.replaced
    if not batch.trained.all():
        metrics["left_out"] = 1 - float(batch.trained.mean())
    metrics |= rlt.alarms(metrics, step=step) | rlt.meter.metrics(work)
    sampled = sum(len(completion.token_ids) for completion in batch.completions)
    tokens = {"generate": sampled, "score": 0} if drawn else {}  # score: without a pass
    tokens |= {phase: done.real for phase, done in by_phase(work).items()}
    return StepMetrics(metrics=metrics, tokens=tokens, at_peak=rlt.meter.at_peak(work))
