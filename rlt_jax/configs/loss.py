"""Settings of the policy's loss and of its advantages: a frozen dataclass each, and their checks.

Names and default values of options that TRL has are TRL's (docs/losses.md); those that change nothing on-policy, with
one gradient step for each draw, are on from the start.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from rlt_jax.configs.checks import count_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.settings import Settings
from rlt_jax.types import (
    AdvantageBaseline,
    AdvantageScale,
    ImportanceCorrection,
    OutsideBounds,
    PolicyKind,
    RatioLevel,
    RewardAggregation,
)

CLIPPED: tuple[PolicyKind, ...] = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # min(r A, clip(r) A)


@dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """The policy's loss and how it is computed."""

    kind: PolicyKind = "grpo"
    """Which loss: grpo and sapo average over each completion, then over completions; bnpo, dapo, cispo and vespo over
    all tokens of a gradient step; dr_grpo divides by max_completion_length, luspo not by length; gmpo takes a geometric
    mean."""
    level: RatioLevel = "token"
    """Probability ratios of single tokens, or one for the whole completion, as GSPO has them."""
    epsilon_low: float | None = 0.2
    """Clip ratios from below at 1 minus this, no unit; never binds with one gradient step per draw. None: no clip."""
    epsilon_high: float | None = None
    """Clip ratios from above at 1 plus this. None: as epsilon_low. cispo: the largest ratio itself, such as 5."""
    delta: float | None = None
    """Two-sided clip: the largest ratio of a completion with a negative advantage, above 1 + epsilon_high. None: no
    limit."""
    beta: float = 0.04
    """Weight of the KL to the reference in the loss, per nat. 0: no KL term, and no reference, unless it scores in the
    teacher's place (reward.use_reference_teacher_model)."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimate of the KL: k1: log-ratio; k2: half its square; k3: exp(-k1) - 1 + k1. In the loss the gradient of k1 is
    0 on average."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add the KL to the loss of each token, or subtract its sum over the completion from the reward."""
    kl_bias_correction: bool = False
    """Multiply the KL in the loss by the probability ratio, so that its gradient is that of the KL itself."""
    sapo_temperature_pos: float = 1.0
    """sapo: temperature of the gate where the advantage is positive, no unit."""
    sapo_temperature_neg: float = 1.05
    """sapo: temperature of the gate elsewhere, no unit."""
    vespo_k_pos: float = 2.0
    """vespo: power of the sequence's ratio where the advantage is not negative."""
    vespo_lambda_pos: float = 3.0
    """vespo: decay with the sequence's ratio where the advantage is not negative."""
    vespo_k_neg: float = 3.0
    """vespo: power of the sequence's ratio where the advantage is negative."""
    vespo_lambda_neg: float = 2.0
    """vespo: decay with the sequence's ratio where the advantage is negative."""
    entropy_coef: float = 0.0
    """Reward the policy's mean entropy over tokens by this much per nat. 0: off."""
    top_entropy_quantile: float = 1.0
    """Train on the share of a gradient step's tokens with the highest entropy alone, in (0, 1]. 1: all."""
    unbias_log_probabilities: bool = True
    """Divide policy and reference logits by the sampling temperature."""
    logprob_chunk: MayChange[int] = 1024
    """Chunk size for logits over the vocabulary, tokens. Changes memory, not results."""
    saved_mlp: MayChange[int | None] = None
    """Save the MLP projections of this many last layers for the backward pass instead of recomputing them: less time,
    more memory. None: as many as fit into planned_gb, none without it."""
    saved_attention: MayChange[int | None] = None
    """Save the attention of this many last layers for the backward pass: on a GPU, more time saved per GB than with
    saved_mlp. None: as for saved_mlp, with priority over it."""
    importance_correction: ImportanceCorrection = "none"
    """Multiply the policy term by the ratio of policy to sampler probability: of each token, of the whole completion
    (sequence), or its geometric mean per token (sequence_mean); both are of the whole vocabulary, before filters."""
    importance_cap: float = 2.0
    """Upper limit of these ratios, no unit."""
    importance_floor: float | None = None
    """Lower limit of these ratios, no unit. None: none."""
    importance_outside: OutsideBounds = "truncate"
    """A ratio beyond a limit: set it to the limit, or leave its tokens out of the policy term."""
    off_policy_threshold: float | None = None
    """Leave out the policy term of a completion with a negative advantage that the policy finds less likely than the
    sampler did by more than this, nats per token. None: keep all."""


@dataclass(frozen=True, kw_only=True)
class AdvantagesConfig(Settings):
    """How rewards become advantages."""

    baseline: AdvantageBaseline = "mean"
    """Subtract the mean of the group's rewards, or of the others' (RLOO)."""
    scale: AdvantageScale = "group"
    """Divide by the standard deviation of the group's rewards, of all rewards drawn together, or not at all."""
    aggregation: RewardAggregation = "sum_then_normalize"
    """Of the rewards as they are, or of each of their terms normalised in its group before the sum (GDPO), so that
    terms of different scale weigh alike."""
    zero_spread: Literal["keep", "drop", "replace"] = "keep"
    """Groups whose rewards are all equal, with advantages of 0: count them in the means of the loss, leave them out, or
    draw completions of other questions in their place (dynamic sampling)."""
    max_redraws: int = 2
    """How often, at most, groups are replaced in one step; those of equal rewards that are left are kept."""
    cut_off: Literal["train", "mask"] = "train"
    """Completions that were cut off at max_completion_length: train on them, or leave them out of the loss."""


