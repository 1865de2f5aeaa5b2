"""The reward of an explanation: how much it helps the student, minus how far it is from the student's own thinking.

Departures from the original:
- A row with an empty thought counts as not matched, and all its KL statistics are -not_matched_penalty; the original
  leaves out the penalty, its raw statistics are NaN, and without the teacher term it rewards an empty thought.
- A row with an empty solution has not_matched_penalty for every log-prob statistic; the original's reward is 3e36.
- Log-probs are clipped to +-1e6 nats and exponents to 60, so that no reward overflows; real text comes near neither.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.losses._arrays import at_least_f32
from rlt_jax.losses.component_names import REDUCTIONS
from rlt_jax.losses.kl import kl_estimate
from rlt_jax.types import Normalization, Reduction

_LARGEST_LOGP = 1e6  # nats; stands in for -inf, which would spoil sums and products
_LARGEST_EXPONENT = 60.0  # nats; exp(60) = 1e26 leaves room for coefficients and for sums over the longest spans


class TeacherReward(NamedTuple):
    """Result of `teacher_reward`, a pytree."""

    reward: jax.Array  # f32[B]
    components: dict[str, jax.Array]  # name -> f32[B]


class _Term(NamedTuple):
    """One weighted sum of reductions over a span."""

    raw: dict[Reduction, jax.Array]  # reduction -> f32[B] of the unprocessed tokens, all seven
    scores: dict[Reduction, jax.Array]  # reduction -> f32[B] of the processed tokens, those in use
    token_mean: jax.Array  # f32[B] mean of the processed (normalised and clipped) tokens
    weighted: jax.Array  # f32[B] sum_j coefficient_j * score_j


def teacher_reward(
    solution_logps: jax.Array,
    solution_mask: jax.Array,
    student_thought_logps: jax.Array,
    teacher_thought_logps: jax.Array | None,
    thought_mask: jax.Array,
    matched: jax.Array,
    *,
    answer_log_prob_coeff: float | Sequence[float],
    kl_penalty_reward_coeff: float | Sequence[float],
    reduction_log_prob: Reduction | Sequence[Reduction],
    reduction_kl: Reduction | Sequence[Reduction],
    normalize_log_prob: Normalization | None = None,
    normalize_kl: Normalization | None = None,
    clip_log_prob: float | None = None,
    clip_kl: float | None = None,
    use_schulman_kl_estimation: bool = False,
    include_teacher_think_entropy: bool = True,
    not_matched_penalty: float = -1.0,
) -> TeacherReward:
    """Reward of an explanation (RLT, arXiv 2506.08388: r^SS and r^KL), per row:

        r = sum_j a_j * reduce_j(f(log p_s(solution token | question, explanation)))
          - sum_j k_j * reduce_j(g(log p_t(thought token) - log p_s(thought token)))
          + (0 if matched else not_matched_penalty)

    f and g normalise each token (none, exp(x) or 1 - exp(-x)), then clip it on one side: log-probs from below at
    -clip_log_prob, KLs from above at clip_kl. Every statistic of an empty span is filled in: not_matched_penalty for a
    solution, -not_matched_penalty for a thought, which then also counts as not matched (the penalty is added once).

    Reductions: mean, sum, min, max, median (the lower one of an even count), first_quartile and last_quartile (linear
    interpolation). A single coefficient applies to all reductions of its term; several apply one to each.

    Under jit every keyword is static: give tuples, not lists.

    Args:
      solution_logps: f32[B, M] nats, student's log-probs of the solution's tokens, right-padded.
      solution_mask: bool[B, M], True on those tokens.
      student_thought_logps: f32[B, K] nats, student's log-probs of the thought's tokens, the solution not in context.
      teacher_thought_logps: f32[B, K] nats, teacher's log-probs of the same tokens, the solution in context. None only
        without include_teacher_think_entropy: then there are no thought_kl components, no kl_reward and total_with_kl.
      thought_mask: bool[B, K], True on those tokens.
      matched: bool[B], True: the explanation's tags were closed.
      answer_log_prob_coeff, kl_penalty_reward_coeff: a and k, reward per nat.
      reduction_log_prob, reduction_kl: one name or several.
      normalize_log_prob, normalize_kl: None, "exp" or "exp_norm".
      clip_log_prob, clip_kl: in the unit of the normalised token; None: no clip.
      use_schulman_kl_estimation: per-token k3 = kl - 1 + exp(-kl) instead of the log-ratio kl.
      include_teacher_think_entropy: False replaces the KL by the student's surprisal -log p_s, never in k3 form.
      not_matched_penalty: reward of a row that is not matched.
    Returns:
      `.reward` f32[B], finite whatever masked-out slots hold (NaN inside the masks is a bug upstream and shows as NaN).
      `.components`, f32[B] each (ORIGINAL_NAMES has the original's names; R is a reduction):
        solution_logp/R, thought_kl/R, thought_surprisal/R: of the unprocessed tokens, all seven R;
        solution_logp_score/R, thought_kl_score/R, thought_surprisal_score/R: of the processed (normalised and clipped)
          tokens, the R in use;
        thought_kl_token_mean, thought_surprisal_token_mean: mean of the processed tokens;
        thought_kl_score_mean, thought_surprisal_score_mean: mean over the R in use;
        solution_logp_reward, kl_reward, surprisal_reward, match_reward: the terms of the sum above;
        total_with_kl, total_with_surprisal: the sums; include_teacher_think_entropy selects which is the reward.
    Raises:
      ValueError: unknown reduction or normalisation, no reduction, coefficients that do not match the reductions, or
        include_teacher_think_entropy without the teacher's log-probs.
    """
    reductions_logp = _as_reductions("reduction_log_prob", reduction_log_prob)
    reductions_kl = _as_reductions("reduction_kl", reduction_kl)
    coeffs_logp = _as_coefficients(
        "answer_log_prob_coeff", answer_log_prob_coeff, "reduction_log_prob", reductions_logp
    )
    coeffs_kl = _as_coefficients("kl_penalty_reward_coeff", kl_penalty_reward_coeff, "reduction_kl", reductions_kl)

    if teacher_thought_logps is None and include_teacher_think_entropy:
        raise ValueError("include_teacher_think_entropy without teacher_thought_logps: the KL needs them")
    matched = jnp.asarray(matched).astype(bool)
    chex.assert_rank([solution_logps, thought_mask, matched], [2, 2, 1])
    chex.assert_equal_shape([solution_logps, solution_mask])
    chex.assert_equal_shape([student_thought_logps, thought_mask])
    chex.assert_equal_shape_prefix([solution_logps, thought_mask, matched], 1)
    solution_mask, thought_mask = _as_mask(solution_mask), _as_mask(thought_mask)
    solution_logps = _as_logps(solution_logps, solution_mask)
    student_logps = _as_logps(student_thought_logps, thought_mask)
    solution = _term(
        solution_logps,
        solution_mask,
        reductions_logp,
        coeffs_logp,
        process=partial(_process, "normalize_log_prob", normalize_log_prob, low=_negative(clip_log_prob), high=None),
        empty=not_matched_penalty,
    )
    penalty = partial(
        _term,
        mask=thought_mask,
        reductions=reductions_kl,
        coefficients=coeffs_kl,
        process=partial(_process, "normalize_kl", normalize_kl, low=None, high=clip_kl),
        empty=-not_matched_penalty,
    )
    match_reward = jnp.where(matched & jnp.any(thought_mask, axis=1), 0.0, not_matched_penalty)

    def components_of(thought: str, reward: str, total: str, term: _Term) -> dict[str, jax.Array]:
        return {
            **_named(thought, term),
            f"{thought}_token_mean": term.token_mean,
            f"{thought}_score_mean": _mean(term.scores),
            reward: -term.weighted,
            total: solution.weighted - term.weighted + match_reward,
        }

    components = {**_named("solution_logp", solution), "solution_logp_reward": solution.weighted}
    if teacher_thought_logps is not None:
        chex.assert_equal_shape([teacher_thought_logps, student_thought_logps])
        kl = _as_logps(teacher_thought_logps, thought_mask) - student_logps
        if use_schulman_kl_estimation:
            kl = kl_estimate(jnp.maximum(kl, -_LARGEST_EXPONENT), jnp.zeros_like(kl), kind="k3")
        components |= components_of("thought_kl", "kl_reward", "total_with_kl", penalty(kl))
    surprisal = penalty(-student_logps)
    components |= components_of("thought_surprisal", "surprisal_reward", "total_with_surprisal", surprisal)
    components["match_reward"] = match_reward
    total = "total_with_kl" if include_teacher_think_entropy else "total_with_surprisal"
    return TeacherReward(components[total], components)


def _term(
    tokens: jax.Array,
    mask: jax.Array,
    reductions: tuple[Reduction, ...],
    coefficients: tuple[float, ...],
    process: Callable[[jax.Array], jax.Array],
    empty: float,
) -> _Term:
    processed = process(tokens)
    scores = {r: _reduce(processed, mask, r, empty) for r in reductions}
    return _Term(
        raw={r: _reduce(tokens, mask, r, empty) for r in REDUCTIONS},
        scores=scores,
        token_mean=_reduce(processed, mask, "mean", empty),
        weighted=sum((c * scores[r] for c, r in zip(coefficients, reductions)), jnp.zeros(mask.shape[0])),
    )


def _process(
    name: str, normalize: Normalization | None, tokens: jax.Array, *, low: float | None, high: float | None
) -> jax.Array:
    match normalize:
        case None:
            pass
        case "exp":
            tokens = _bounded_exp(tokens)
        case "exp_norm":
            tokens = 1.0 - _bounded_exp(-tokens)
        case _:
            raise ValueError(f"{name}={normalize!r}: expected None, 'exp' or 'exp_norm'")
    return jnp.clip(tokens, low, high)


def _reduce(tokens: jax.Array, mask: jax.Array, reduction: Reduction, empty: float) -> jax.Array:
    """f32[B, K] -> f32[B] over the masked tokens; `empty` for a row without any."""
    count = jnp.sum(mask, axis=1)
    last = jnp.maximum(count - 1, 0)
    in_order = jnp.sort(jnp.where(mask, tokens, jnp.inf), axis=1)  # masked-out tokens last

    def at(index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(in_order, index[:, None], axis=1)[:, 0]

    def quantile(q: float) -> jax.Array:
        position = q * last
        below = jnp.floor(position).astype(jnp.int32)
        low, high = at(below), at(jnp.minimum(below + 1, last))
        return low + (position - below) * (high - low)

    match reduction:
        case "sum":
            value = jnp.sum(tokens, axis=1, where=mask)
        case "mean":
            value = jnp.sum(tokens, axis=1, where=mask) / jnp.maximum(count, 1)
        case "min":
            value = at(jnp.zeros_like(last))
        case "max":
            value = at(last)
        case "median":
            value = at(last // 2)
        case "first_quartile":
            value = quantile(0.25)
        case "last_quartile":
            value = quantile(0.75)
    value = jnp.where(jnp.any(jnp.isnan(tokens), axis=1, where=mask), jnp.nan, value)  # sorting would hide it
    return jnp.where(count > 0, value, empty)


def _as_reductions(name: str, reductions: Reduction | Sequence[Reduction]) -> tuple[Reduction, ...]:
    names = (reductions,) if isinstance(reductions, str) else tuple(reductions)
    if not names:
        raise ValueError(
            f"{name} is empty: expected one or more of {', '.join(REDUCTIONS)}; "
            "to drop a term, set its coefficient to 0"
        )
    for reduction in names:
        if reduction not in REDUCTIONS:
            raise ValueError(f"{name}={reductions!r}: {reduction!r} is none of {', '.join(REDUCTIONS)}")
    return names


def _as_coefficients(
    name: str, coefficients: float | Sequence[float], reductions_name: str, reductions: tuple[Reduction, ...]
) -> tuple[float, ...]:
    values = np.asarray(coefficients, float)
    if values.ndim == 0:
        return (float(values),) * len(reductions)
    several = tuple(values.tolist())
    if len(several) != len(reductions):
        raise ValueError(
            f"{name} has {len(several)} values {several}, {reductions_name} has {len(reductions)} {reductions}: "
            "give one coefficient for each reduction, or a single number for all"
        )
    return several


def _as_mask(mask: jax.Array) -> jax.Array:
    mask = jnp.asarray(mask).astype(bool)
    return jnp.pad(mask, ((0, 0), (0, 1))) if mask.shape[1] == 0 else mask  # K = 0: nothing to sort or pick from


def _as_logps(logps: jax.Array, mask: jax.Array) -> jax.Array:
    logps = at_least_f32(logps)
    logps = jnp.pad(logps, ((0, 0), (0, mask.shape[1] - logps.shape[1])))
    return jnp.clip(jnp.where(mask, logps, 0.0), -_LARGEST_LOGP, _LARGEST_LOGP)


def _bounded_exp(x: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(x, _LARGEST_EXPONENT))


def _negative(clip: float | None) -> float | None:
    return None if clip is None else -clip


def _mean(scores: dict[Reduction, jax.Array]) -> jax.Array:
    return jnp.mean(jnp.stack(list(scores.values())), axis=0)


def _named(prefix: str, term: _Term) -> dict[str, jax.Array]:
    raw = {f"{prefix}/{r}": x for r, x in term.raw.items()}
    return raw | {f"{prefix}_score/{r}": x for r, x in term.scores.items()}
