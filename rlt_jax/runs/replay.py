"""Compute a skipped step again, on its own, from what the run kept of it (`runs/skipping.py`).

The weights, batch, batch sizes and settings are those of the step, so on the same device the numbers are the same, bit
for bit. So is a reward function that the settings name: its file, or the run's copy of it. One that was given in Python
is not kept: without it, the rewards that it returned are used.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlt_jax.configs import SftConfig, load_config, load_settings
from rlt_jax.device.backoff import BatchSizes
from rlt_jax.device.placement import free
from rlt_jax.errors import UserError
from rlt_jax.finite import MOST_SHOWN, NotFinite, bits
from rlt_jax.models import Params
from rlt_jax.rewards.rlt import BOTH, RewardFn, RewardInputs, Rewards, reads
from rlt_jax.runs.batch import Batch, Drawn, batch_of_arrays, rows_of, turn_of
from rlt_jax.runs.open_rlt import open_rlt
from rlt_jax.runs.own_reward import kept_reward
from rlt_jax.runs.rlt import EARLIER, Rlt, row_names
from rlt_jax.runs.sft import load_sft
from rlt_jax.runs.skipping import CONFIG_COPY, SkippedStep, read_state, split
from rlt_jax.types import Completion

OWN_REWARD = "your reward function "  # how messages call it

Stages = Iterator[tuple[str, Callable[[], str]]]


@dataclass(frozen=True)
class Replayed:
    """What a replay found."""

    stages: Sequence[tuple[str, str]]  # (stage, what it gave), in order, up to the fault
    fault: NotFinite | None  # None: everything is finite
    rows: Sequence[str]  # those whose gradients alone are not finite, if the fault is in the gradients
    differences: Sequence[str]  # from what the run recorded; none: the fault is reproduced

    @property
    def reproduced(self) -> bool:
        """Whether the step failed as it did in the run."""
        return not self.differences


def replay_step(kept: SkippedStep, place: Path, *, reward_fn: RewardFn | None = None) -> Replayed:
    """Compute a kept step again.

    Args:
      place: its folder.
      reward_fn: the run's own reward function, if it had one.
    Raises:
      UserError: models or rows are gone or have changed, or the kept weights cannot be read.
    """
    sizes = BatchSizes(**kept.fault["sizes"])
    with tempfile.TemporaryDirectory() as elsewhere:  # nothing is written into the run's folder
        if kept.fault["command"] == "sft":
            return _replay_sft(kept, place, sizes, Path(elsewhere))
        return _replay_train(kept, place, sizes, Path(elsewhere), reward_fn)


def _replay_train(
    kept: SkippedStep, place: Path, sizes: BatchSizes, elsewhere: Path, reward_fn: RewardFn | None
) -> Replayed:
    config = replace(load_config(place / CONFIG_COPY), dtype=kept.fault["dtype"], output_dir=str(elsewhere))
    own = None if reward_fn is not None else kept_reward(config.reward, place.parents[1])
    if reward_fn is None:
        reward_fn = _recorded_reward(kept) if own is None else own.fn
    config = replace(config, reward=replace(config.reward, fn=None, options={}, fn_sha256=None))  # as loaded here
    with open_rlt(config, elsewhere, reward_fn=reward_fn, samples=False) as rlt:
        rlt.backoff.sizes = sizes
        turn = turn_of(config, kept.step)
        questions = kept.batch.get("questions")  # those of an older version are the draw's
        if questions is None:
            questions = np.repeat(rlt.requests(turn)[0], config.num_generations)
        prompts = rlt.each_prompt(questions)
        _check_batch(kept, [prompt.row.number for prompt in prompts], [prompt.teacher_ids for prompt in prompts])
        found = zip(split(kept.batch, "token_ids"), split(kept.batch, "logps"), kept.batch["finished"].tolist())
        completions = [Completion(ids, logps, finished, kept.step - 1) for ids, logps, finished in found]
        drawn = Drawn(questions, prompts, completions)
        like = rlt.optimizer.like(rlt.params).params, rlt.reference_like()
        free(rlt.params)
        policy, reference = read_state(kept.state, like)
        had: dict[str, Any] = {}

        def score() -> str:
            had["scored"] = scored = rlt.score(policy, reference, prompts, completions)
            rewards = scored.rewards.reward
            models = {"teacher": rlt.scorer.teacher_name, "student": "student"}
            read = " and ".join(name for model, name in models.items() if model in rlt.scorer.reads)
            logprobs = f"log-probs of {read}, " if read else ""
            return f"finite: {logprobs}rewards {np.min(rewards):.4g} to {np.max(rewards):.4g}"

        def policy_logprobs() -> str:
            had["policy"] = rlt.policy_logprobs(policy, had["scored"], completions)
            return "finite: log-probs of the policy"

        def reference_logprobs() -> str:
            had["reference"] = found = rlt.reference_logprobs(reference, had["scored"], completions)
            return "not needed: the loss has no KL term" if found is None else "finite: log-probs of the reference"

        def advantages() -> str:
            had["batch"] = rlt.joined(drawn, had["scored"], had.get("policy"), had["reference"])
            found = had["batch"].advantages
            return f"finite: advantages {found.min():.4g} to {found.max():.4g}"

        def gradients() -> str:
            had["batch"] = had["batch"].part(rows_of(config, turn))
            sums, losses, _ = rlt.gradients(policy, had["batch"])
            free(sums)
            return f"finite: gradients, loss {float(losses['loss']):.4g}"

        steps = {"score": score, "reference": reference_logprobs, "advantages": advantages, "gradients": gradients}
        if config.reads_old_log_probs:
            steps = {"score": score, "policy": policy_logprobs, **steps}
        if earlier := {name.removeprefix(EARLIER): x for name, x in kept.batch.items() if name.startswith(EARLIER)}:
            had["batch"] = batch_of_arrays(earlier, rlt.each_prompt, rlt.rows_to_score)
            steps = {"gradients": gradients}
        stages, fault = _run(steps)
        rows: list[str] = []
        if fault is not None and fault.stage == "gradients" and len(stages) == len(steps):
            rows = _bad_rows_of_train(rlt, policy, had["batch"])
        return Replayed(stages, fault, rows, _differences(kept, fault))


def _replay_sft(kept: SkippedStep, place: Path, sizes: BatchSizes, elsewhere: Path) -> Replayed:
    config = load_settings(place / CONFIG_COPY, SftConfig)
    config = replace(config, dtype=kept.fault["dtype"], output_dir=str(elsewhere))
    run = load_sft(config, elsewhere, exhausted="give a larger device")
    run.backoff.sizes = sizes
    batch = run.batch(kept.step)
    _check_batch(kept, run.row_numbers(kept.step).tolist(), [example.ids for example in batch], ids="ids")
    like = run.optimizer.like(run.params).params
    free(run.params)
    params = read_state(kept.state, like)

    def gradients() -> str:
        sums, losses, _ = run.gradients(params, batch)
        free(sums)
        return f"finite: gradients, loss {float(losses['loss']):.4g}"

    stages, fault = _run({"gradients": gradients})
    rows = []
    if fault is not None:
        numbers = run.row_numbers(kept.step)
        rows = [f"row {numbers[i]} of the data" for i in range(len(batch)) if _fails(run.gradients, params, [batch[i]])]
    return Replayed(stages, fault, rows, _differences(kept, fault))


def _run(steps: Mapping[str, Callable[[], str]]) -> tuple[list[tuple[str, str]], NotFinite | None]:
    """Run the stages up to the first that is not finite."""
    stages = []
    for name, step in steps.items():
        try:
            stages.append((name, step()))
        except NotFinite as fault:
            stages.append((name, f"NOT FINITE: {fault.culprit}"))
            return stages, fault
    return stages, None


def _bad_rows_of_train(rlt: Rlt, policy: Params, batch: Batch) -> list[str]:
    """The rows whose gradients are not finite when they are alone in the batch."""
    name = row_names(batch.scored)
    count = len(batch.completions)
    return [name(i) for i in range(count) if _fails(rlt.gradients, policy, batch.part([i]))]


def _fails(gradients: Callable, *arguments: Any) -> bool:
    try:
        free(gradients(*arguments)[0])
    except NotFinite:
        return True
    return False


def _recorded_reward(kept: SkippedStep) -> RewardFn | None:
    """A stand-in for a reward function of the user's own, which returns what was recorded; None if there was none."""
    if not kept.fault["reward"].startswith(OWN_REWARD):
        return None
    components = {
        name.removeprefix("component/"): x for name, x in kept.values.items() if name.startswith("component/")
    }

    @reads(*kept.fault.get("reads", BOTH))
    def recorded(inputs: RewardInputs) -> Rewards:
        if "reward" not in kept.values:
            raise UserError("the run's own reward function is not known here: pass it to rlt_jax.replay.replay")
        return Rewards(kept.values["reward"], components)

    recorded.__qualname__ = kept.fault["reward"].removeprefix(OWN_REWARD)
    return recorded


