"""Policy losses: what a token or completion with advantage A contributes, and what the contributions are divided by.

One function for all kinds, so that KL term, masks, weights and diagnostics are the same in each. Numbers are those of
TRL 1.16.0 (tests/golden/trl/), with these departures:
- With `totals` the normaliser is the whole step's: losses of micro-batches add up to the loss of the step. In TRL some
  depend on gradient accumulation and on the number of processes.
- A ratio that overflows behind a clip gives no NaN gradient.
- `epsilon_low=None` is no clip, `kl_kind` and `entropy_keep` are ours, and gmpo too has the entropy bonus.
- `phi` counts a row without tokens as 0, like every mean over rows here; TRL counts it as 1.
"""

from typing import NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from rlt_jax.losses._arrays import at_least_f32
from rlt_jax.losses._policy_terms import cispo_score, clipped_ratio, gmpo_ratio, sapo_gate, vespo_phi
from rlt_jax.losses.kl import KLKind, kl_estimate
from rlt_jax.types import PolicyKind, RatioLevel

# Kinds that average each completion's tokens before the completions, and kinds whose ratio is clipped on both sides.
_ROW_MEANS: tuple[PolicyKind, ...] = ("grpo", "sapo", "gmpo")
_RATIO_CLIPS: tuple[PolicyKind, ...] = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")

_OWN = {  # kind -> options that no other kind reads
    "dr_grpo": {"max_completion_length"},
    "sapo": {"sapo_temperature_pos", "sapo_temperature_neg"},
    "vespo": {"vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"},
}
_UNREAD = {  # kind -> options that others read, and this does not
    "cispo": {"epsilon_low", "delta"},
    "sapo": {"epsilon_low", "epsilon_high", "delta"},
    "vespo": {"epsilon_low", "epsilon_high", "delta"},
    "gmpo": {"delta", "level", "kl_bias_correction", "token_weights"},
}
# kind -> options of `policy_loss` that change nothing (for vespo `level` changes the KL's bias correction alone)
IGNORED: dict[PolicyKind, frozenset[str]] = {
    kind: frozenset(_UNREAD.get(kind, set()).union(*(own for other, own in _OWN.items() if other != kind)))
    for kind in get_args(PolicyKind)
}


class Totals(NamedTuple):
    """Counts of a whole step, f32[] each, for losses of its micro-batches; see `totals_of`."""

    rows: jax.Array  # completions, those without a trained token too; not the rows that only fill up a micro-batch
    tokens: jax.Array  # trained tokens: on the mask
    entropy_tokens: jax.Array  # those of them whose entropy counts in the bonus


def totals_of(mask: jax.Array, *, entropy_keep: jax.Array | None = None) -> Totals:
    """The counts of a step whose rows stand in one array.

    Args:
      mask: bool[B, T], True on trained tokens; each row is a completion, even if it has none.
      entropy_keep: bool[B, T], as `policy_loss` takes it. None: all.
    """
    mask = jnp.asarray(mask).astype(bool)
    chex.assert_rank(mask, 2)
    tokens = mask.sum(dtype=jnp.float32)
    counted = tokens if entropy_keep is None else (mask & entropy_keep).sum(dtype=jnp.float32)
    return Totals(jnp.float32(mask.shape[0]), tokens, counted)


