"""KL estimates: their formulas, their expectation, their sign."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_jax.losses import kl_estimate

few = settings(max_examples=30, deadline=None, derandomize=True)
nats = st.floats(-40.0, 0.0, width=32)


def test_formulas():
    logps, ref = np.array([-1.0, -2.0, -0.5]), np.array([-1.5, -2.0, -0.1])
    d = ref - logps
    np.testing.assert_allclose(kl_estimate(logps, ref, kind="k1"), [0.5, 0.0, -0.4], rtol=1e-6)
    np.testing.assert_allclose(kl_estimate(logps, ref, kind="k2"), [0.125, 0.0, 0.08], rtol=1e-6)
    np.testing.assert_allclose(kl_estimate(logps, ref, kind="k3"), np.exp(d) - d - 1, rtol=1e-5)


@pytest.mark.parametrize("case", ["rand0", "rand1", "rand2"])
def test_golden_k3(golden, case):
    z = np.load(golden / "grpo_cases.npz")
    mask = z[f"{case}/completion_mask"].astype(bool)
    kl = kl_estimate(z[f"{case}/per_token_logps"], z[f"{case}/ref_per_token_logps"], kind="k3")
    np.testing.assert_allclose(np.asarray(kl)[mask], z[f"{case}/per_token_kl"][mask], atol=2e-6)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_expectation_under_the_policy_is_the_kl(kind):
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    expected = np.sum(p * np.log(p / q))
    np.testing.assert_allclose(
        np.sum(p * np.asarray(kl_estimate(np.log(p), np.log(q), kind=kind))), expected, rtol=1e-6
    )


@few
@given(nats, nats)
def test_k3_is_never_negative(logp, ref):
    assert kl_estimate(jnp.float32(logp), jnp.float32(ref), kind="k3") >= 0


def test_k3_is_never_negative_near_zero():
    # exp(d) - d - 1 as written gives -6e-8 at many of these
    d = np.concatenate([np.logspace(-9, -2, 4000), -np.logspace(-9, -2, 4000)]).astype(np.float32)
    k3 = np.asarray(kl_estimate(np.zeros_like(d), d, kind="k3"))
    assert (k3 >= 0).all()
    np.testing.assert_allclose(k3, 0.5 * d.astype(np.float64) ** 2, atol=1e-6)


def test_k3_gradient():
    grad = jax.grad(lambda logp: kl_estimate(logp, jnp.float32(-1.0), kind="k3"))(jnp.float32(-1.7))
    np.testing.assert_allclose(grad, 1 - np.exp(0.7), rtol=1e-5)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"kind='k4': expected one of 'k1', 'k2', 'k3'"):
        kl_estimate(jnp.zeros(2), jnp.zeros(2), kind="k4")
    with pytest.raises(AssertionError):
        kl_estimate(jnp.zeros(2), jnp.zeros(3), kind="k1")