def loss_problems(loss: LossConfig) -> Iterator[str]:
    """Invalid settings of the loss, one message each."""
    if loss.beta < 0:
        yield f"loss.beta={loss.beta:g}: expected 0 or a positive number"
    yield from _clip_problems(loss)
    yield from _kl_problems(loss)
    yield from _importance_problems(loss)
    yield from _own_option_problems(loss)
    if not 0 < loss.top_entropy_quantile <= 1:
        yield f"loss.top_entropy_quantile={loss.top_entropy_quantile:g}: expected a share above 0 and at most 1 (all)"
    if loss.off_policy_threshold is not None and loss.off_policy_threshold < 0:
        yield (
            f"loss.off_policy_threshold={loss.off_policy_threshold:g}: expected 0 or a positive number of nats, or None"
        )


def _own_option_problems(loss: LossConfig) -> Iterator[str]:
    """Of the options that one kind alone has."""
    for field in fields(loss):
        kind, _, option = field.name.partition("_")
        value = getattr(loss, field.name)
        if kind not in ("sapo", "vespo"):
            continue
        if loss.kind != kind and value != field.default:
            yield f"loss.{field.name} has no effect with loss.kind={loss.kind}: leave it out"
        elif option.startswith("temperature") and value <= 0:
            yield f"loss.{field.name}={value:g}: expected a temperature above 0"
        elif value < 0:
            yield f"loss.{field.name}={value:g}: expected 0 or a positive number"


def _clip_problems(loss: LossConfig) -> Iterator[str]:
    for name in ("epsilon_low", "epsilon_high"):
        epsilon = getattr(loss, name)
        if epsilon is not None and epsilon <= 0:
            yield f"loss.{name}={epsilon:g}: expected a positive number, or None"
    if loss.epsilon_low is not None and loss.epsilon_low >= 1 and loss.kind in CLIPPED:
        yield f"loss.epsilon_low={loss.epsilon_low:g}: expected less than 1, as ratios are above 0, or None for no clip"
    if loss.epsilon_low is None and loss.epsilon_high is not None and loss.kind != "cispo":
        yield (
            f"loss.epsilon_high={loss.epsilon_high:g} with loss.epsilon_low=None: give both, or None for both for no "
            "clip"
        )
    if loss.kind == "cispo" and loss.epsilon_high is None:
        yield "loss.kind=cispo without loss.epsilon_high, which is the largest ratio itself: add --loss.epsilon-high 5"
    if loss.delta is not None:
        high = loss.epsilon_high if loss.epsilon_high is not None else loss.epsilon_low
        if loss.kind not in CLIPPED:
            yield f"loss.delta={loss.delta:g} has no effect with loss.kind={loss.kind}: leave it out"
        elif high is None or loss.delta <= 1 + high:
            yield f"loss.delta={loss.delta:g}: expected more than 1 + epsilon_high, with epsilon_high given"
    if loss.level == "sequence" and loss.kind in ("vespo", "gmpo"):
        yield (
            f"loss.level=sequence has no effect with loss.kind={loss.kind}, whose ratio is the completion's: leave it "
            "out"
        )


def _kl_problems(loss: LossConfig) -> Iterator[str]:
    off = {"loss.kl_kind": loss.kl_kind == "k3", "loss.kl_bias_correction": not loss.kl_bias_correction}
    off["loss.kl_in"] = loss.kl_in == "loss"
    if loss.beta == 0:
        for name in [name for name, default in off.items() if not default]:
            yield f"{name} has no effect with loss.beta=0: leave it out, or give a beta above 0"
        return
    if loss.kl_bias_correction and loss.kl_in == "reward":
        yield "loss.kl_bias_correction has no effect with loss.kl_in=reward: leave one of them out"
    if loss.kl_bias_correction and loss.kind == "gmpo":
        yield "loss.kl_bias_correction has no effect with loss.kind=gmpo: leave it out"


def _importance_problems(loss: LossConfig) -> Iterator[str]:
    if loss.kind == "gmpo" and loss.importance_correction != "none":
        yield f"loss.importance_correction={loss.importance_correction} has no effect with loss.kind=gmpo: leave it out"
    if loss.importance_cap <= 0:
        yield f"loss.importance_cap={loss.importance_cap:g}: expected a positive number, such as 2"
    floor = loss.importance_floor
    if floor is not None and not 0 < floor < loss.importance_cap:
        yield f"loss.importance_floor={floor:g}: expected a positive number below loss.importance_cap, or None"
    if loss.importance_correction == "none":
        given = {
            "loss.importance_floor": floor is not None,
            "loss.importance_outside": loss.importance_outside != "truncate",
        }
        for name in [name for name, on in given.items() if on]:
            yield f"{name} has no effect with loss.importance_correction=none: leave it out, or choose a correction"


def advantages_problems(advantages: AdvantagesConfig) -> Iterator[str]:
    """Invalid settings of the advantages, one message each."""
    yield from count_problems({"advantages.max_redraws": advantages.max_redraws})
    if advantages.aggregation == "normalize_then_sum":
        for name, value, default in (
            ("scale", advantages.scale, "group"),
            ("baseline", advantages.baseline, "mean"),
        ):
            if value != default:
                yield (
                    f"advantages.{name}={value} has no effect with advantages.aggregation=normalize_then_sum, which "
                    "normalises each term in its group and the sum over the batch: leave it out"
                )
