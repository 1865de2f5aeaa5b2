"""Settings of what happens when numbers go wrong, and which settings of the optimizer keep every number finite."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rlt_jax.configs.checks import count_problems, off_at_zero_problems
from rlt_jax.configs.settings import Settings

LARGEST = 3e38  # a little below the largest float32 and the largest bfloat16
SMALLEST = 1.2e-38  # the smallest float32 that a processor does not take for 0
LARGEST_NORM = 1e18  # whose square, and a few times that, is a float32
_LEAST_DECAY = 1e-6  # 1 - beta; closer to 1, 1 - beta^t is rounding, and at 6e-8 it is 0


class AdamW(Protocol):
    """Settings of the optimizer (`OptimizerConfig`)."""

    @property
    def adam_beta1(self) -> float: ...
    @property
    def adam_beta2(self) -> float: ...
    @property
    def adam_epsilon(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class ChecksConfig(Settings):
    """What happens to a gradient step with numbers that are not finite."""

    max_skipped_steps: int = 3
    """Stop the run after this many skipped steps in a row."""
    keep_skipped: int = 2
    """Keep batch and weights of this many newest skipped steps in RUN/skipped, for rlt_jax.replay. 0: none."""


@dataclass(frozen=True, kw_only=True)
class AlarmsConfig(Settings):
    """Limits of metrics beyond which the log warns and `alarm/NAME` is 1. None switches an alarm off."""

    zero_spread: float | None = 1.0
    """Lowest share of groups whose rewards are all equal but for rounding that is an alarm, in (0, 1]."""
    cut_off: float | None = 1.0
    """Lowest share of completions cut off at max_completion_length that is an alarm, in (0, 1]."""
    kl: float | None = 1.0
    """Highest `kl` without alarm, nats per token."""
    entropy: float | None = 0.005
    """Lowest `entropy` without alarm, nats per token."""
    sampler_mismatch: float | None = 0.2
    """Highest `sampler_logp_diff` and `sync_logp_diff` without alarm, nats per token."""
    grad_spike: float | None = 20.0
    """Highest multiple of the median of past gradient norms that `grad_norm` may be without alarm; none up to
    max_grad_norm."""
    patience: int = 3
    """Logged steps in a row beyond the limit that make an alarm of zero_spread, cut_off or entropy, and within it that
    end one."""


def number_problems(checks: ChecksConfig, alarms: AlarmsConfig | None = None) -> Iterator[str]:
    """Invalid settings of checks and alarms, one message each."""
    yield from count_problems({"checks.max_skipped_steps": checks.max_skipped_steps})
    yield from off_at_zero_problems({"checks.keep_skipped": (checks.keep_skipped, "0 for none")})
    if alarms is None:
        return
    yield from count_problems({"alarms.patience": alarms.patience})
    for name in ("zero_spread", "cut_off"):
        share = getattr(alarms, name)
        if share is not None and not 0 < share <= 1:
            yield f"alarms.{name}={share:g}: expected a share above 0 and at most 1, or None for no alarm"
    for name in ("kl", "entropy", "sampler_mismatch", "grad_spike"):
        limit = getattr(alarms, name)
        if limit is not None and limit <= 0:
            yield f"alarms.{name}={limit:g}: expected a positive number, or None for no alarm"


def update_bound(optimizer: AdamW, *, learning_rate: float, largest_weight: float) -> float:
    """An upper bound of the magnitude of every number that an update of AdamW computes or stores.

    With c = max_grad_norm, b1 and b2 the decays, e = adam_epsilon, d = weight_decay, w the largest weight before:

        gradient        |g| <= c         g = gradient * c / norm; the norm, however its sum of squares is rounded, is no
                                         less than the largest gradient. Squares below 1e-38 vanish: c >= 1e-18
        first moment    |m| <= c         m_t = (1 - b1) sum_s b1^(t-s) g_s
        second moment   0 <= v <= c²     the same of g²
        bias corrected  |m/(1 - b1^t)| <= c,  v/(1 - b2^t) <= c²     the weights of the sums add up to 1 - b^t
        direction       |m^ / (sqrt(v^) + e)| <= c/e                 v^ may be 0: rounded to bfloat16, or vanished
        update          rate * (c/e + d w),  and the new weight is at most w + that

    The bound holds from any state within it, whatever the order of the gradients, so it proves by induction that a step
    with finite gradients leaves finite weights and moments. A factor of 2 for c covers rounding: in float32 moments
    grow by at most 3 half ulps / (1 - b1) <= 20 % over all steps, and 1 - b^t is right to 20 %, both for 1 - b >= 1e-6;
    rounding to bfloat16 is monotonic, so that a moment stays below the first bfloat16 above its bound. A float32 master
    exceeds its bfloat16 weight by 0.4 % at most.

    Args:
      optimizer: with settings that `overflow_problems` accepts.
      learning_rate: the highest rate of the schedule.
      largest_weight: magnitude, as stored in float32 or bfloat16.
    """
    clip, weight = 2 * max(optimizer.max_grad_norm, 1e-18), 1.01 * largest_weight
    direction = clip / optimizer.adam_epsilon + optimizer.weight_decay * weight
    return max(clip, clip**2, direction, learning_rate * direction, weight + learning_rate * direction)


def overflow_problems(optimizer: AdamW, *, learning_rate: float) -> Iterator[str]:
    """Settings with which the first step could already compute numbers that are no float32, one message each.

    All are finite and of the right sign.
    """
    before = 0
    for name in ("adam_beta1", "adam_beta2"):
        beta = getattr(optimizer, name)
        if 1 - _LEAST_DECAY < beta < 1:
            before += 1
            yield f"optimizer.{name}={beta!r}: expected at most {1 - _LEAST_DECAY}, as 1 - beta^t must not round to 0"
    if 0 < optimizer.adam_epsilon < SMALLEST:
        before += 1
        yield f"optimizer.adam_epsilon={optimizer.adam_epsilon:g} is 0 in float32: expected {SMALLEST:g} or more"
    if optimizer.max_grad_norm > LARGEST_NORM:
        before += 1
        yield (
            f"optimizer.max_grad_norm={optimizer.max_grad_norm:g}: expected at most {LARGEST_NORM:g}, whose square is "
            "still a float32: it never clips either"
        )
    for name, number in (("learning_rate", learning_rate), ("optimizer.weight_decay", optimizer.weight_decay)):
        if number > LARGEST / 1e6:  # the warm-up multiplies it by numbers of steps
            before += 1
            yield f"{name}={number:g}: expected at most {LARGEST / 1e6:g}, so that no number overflows float32"
    if before or optimizer.adam_epsilon <= 0 or learning_rate <= 0:
        return
    bound = update_bound(optimizer, learning_rate=learning_rate, largest_weight=1.0)
    if bound > LARGEST:
        yield (
            f"learning_rate={learning_rate:g} with optimizer.max_grad_norm={optimizer.max_grad_norm:g}, "
            f"adam_epsilon={optimizer.adam_epsilon:g} and weight_decay={optimizer.weight_decay:g}: the first update "
            f"could be {bound:.1g}, which is no float32 (learning_rate * max_grad_norm / adam_epsilon): lower the "
            "rate, or raise adam_epsilon"
        )
