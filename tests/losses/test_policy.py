"""Policy losses: golden numbers of the original and of TRL, analytic gradients, micro-batches, padding."""

from fnmatch import fnmatch
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlt_jax.losses import IGNORED, policy_loss, token_logprobs, totals_of
from rlt_jax.types import PolicyKind, RatioLevel
from tests.losses.trl_cases import (
    LOSSES_LEFT_OUT,
    ROWS,
    WIDTH,
    Call,
    call_of,
    cases,
    left_out,
    loss_cases,
    with_array,
)

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
grpo = partial(policy_loss, epsilon_low=None)  # the loss of the original: no clip
KINDS, LEVELS = get_args(PolicyKind), get_args(RatioLevel)
CASES = ["rand0", "rand1", "rand2"]


def draw_batch(seed, rows=4, length=5):
    """logps, old_logps, ref_logps, advantages, mask: rows of 1 to `length` tokens, off-policy by a little."""
    rng = np.random.default_rng(seed)
    logps = -rng.exponential(size=(rows, length)).astype(np.float32)
    old, ref = (logps + 0.3 * rng.normal(size=(2, rows, length))).astype(np.float32)
    mask = np.arange(length) < rng.integers(1, length + 1, size=rows)[:, None]
    return tuple(map(jnp.asarray, (logps, old, ref, rng.normal(size=rows).astype(np.float32), mask)))


@jax.jit
def loss_and_grad(logps, *rest):
    return jax.value_and_grad(lambda x: grpo(x, *rest, beta=0.04)[0])(logps)


# ---- GRPO without a clip: the original's loss


@pytest.mark.parametrize("case", CASES)
def test_golden_loss(golden, case):
    z = np.load(golden / "grpo_cases.npz")
    prompt, beta, mask = int(z[f"{case}/prompt_len"]), float(z[f"{case}/beta"]), z[f"{case}/completion_mask"]
    ref, advantages = z[f"{case}/ref_per_token_logps"], z[f"{case}/advantages"]

    def loss_of_logits(logits):
        logps = token_logprobs(
            logits[:, prompt - 1 : -1], z[f"{case}/input_ids"][:, prompt:], temperature=z[f"{case}/temperature"]
        )
        return grpo(logps, logps, ref, advantages, mask, beta=beta)

    (loss, aux), grad = jax.jit(jax.value_and_grad(loss_of_logits, has_aux=True))(z[f"{case}/logits"])
    np.testing.assert_allclose(loss, z[f"{case}/loss"], atol=1e-5)
    np.testing.assert_allclose(aux["kl"], z[f"{case}/mean_kl"], atol=1e-5)
    assert aux["ratio"] == 1
    expected = z[f"{case}/grad_logits"]
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())

    def loss_of_row(*row):
        return grpo(*(x[None] for x in row), beta=beta)

    logps = z[f"{case}/per_token_logps"]
    loss, aux = jax.jit(jax.vmap(loss_of_row))(logps, logps, ref, advantages, mask)
    np.testing.assert_allclose(loss, z[f"{case}/seq_loss"], atol=1e-5)
    np.testing.assert_allclose(aux["kl"], z[f"{case}/seq_kl"], atol=1e-5)


def test_golden_batch(golden):
    z = np.load(golden / "grpo_cases.npz")
    logps, ref, advantages = (z[f"batch/{k}"] for k in ("per_token_logps", "ref_per_token_logps", "advantages"))
    loss, aux = grpo(logps, logps, ref, advantages, z["batch/completion_mask"], beta=float(z["batch/beta"]))
    np.testing.assert_allclose(loss, z["batch/loss"], atol=1e-6)
    np.testing.assert_allclose(aux["kl"], z["batch/mean_kl"], atol=1e-6)


def test_on_policy_gradient_is_the_textbook_one():
    logps, _, ref, advantages, mask = draw_batch(0)
    share = mask / mask.sum(axis=1, keepdims=True) / len(logps)
    expected = share * (-advantages[:, None] + 0.04 * (1 - jnp.exp(ref - logps)))
    _, grad = loss_and_grad(logps, logps, ref, advantages, mask)
    np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_gradients_numerically():
    with jax.enable_x64(True):
        logps, old, ref, advantages, mask = draw_batch(1)
        weights = jnp.linspace(0.2, 1.0, logps.size).reshape(logps.shape)
        check_grads(
            jax.jit(lambda x: grpo(x, old, ref, advantages, mask, beta=0.3, token_weights=weights)[0]),
            (logps.astype(jnp.float64),),
            order=1,
            rtol=1e-6,
            atol=1e-6,
        )