def _check_batch(kept: SkippedStep, numbers: list[int], rows: Sequence[np.ndarray], *, ids: str = "prompt_ids") -> None:
    """Refuse rows that are not those of the step."""
    stored = split(kept.batch, ids)
    same = numbers == kept.batch["rows"].tolist() and all(map(np.array_equal, rows, stored))
    if not same:
        at = next((i for i, (a, b) in enumerate(zip(rows, stored)) if not np.array_equal(a, b)), 0)
        raise UserError(
            f"step {kept.step} was of row {kept.batch['rows'][at]} and others, but the data now gives other rows or "
            "other texts there: restore the data, tokenizer and prompts that the run had"
        )


def _differences(kept: SkippedStep, fault: NotFinite | None) -> list[str]:
    """How a fault differs from the recorded one; numbers only on the same device and version of JAX."""
    if fault is None:
        return [f"the run recorded {kept.fault['culprit']}, but here all is finite"]
    if fault.stage != kept.fault["stage"]:
        return [f"the run recorded a fault in {kept.fault['stage']}, but here it is in {fault.stage}"]
    found = []
    if same_machine(kept):
        if fault.culprit != kept.fault["culprit"]:
            found.append(f"the run recorded {kept.fault['culprit']}")
        names = sorted({*fault.values, *kept.values})
        other = [name for name in names if not _same(fault.values.get(name), kept.values.get(name))]
        if other:
            more = f" and {len(other) - MOST_SHOWN} more" if len(other) > MOST_SHOWN else ""
            found.append(f"other bits in {', '.join(other[:MOST_SHOWN])}{more}")
    return found


def same_machine(kept: SkippedStep) -> bool:
    """Whether the step was computed with this device and version of JAX."""
    return (kept.fault["device"], kept.fault["jax"]) == (jax.devices()[0].device_kind, jax.__version__)


def _same(here: np.ndarray | None, there: np.ndarray | None) -> bool:
    if here is None or there is None:
        return False
    return here.dtype == there.dtype and here.shape == there.shape and bits(here) == bits(there)