def policy_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    ref_logps: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    kind: PolicyKind = "grpo",
    level: RatioLevel = "token",
    epsilon_low: float | None = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: jax.typing.ArrayLike = 0.0,
    kl_kind: KLKind = "k3",
    kl_bias_correction: bool = False,
    token_weights: jax.Array | None = None,
    keep: jax.Array | None = None,
    entropies: jax.Array | None = None,
    entropy_coef: jax.typing.ArrayLike = 0.0,
    entropy_keep: jax.Array | None = None,
    totals: Totals | None = None,
    max_completion_length: int | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A policy-gradient loss of completions with advantages, of one of nine kinds.

    With x = logps, d = x - old_logps, m = mask, n_i = max(sum_t m_it, 1), E = keep, rho = token_weights, and the ratio

        r_it = exp(d_it)  (level "token")   or   r_i = exp(sum_t m_it d_it / n_i)  (level "sequence": GSPO, 2507.18071)

    the loss of a token, and what the sum over tokens is divided by (R rows, N tokens, L = max_completion_length):

        grpo     l = -min(u A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)   n_i, then R     arXiv 2402.03300
                     u = r, or min(r, delta) with delta (2505.07291)
        bnpo     as grpo                                                       N               TRL, without a paper
        dr_grpo  as grpo                                                       R L             arXiv 2503.20783
        dapo     as grpo                                                       N               arXiv 2503.14476
        luspo    as grpo                                                       R               arXiv 2602.05261
        cispo    l = -sg(min(r, epsilon_high)) A x                             N               arXiv 2506.13585
        sapo     l = -(4 / tau) sigmoid(tau (r - 1)) A                         n_i, then R     arXiv 2511.20347
        vespo    l = -sg(phi_i) A x, phi = w^k exp(lambda (1 - w))             N               arXiv 2602.10693
        gmpo     the row's loss is -exp(sum_t m E c / max(sum_t m E, 1)) A     R               arXiv 2507.20673
                     c = min(d, epsilon_high) if A > 0 else max(d, -epsilon_low)

        loss = sum_it m_it (E_it rho_it l_it + beta KL_it) / divisor  -  entropy_coef sum(m E H) / max(sum(m E), 1)

    dapo and bnpo differ in TRL alone (tokens of the whole step, or of a micro-batch). cispo's cap is epsilon_high
    itself, not 1 + epsilon_high: give 5. tau = sapo_temperature_pos where A > 0, else ..._neg; (k, lambda) =
    vespo_..._pos where A >= 0, else ..._neg; log w = clip(sum_t m clip(d, -20, 20) + sum_t m log rho, log 1e-8, 20),
    log rho clipped likewise. In vespo rho is in w alone: give weights of whole sequences as f32[B, 1], which count
    once. `IGNORED` names the options that change nothing, by kind.

    KL estimate per token (`kl_estimate`), and its gradient in the loss, which is what holds the policy:

        k3  1 - exp(ref - x): on average that of KL(reference || policy)
        k2  x - ref: on average that of KL(policy || reference)
        k1  1: on average ZERO, noise that holds nothing (use k1 in a reward, not here)
        kl_bias_correction (2512.02556) multiplies the estimate by the unclipped r, with its gradient; on-policy that of
        k3 becomes x - ref, that of k1 1 + x - ref.

    The KL is weighted by m and the divisor (gmpo: mean over n_i), but by neither E nor rho. The gradient flows through
    `logps` and `entropies` alone. What stands off the mask is not read, be it NaN.

    Args:
      logps: f32[B, T] nats, log-probs of the tokens under the policy.
      old_logps: f32[B, T] nats, under the policy that the ratio compares with. On-policy: the policy's own.
      ref_logps: f32[B, T] nats, under the reference; None only with beta 0, and then there is no KL diagnostic.
      advantages: f32[B], or f32[B, T] (not for gmpo).
      mask: bool[B, T], True on trained tokens. A row without any contributes nothing but counts in R; in gmpo it
        contributes -A / R, without gradient: rows that fill up a micro-batch must have A = 0 there.
      kind, level: see above.
      epsilon_low: clip below, as a distance from 1 (gmpo: nats). None: no lower bound.
      epsilon_high: the same above (cispo: the cap). None: epsilon_low. So epsilon_low=None alone is no clip at all;
        infinity is no upper bound.
      delta: bound of r where A < 0, which a clip leaves open above; greater than 1 + epsilon_high.
      beta: weight of the KL term.
      kl_kind, kl_bias_correction: see above.
      token_weights: f32[B, T], or f32[B, 1] for whole rows, constant importance weights rho (`importance_weights`).
      keep: bool[B, T] or bool[B, 1], True on tokens that the policy term keeps (`off_policy_keep` and
        `top_entropy_keep`); no divisor shrinks. gmpo: the geometric mean is over kept tokens, 1 where there is none.
      entropies: f32[B, T] nats, entropy H of the policy at each token, with its gradient. None: no bonus.
      entropy_coef: weight of the entropy bonus.
      entropy_keep: bool[B, T], True on tokens E whose entropy counts. None: those of `keep`.
      totals: counts of the whole step, of which this is a micro-batch. None: this is all of it.
      max_completion_length: L of dr_grpo, tokens. None: T, which only a whole step may use.
      sapo_..., vespo_...: see above.
    Returns:
      f32[] loss, and f32[] diagnostics without gradient. All of both add up over the micro-batches of a step if
      `totals` is given. With the loss's own weights:
        policy_loss: the loss without its KL term and bonus;
        kl_loss: the KL term before beta; loss = policy_loss + beta * kl_loss - entropy_coef * entropy.
      Means over all N tokens of the mask, kept or not:
        ratio: r;
        kl_token_mean: the KL estimate with its correction, nats per token;
        clip_low, clip_high, clip: share of tokens with A < 0 and r < 1 - epsilon_low, with A > 0 and
          r > 1 + epsilon_high, and of both together (gmpo: the same of d, as it clips). With level "sequence" the
          share of rows. cispo has clip_high alone: A > 0 and r > epsilon_high. sapo, vespo and a loss without clip
          have none;
        entropy: mean of H over the tokens of the bonus.
      Means over the R rows, in which one without tokens counts as 0:
        kl: of each row's mean of the same, nats per token, whatever the kind;
        phi: vespo's.
    Raises:
      ValueError: an unknown kind, level or kl_kind; a beta other than 0 without ref_logps; a negative epsilon, a delta,
        temperature or length that is not positive, a delta without a clip (where the kind reads it); dr_grpo with
        totals but without max_completion_length; gmpo with advantages of tokens.
    """
    high = epsilon_low if epsilon_high is None else epsilon_high
    low, high = (jnp.inf if epsilon is None else epsilon for epsilon in (epsilon_low, high))
    _check_names(kind, level, kl_kind)
    _check_numbers(kind, low, high, delta, max_completion_length, (sapo_temperature_pos, sapo_temperature_neg))
    if kind == "dr_grpo" and max_completion_length is None and totals is not None:
        raise ValueError(
            "kind='dr_grpo' with totals divides by max_completion_length: give it, micro-batches may differ in width"
        )
    if ref_logps is None and (isinstance(beta, jax.core.Tracer) or beta != 0):  # a traced one is not known to be 0
        raise ValueError(f"beta={beta} without ref_logps: the KL term needs the reference's log-probs")
    if kind == "gmpo" and jnp.ndim(advantages) == 2:
        raise ValueError(f"kind='gmpo' with advantages of shape {jnp.shape(advantages)}: expected one for each row")

    batch = _prepare(logps, old_logps, advantages, mask, keep, token_weights, totals, level)
    aux = {"ratio": batch.token_mean(jnp.broadcast_to(batch.ratio, batch.mask.shape))}

    def averaged(x: jax.Array) -> jax.Array:
        """f32[B, T] on the mask -> f32[], by the divisor of `kind`."""
        if kind in _ROW_MEANS:
            return batch.row_mean(x)
        total = jnp.sum(jnp.sum(x, axis=1, where=batch.mask))
        match kind:
            case "dr_grpo":
                return total / (batch.rows * (max_completion_length or batch.mask.shape[1]))
            case "luspo":
                return total / batch.rows
            case _:
                return total / batch.tokens

    match kind:
        case "gmpo":
            ratio = gmpo_ratio(batch.token_log_ratio, batch.kept, batch.advantages, epsilon_low=low, epsilon_high=high)
            policy = -jnp.sum(ratio * _finite_off_mask(advantages, batch)) / batch.rows
        case "cispo":
            policy = -averaged(batch.gain(cispo_score(batch.kept_log_ratio, batch.kept_logps, cap=high)))
        case "sapo":
            temperatures = {"positive": sapo_temperature_pos, "negative": sapo_temperature_neg}
            policy = -averaged(batch.gain(sapo_gate(batch.kept_log_ratio, batch.advantages, **temperatures)))
        case "vespo":
            phi = vespo_phi(
                batch.token_log_ratio,
                batch.weights,
                batch.mask,
                batch.advantages,
                positive=(vespo_k_pos, vespo_lambda_pos),
                negative=(vespo_k_neg, vespo_lambda_neg),
            )
            aux["phi"] = batch.row_mean(jnp.broadcast_to(phi, batch.mask.shape))
            policy = -averaged(batch._replace(weights=None).gain(phi * batch.kept_logps))
        case _:
            ratio = clipped_ratio(batch.kept_log_ratio, batch.advantages, low=1.0 - low, high=1.0 + high, delta=delta)
            policy = -averaged(batch.gain(ratio))
    loss = policy
    aux |= {"policy_loss": policy, **_clip_shares(batch, kind, level, low, high)}

    if ref_logps is not None:
        ref_logps = _constant(ref_logps)
        chex.assert_equal_shape([batch.logps, ref_logps])
        kl = kl_estimate(batch.logps, jnp.where(batch.mask, ref_logps, 0.0), kind=kl_kind)
        if kl_bias_correction and kind != "gmpo":
            kl = kl * batch.ratio
        kl_loss = averaged(kl)
        aux |= {"kl": batch.row_mean(kl), "kl_loss": kl_loss, "kl_token_mean": batch.token_mean(kl)}
        if isinstance(beta, jax.core.Tracer) or beta != 0:
            loss = loss + beta * kl_loss
    if entropies is not None:
        aux["entropy"] = entropy = _entropy(batch, entropies, entropy_keep, totals)
        loss = loss - entropy_coef * entropy
    return loss, jax.lax.stop_gradient(aux)


class _Batch(NamedTuple):
    """What the terms of a loss are computed from: 0 off the mask (weights: 1), columns 1 or T."""

    logps: jax.Array  # f32[B, T]
    mask: jax.Array  # bool[B, T]
    kept: jax.Array  # bool[B, T] on the mask, and kept by the policy term
    any_token: jax.Array  # bool[B, 1] rows with a token on the mask
    advantages: jax.Array  # f32[B, 1 or T]
    weights: jax.Array | None  # f32[B, 1 or T]
    token_log_ratio: jax.Array  # f32[B, T]
    log_ratio: jax.Array  # f32[B, T], or f32[B, 1] of sequences
    counts: jax.Array  # i32[B, 1] tokens of each row, at least 1
    rows: jax.Array  # f32[] of the step
    tokens: jax.Array  # f32[] of the step, at least 1

    @property
    def ratio(self) -> jax.Array:
        return jnp.exp(self.log_ratio)

    @property
    def kept_logps(self) -> jax.Array:
        return jnp.where(self.kept, self.logps, 0.0)

    @property
    def kept_log_ratio(self) -> jax.Array:
        """0 where no token is kept, so that what is dropped cannot overflow."""
        kept = self.kept if self.log_ratio.shape == self.kept.shape else self.kept.any(axis=1, keepdims=True)
        return jnp.where(kept, self.log_ratio, 0.0)

    def gain(self, factor: jax.Array) -> jax.Array:
        """f32[B, 1 or T] -> f32[B, T], times importance weights and advantages; 0 where no token is kept."""
        weighted = factor if self.weights is None else self.weights * factor
        return jnp.where(self.kept, weighted * self.advantages, 0.0)

    def token_mean(self, x: jax.Array) -> jax.Array:
        return jnp.sum(x, where=self.mask) / self.tokens

    def row_mean(self, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sum(x, axis=1, where=self.mask) / self.counts[:, 0]) / self.rows


def _prepare(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    keep: jax.Array | None,
    token_weights: jax.Array | None,
    totals: Totals | None,
    level: RatioLevel,
) -> _Batch:
    logps, mask = at_least_f32(logps), jnp.asarray(mask).astype(bool)
    old_logps, advantages = _constant(old_logps), _constant(advantages)
    chex.assert_rank(logps, 2)
    chex.assert_equal_shape([logps, old_logps, mask])
    any_token = mask.any(axis=1, keepdims=True)

    def on_mask(x: jax.Array, fill: float = 0.0) -> jax.Array:
        # Before exp and before every product: a pad's inf or NaN must not reach the gradient, where 0 * inf is NaN.
        return jnp.where(mask if x.shape == mask.shape else any_token, x, fill)

    advantages = _columns("advantages", advantages[:, None] if advantages.ndim == 1 else advantages, mask)
    weights = None
    if token_weights is not None:
        weights = on_mask(_columns("token_weights", _constant(token_weights), mask), 1.0)
    kept = mask if keep is None else mask & _columns("keep", jnp.asarray(keep), mask).astype(bool)
    logps = on_mask(logps)
    log_ratio = token_log_ratio = logps - on_mask(old_logps)
    counts = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    if level == "sequence":
        log_ratio = jnp.sum(token_log_ratio, axis=1, keepdims=True) / counts
    rows, tokens = (jnp.maximum(at_least_f32(n), 1.0) for n in (totals or totals_of(mask))[:2])
    return _Batch(
        logps=logps,
        mask=mask,
        kept=kept,
        any_token=any_token,
        advantages=on_mask(advantages),
        weights=weights,
        token_log_ratio=token_log_ratio,
        log_ratio=log_ratio,
        counts=counts,
        rows=rows,
        tokens=tokens,
    )


def _clip_shares(batch: _Batch, kind: PolicyKind, level: RatioLevel, low: float, high: float) -> dict[str, jax.Array]:
    """Shares of tokens, or of rows, whose ratio the clip changes; nothing without a clip."""
    if kind in ("sapo", "vespo") or (high == jnp.inf and (kind == "cispo" or low == jnp.inf)):
        return {}
    match kind:
        case "gmpo":
            x, lowest, highest = batch.token_log_ratio, -low, high
        case "cispo":
            x, lowest, highest = batch.ratio, -jnp.inf, high
        case _:
            x, lowest, highest = batch.ratio, 1.0 - low, 1.0 + high

    def share(clipped: jax.Array) -> jax.Array:
        if level == "sequence" and clipped.shape[1] == 1:
            return jnp.sum(clipped, where=batch.any_token) / batch.rows
        return batch.token_mean(jnp.broadcast_to(clipped, batch.mask.shape))

    below, above = (batch.advantages < 0) & (x < lowest), (batch.advantages > 0) & (x > highest)
    if kind == "cispo":
        return {"clip_high": share(above)}
    return {"clip_low": share(below), "clip_high": share(above), "clip": share(below | above)}


def _entropy(batch: _Batch, entropies: jax.Array, entropy_keep: jax.Array | None, totals: Totals | None) -> jax.Array:
    """Mean of the entropies, nats, over the tokens that count in the bonus."""
    entropies = at_least_f32(entropies)
    chex.assert_equal_shape([batch.logps, entropies])
    counted = batch.kept
    if entropy_keep is not None:
        counted = batch.mask & _columns("entropy_keep", jnp.asarray(entropy_keep), batch.mask).astype(bool)
    total = jnp.sum(counted) if totals is None else at_least_f32(totals.entropy_tokens)
    return jnp.sum(jnp.where(counted, entropies, 0.0)) / jnp.maximum(total, 1)


def _finite_off_mask(advantages: jax.Array, batch: _Batch) -> jax.Array:
    """f32[B, 1]: gmpo reads the advantage of a row without tokens, unless it is not finite."""
    column = _constant(advantages)[:, None]
    return jnp.where(batch.any_token | jnp.isfinite(column), column, 0.0)


def _constant(x: jax.typing.ArrayLike) -> jax.Array:
    return jax.lax.stop_gradient(at_least_f32(x))


def _columns(name: str, x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x`, which has a column for each token, or one for the row."""
    rows, length = mask.shape
    assert x.shape in ((rows, length), (rows, 1)), (
        f"{name} has shape {x.shape}: expected {(rows, length)} or {(rows, 1)}"
    )
    return x


def _check_names(kind: PolicyKind, level: RatioLevel, kl_kind: KLKind) -> None:
    for name, value, names in (
        ("kind", kind, get_args(PolicyKind)),
        ("level", level, get_args(RatioLevel)),
        ("kl_kind", kl_kind, get_args(KLKind)),
    ):
        if value not in names:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, names))}")


def _check_numbers(
    kind: PolicyKind,
    low: float,
    high: float,
    delta: float | None,
    length: int | None,
    temperatures: tuple[float, float],
) -> None:
    for name, epsilon in (("epsilon_low", low), ("epsilon_high", high)):
        if not epsilon >= 0:
            raise ValueError(f"{name}={epsilon}: expected a number of at least 0, or None for no clip")
    for name, value in (
        ("delta", delta),
        ("max_completion_length", length),
        *zip(("sapo_temperature_pos", "sapo_temperature_neg"), temperatures),
    ):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: expected a positive number")
    if delta is not None and low == high == jnp.inf and kind in _RATIO_CLIPS:
        raise ValueError(f"delta={delta} without a clip: it bounds what a clip leaves open, give epsilon_low")