def test_only_logps_carry_a_gradient():
    logps, old, ref, advantages, mask = draw_batch(2)
    grads = jax.grad(
        lambda o, r, a, w: grpo(logps, o, r, a, mask, beta=0.04, token_weights=w)[0], argnums=(0, 1, 2, 3)
    )(old, ref, advantages, jnp.ones_like(logps))
    for grad in grads:
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


@few
@given(seeds)
def test_micro_batches_average_to_the_full_batch(seed):
    batch = draw_batch(seed)
    parts = [loss_and_grad(*(np.asarray(x)[rows] for x in batch)) for rows in ([0, 1], [2, 3])]
    loss, grad = loss_and_grad(*batch)
    np.testing.assert_allclose(sum(part[0] for part in parts) / 2, loss, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]) / 2, grad, atol=1e-6)


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_masked_slots_change_nothing(poison):
    logps, old, ref, advantages, mask = draw_batch(3)
    weights = jnp.full_like(logps, 0.5)

    def run(x, o, r, w):
        return jax.value_and_grad(lambda x: grpo(x, o, r, advantages, mask, beta=0.04, token_weights=w), has_aux=True)(
            x
        )

    clean = run(logps, old, ref, weights)
    dirty = [jnp.where(mask, x, poison) for x in (logps, old, ref, weights)]
    poisoned = run(*dirty)
    with jax.debug_nans(True), jax.debug_infs(True):  # not even on the way; logps stay clean, whose NaN it would report
        run(logps, *dirty[1:])
    assert not mask.all()
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(b).all()


@pytest.mark.parametrize("advantage", [0.7, np.inf])
def test_a_row_without_mask_contributes_zero_and_counts(advantage):
    logps, old, ref, advantages, mask = draw_batch(4)
    three, aux_three = grpo(logps[:3], old[:3], ref[:3], advantages[:3], mask[:3], beta=0.04)
    advantages, mask = advantages.at[3].set(advantage), mask.at[3].set(False)
    with jax.debug_nans(True):  # 0 * inf is one
        (four, aux), grad = jax.value_and_grad(lambda x: grpo(x, old, ref, advantages, mask, beta=0.04), has_aux=True)(
            logps
        )
    np.testing.assert_allclose(four, three * 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(aux["kl"], aux_three["kl"] * 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(aux["ratio"], aux_three["ratio"], rtol=1e-6)
    np.testing.assert_array_equal(grad[3], 0)
    assert np.isfinite(grad).all()


def test_token_weights_scale_the_policy_term_alone():
    logps, old, ref, advantages, mask = draw_batch(5)
    plain, aux = grpo(logps, old, ref, advantages, mask, beta=0.04)
    halved, aux_halved = grpo(logps, old, ref, advantages, mask, beta=0.04, token_weights=jnp.full_like(logps, 0.5))
    np.testing.assert_allclose(plain, aux["policy_loss"] + 0.04 * aux["kl"], rtol=1e-6)
    np.testing.assert_allclose(aux_halved["policy_loss"], aux["policy_loss"] / 2, rtol=1e-6)
    assert aux_halved["kl"] == aux["kl"]
    np.testing.assert_allclose(halved, aux["policy_loss"] / 2 + 0.04 * aux["kl"], rtol=1e-6)


def test_a_weight_of_zero_drops_the_token():
    logps, old, ref, advantages, mask = draw_batch(6)
    weights = jnp.ones_like(logps).at[0, 0].set(0.0)
    grad = jax.grad(lambda x: grpo(x, old, ref, advantages, mask, beta=0.0, token_weights=weights)[0])(logps)
    assert grad[0, 0] == 0
    assert (np.asarray(grad)[np.asarray(mask)][1:] != 0).all()


def test_loss_is_float32_for_bf16_log_probs():
    logps, old, ref, advantages, mask = draw_batch(7)
    loss, _ = grpo(logps.astype(jnp.bfloat16), old, ref, advantages, mask, beta=0.04)
    assert loss.dtype == jnp.float32


def test_shapes_must_agree():
    logps, old, ref, advantages, mask = draw_batch(8)
    with pytest.raises(AssertionError):
        grpo(logps, old, ref[:, 1:], advantages, mask, beta=0.04)
    with pytest.raises(AssertionError):
        grpo(logps, old, ref, advantages[:2], mask, beta=0.04)
    with pytest.raises(AssertionError):
        grpo(logps, old, ref, advantages, mask, beta=0.04, token_weights=jnp.ones(4))


# without a reference


def test_without_a_kl_term_the_reference_changes_nothing():
    """The same loss and the same gradient, bit for bit, and no diagnostic of it."""
    key = jax.random.key(5)
    logps, ref = -jax.random.exponential(key, (2, 3, 6))
    advantages, mask = jnp.array([1.0, -2.0, 0.5]), jnp.arange(6) < jnp.array([[6], [3], [0]])

    def run(ref_logps):
        def loss(x):
            return grpo(x, jax.lax.stop_gradient(x), ref_logps, advantages, mask, beta=0.0)

        (value, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logps)
        return value, aux, gradient

    (value, aux, gradient), (no_value, no_aux, no_gradient) = run(ref), run(None)
    np.testing.assert_array_equal(no_gradient, gradient)
    assert no_value == value and aux.keys() - no_aux.keys() == {"kl", "kl_loss", "kl_token_mean"}
    assert no_aux == {name: aux[name] for name in no_aux}


def test_a_kl_term_needs_the_reference():
    logps = jnp.zeros((1, 2))
    for beta in (0.04, jnp.float32(0.04)):
        with pytest.raises(ValueError, match="without ref_logps: the KL term needs the reference's log-probs"):
            grpo(logps, logps, None, jnp.zeros(1), jnp.ones((1, 2), bool), beta=beta)
    with pytest.raises(ValueError, match="without ref_logps"):  # not known to be 0
        jax.jit(lambda beta: grpo(logps, logps, None, jnp.zeros(1), jnp.ones((1, 2), bool), beta=beta)[0])(0.0)


# ---- the recorded cases of TRL

METRICS = {  # TRL's name -> ours
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "clip_ratio/region_mean": "clip",
    "cispo_clip_ratio": "clip_high",
    "kl": "kl_token_mean",
    "policy_loss": "policy_loss",
}


def assert_close(ours, recorded):
    np.testing.assert_allclose(ours, recorded, rtol=0, atol=1e-6 + 1e-5 * np.abs(recorded).max())


@pytest.mark.parametrize("name", loss_cases())
def test_trl(name):
    case = cases()[name]
    record, recorded = case.record, case.arrays
    (loss, aux), grads = call_of(case).filled().gradients()
    np.testing.assert_allclose(loss, recorded["loss"], rtol=1e-5, atol=3e-6)
    run, size = record["micro_batches_run"], record["micro_batch_rows"]
    taken = slice(run[0] * size, (run[-1] + 1) * size)
    rows, length = taken.stop - taken.start, record["shape"][1]
    for grad, of in zip(grads, ("grad_logps", "grad_entropies")):
        assert_close(grad[:rows, :length], recorded[of][taken])
        assert not np.delete(recorded[of], np.r_[taken], axis=0).any()
        assert not grad[rows:].any() and not grad[:, length:].any()
    if len(run) > 1 or (record["mode"] == "train" and record["hyper"]["steps_per_generation"] > 1):
        return  # its metrics are means of micro-batches, or of other tokens than the loss
    for theirs in METRICS.keys() & record["loss_metrics"].keys():
        np.testing.assert_allclose(aux[METRICS[theirs]], record["loss_metrics"][theirs], atol=1e-6)
    if "phi" in aux and recorded["mask"].any(axis=1).all():
        np.testing.assert_allclose(aux["phi"], record["loss_metrics"]["vespo/phi_seq_mean"], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in loss_cases() if name.endswith("_accum2")])
def test_trl_in_the_micro_batches_that_it_took(name):
    case = cases()[name]
    call, size = call_of(case), case.record["micro_batch_rows"]
    totals = totals_of(call.arrays["mask"])
    parts = [call.rows(slice(start, start + size)).filled(totals).gradients() for start in range(0, 2 * size, size)]
    np.testing.assert_allclose(sum(part[0][0] for part in parts), case.arrays["loss"], rtol=1e-5, atol=3e-6)
    length = case.record["shape"][1]
    assert_close(np.concatenate([part[1][0][:size, :length] for part in parts]), case.arrays["grad_logps"])


def test_no_recorded_case_is_lost():
    assert cases().keys() == {*with_array("loss"), *with_array("out_advantages")} and len(cases()) == 260
    assert {*loss_cases(), *filter(left_out, cases())} == {*with_array("loss")}
    assert all(any(fnmatch(name, pattern) for name in cases()) for pattern in LOSSES_LEFT_OUT)
    assert len(loss_cases()) == 208


# ---- every kind


def draw_step(seed, rows=ROWS, empty=1):
    """A step with all that a loss can take, whose last `empty` rows have no token on the mask."""
    rng = np.random.default_rng(seed)
    shape = (rows, WIDTH)
    logps = -rng.exponential(size=shape).astype(np.float32)
    old, ref = (logps + 0.3 * rng.normal(size=(2, *shape))).astype(np.float32)
    lengths = rng.integers(1, WIDTH + 1, rows)
    lengths[rows - empty :] = 0
    return Call(
        arrays={
            "logps": logps,
            "old_logps": old,
            "ref_logps": ref,
            "advantages": rng.normal(size=rows).astype(np.float32),
            "mask": np.arange(WIDTH) < lengths[:, None],
            "token_weights": rng.uniform(0.5, 1.5, shape).astype(np.float32),
            "keep": rng.uniform(size=shape) < 0.7,
            "entropies": rng.exponential(size=shape).astype(np.float32),
            "entropy_keep": rng.uniform(size=shape) < 0.7,
        },
        options={
            "epsilon_low": 0.2,
            "epsilon_high": 0.3,
            "delta": 1.4,
            "beta": 0.1,
            "kl_bias_correction": True,
            "entropy_coef": 0.05,
            "max_completion_length": 20,
        },
    )


def by_kind(call, kind, level):
    return Call(call.arrays, call.options | {"kind": kind, "level": level})


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(seed=seeds, parts=st.lists(st.integers(0, 2), min_size=ROWS, max_size=ROWS))
def test_any_micro_batches_add_up_to_the_step(kind, level, seed, parts):
    """Three micro-batches hold each row of the step once, wherever; the other rows of each only fill it up."""
    call = by_kind(draw_step(seed), kind, level)
    whole = call.gradients()
    here = np.asarray(parts) == np.arange(3)[:, None]  # [micro-batch, row]
    fill = {"mask": False, "advantages": 0.0}
    totals = totals_of(call.arrays["mask"], entropy_keep=call.arrays["entropy_keep"])
    results = []
    for held in here:
        arrays = {
            name: np.where(held.reshape(ROWS, *[1] * (x.ndim - 1)), x, np.array(fill.get(name, np.nan)).astype(x.dtype))
            for name, x in call.arrays.items()
        }
        results.append(Call(arrays, call.options | {"totals": totals}).gradients())
    (losses, aux), grads = jax.tree.map(lambda *parts: np.stack(parts), *results)
    np.testing.assert_allclose(losses.sum(), whole[0][0], rtol=0, atol=1e-6 * np.abs(losses).sum())
    for ours, full in zip(grads, whole[1]):
        np.testing.assert_allclose(ours.sum(0), full, rtol=0, atol=1e-6 * np.abs(full).max())
    assert aux.keys() == whole[0][1].keys()
    for name, values in aux.items():
        np.testing.assert_allclose(values.sum(), whole[0][1][name], rtol=0, atol=2e-6 * (1 + np.abs(values).sum()))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize(("kind", "level"), [*((kind, "token") for kind in KINDS), ("grpo", "sequence")])
def test_what_stands_off_the_mask_is_not_read(kind, level, poison):
    call = by_kind(draw_step(1), kind, level)
    mask = call.arrays["mask"]
    dirty = {
        name: np.where(mask, x, poison) for name, x in call.arrays.items() if x.dtype == np.float32 and x.ndim == 2
    }
    advantages = np.where(mask.any(axis=1), call.arrays["advantages"], poison)
    call.arrays["advantages"] = np.where(mask.any(axis=1), call.arrays["advantages"], 0)
    poisoned = Call(call.arrays | dirty | {"advantages": advantages}, call.options).gradients()
    for a, b in zip(jax.tree.leaves(call.gradients()), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(b).all()


OTHERWISE = {  # a value of each option that is not the one of draw_step or the default
    "epsilon_low": 0.1,
    "epsilon_high": 0.1,
    "delta": 2.0,
    "level": "sequence",
    "kl_bias_correction": False,
    "token_weights": None,
    "max_completion_length": 30,
    "sapo_temperature_pos": 2.0,
    "sapo_temperature_neg": 2.0,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0,
    "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_options_that_change_nothing_are_those_that_are_named(kind):
    call = by_kind(draw_step(3), kind, "token")

    def loss(**changes):
        return float(policy_loss(**call.arrays | call.options | changes)[0])

    before = loss()
    assert {name for name, value in OTHERWISE.items() if loss(**{name: value}) == before} == IGNORED[kind]


# Two completions of two tokens, whose ratios are 1.5 and 0.5, with advantages 2 and -1.
RATIOS, GAINS = np.float32([[1.5, 0.5], [1.5, 0.5]]), np.float32([2, -1])
CLIPPED = np.float32([[0, -2 * 0.5], [1 * 1.5, 0]])  # 1.5 is cut where A > 0, 0.5 where A < 0


def sigmoid_slope(x):
    return np.exp(-x) / (1 + np.exp(-x)) ** 2


W = 1.5 * 0.5
GRADIENTS = {  # kind, level -> d loss / d logps with epsilon 0.2, by hand
    ("grpo", "token"): CLIPPED / 2 / 2,
    ("bnpo", "token"): CLIPPED / 4,
    ("dapo", "token"): CLIPPED / 4,
    ("dr_grpo", "token"): CLIPPED / 2 / 10,
    ("luspo", "token"): CLIPPED / 2,
    ("grpo", "sequence"): np.sqrt(W) * np.float32([[-2, -2], [1, 1]]) / 2 / 2,  # 0.87 is in no clip
    ("luspo", "sequence"): np.sqrt(W) * np.float32([[-2, -2], [1, 1]]) / 2,
    ("cispo", "token"): -0.2 * GAINS[:, None] * np.ones((2, 2)) / 4,  # the cap is epsilon itself
    ("sapo", "token"): -4 * RATIOS * GAINS[:, None] * sigmoid_slope((RATIOS - 1) * [[1.0], [1.05]]) / 2 / 2,
    ("vespo", "token"): np.array([[W**2 * np.exp(3 * (1 - W))], [W**3 * np.exp(2 * (1 - W))]])
    * -GAINS[:, None]
    * np.ones((2, 2))
    / 4,
    ("gmpo", "token"): np.array(
        [[0, -2 * np.exp((0.2 + np.log(0.5)) / 2) / 2], [np.exp((np.log(1.5) - 0.2) / 2) / 2, 0]]
    )
    / 2,
}


def small(logps, advantages, ref_logps=None, **options):
    """Loss and gradient of a few tokens, all on the mask, whose old log-probs are 0."""
    rows, length = np.shape(logps)

    def wide(x):
        return np.pad(np.asarray(x, np.float32), ((0, 0), (0, WIDTH - length)))

    arrays = dict.fromkeys(("token_weights", "keep", "entropies", "entropy_keep"))
    arrays |= {"ref_logps": None if ref_logps is None else wide(ref_logps), "advantages": np.float32(advantages)}
    arrays |= {"logps": wide(logps), "old_logps": wide(0 * logps), "mask": wide(np.ones_like(logps)) == 1}
    (loss, _), (grad,) = Call(arrays, options).filled().gradients()
    return float(loss), np.asarray(grad)[:rows, :length]


@pytest.mark.parametrize(("kind", "level"), GRADIENTS)
def test_gradients_by_hand(kind, level):
    _, grad = small(np.log(RATIOS), GAINS, kind=kind, level=level, max_completion_length=10)
    np.testing.assert_allclose(grad, GRADIENTS[kind, level], rtol=1e-5)


@pytest.mark.parametrize(
    ("kl_kind", "corrected", "gradient"),
    [
        ("k3", False, lambda d: 1 - np.exp(-d)),
        ("k2", False, lambda d: d),
        ("k1", False, np.ones_like),  # whatever the reference: it holds nothing
        ("k3", True, lambda d: d),
        ("k1", True, lambda d: 1 + d),
    ],
)
def test_gradients_of_the_kl_on_policy(kl_kind, corrected, gradient):
    d = np.float32([[0.5, -0.7]])  # logp - ref_logp
    options = {"kind": "luspo", "beta": 0.1, "kl_kind": kl_kind, "kl_bias_correction": corrected}
    _, grad = small(0 * d, [0], -d, **options)
    np.testing.assert_allclose(grad, 0.1 * gradient(d), rtol=1e-5)


def one_token(log_ratio, advantage, **options):
    """Loss and gradient of one token, as floats."""
    loss, grad = small(np.full((1, 1), log_ratio), [advantage], max_completion_length=1, **options)
    return loss, float(grad[0, 0])


def test_the_clip_and_its_absence():
    r = pytest.approx(np.exp(0.5))
    assert one_token(0.5, 1.0) == pytest.approx((-1.2, 0.0))
    assert one_token(0.5, 1.0, epsilon_high=0.4) == pytest.approx((-1.4, 0.0))
    assert one_token(-0.5, -1.0) == pytest.approx((0.8, 0.0))
    assert one_token(0.5, -1.0) == (r, r)  # open above
    assert one_token(0.5, -1.0, delta=1.3) == pytest.approx((1.3, 0.0))
    minus = pytest.approx(-np.exp(0.5))
    assert one_token(0.5, 1.0, epsilon_low=None) == (minus, minus)
    assert one_token(0.5, 1.0, epsilon_high=np.inf) == (minus, minus)
    assert one_token(-0.5, -1.0, epsilon_low=None, epsilon_high=0.2) == pytest.approx((np.exp(-0.5),) * 2)
    assert one_token(0.5, 1.0, epsilon_low=None, epsilon_high=0.2) == pytest.approx((-1.2, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_ratio_that_overflows_behind_the_clip_has_a_finite_gradient(kind):
    for log_ratio, advantage in ((200.0, 1.0), (-200.0, -1.0)):
        value, grad = one_token(log_ratio, advantage, kind=kind)
        assert np.isfinite(value) and np.isfinite(grad)
    if kind not in ("cispo", "vespo", "sapo"):
        assert one_token(200.0, 1.0, kind=kind)[1] == 0 == one_token(-200.0, -1.0, kind=kind)[1]


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_not_kept_cannot_overflow(level):
    call = by_kind(draw_step(4), "grpo", level)
    call.arrays["logps"][0] = 300.0
    call.arrays["advantages"][0] = -1.0
    call.arrays["keep"][0] = False
    options = call.options | {"beta": 0.0, "delta": None}
    (loss, _), grads = Call(call.arrays, options).gradients()
    assert np.isfinite(loss) and np.isfinite(grads[0]).all() and not grads[0][0].any()


def test_dr_grpo_without_a_length_takes_the_width():
    call = by_kind(draw_step(5), "dr_grpo", "token")
    losses = [policy_loss(**call.arrays, **call.options | {"max_completion_length": n})[0] for n in (None, WIDTH)]
    assert losses[0] == losses[1]


def test_the_entropy_bonus_is_over_what_is_kept_unless_told_otherwise():
    call = by_kind(draw_step(6), "grpo", "token")
    arrays = call.arrays
    for entropy_keep, counted in ((None, arrays["keep"]), (np.ones_like(arrays["keep"]), True)):
        loss, aux = policy_loss(**arrays | {"entropy_keep": entropy_keep}, **call.options)
        expected = arrays["entropies"][arrays["mask"] & counted].mean()
        np.testing.assert_allclose(aux["entropy"], expected, rtol=1e-6)
        np.testing.assert_allclose(loss, aux["policy_loss"] + 0.1 * aux["kl_loss"] - 0.05 * expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ppo"}, r"kind='ppo': expected one of 'grpo', 'bnpo'"),
        ({"level": "row"}, r"level='row': expected one of 'token', 'sequence'"),
        ({"kl_kind": "k4"}, r"kl_kind='k4': expected one of 'k1', 'k2', 'k3'"),
        ({"epsilon_low": -0.1}, r"epsilon_low=-0.1: expected a number of at least 0, or None for no clip"),
        ({"epsilon_high": float("nan")}, r"epsilon_high=nan: expected a number of at least 0"),
        ({"delta": 0.0}, r"delta=0.0: expected a positive number"),
        ({"delta": 2.0, "epsilon_low": None}, r"delta=2.0 without a clip: it bounds what a clip leaves open, give eps"),
        ({"sapo_temperature_neg": -1.0}, r"sapo_temperature_neg=-1.0: expected a positive number"),
        ({"max_completion_length": 0}, r"max_completion_length=0: expected a positive number"),
        ({"kind": "dr_grpo", "totals": totals_of(np.ones((2, 3)))}, r"kind='dr_grpo' with totals divides by max_compl"),
        (
            {"kind": "gmpo", "advantages": np.zeros((2, 3))},
            r"kind='gmpo' with advantages of shape \(2, 3\): expected one",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    zeros = np.zeros((2, 3), np.float32)
    arrays = {"logps": zeros, "old_logps": zeros, "ref_logps": None, "advantages": np.zeros(2), "mask": zeros == 0}
    with pytest.raises(ValueError, match=message):
        policy_loss(**arrays | options)
