"""Reference sync against the original's callback."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.losses import mix_reference


def tree(z, prefix):
    return {key.removeprefix(f"{prefix}/"): z[key] for key in z if key.startswith(f"{prefix}/")}


def test_golden_mix(golden):
    z = np.load(golden / "ref_sync_cases.npz")
    mixed = mix_reference(tree(z, "plain/ref_before"), tree(z, "plain/policy"), 0.9)
    expected = tree(z, "plain/ref_after_alpha0.9")
    assert mixed.keys() == expected.keys() and len(mixed) > 0
    for name, weight in expected.items():
        np.testing.assert_allclose(mixed[name], weight, atol=1e-7, err_msg=name)


def test_golden_schedule(golden):
    # every `sync_every` steps, and not in between
    z = np.load(golden / "ref_sync_cases.npz")
    reference, synced = tree(z, "ref_before"), []
    for step in range(1, 5):
        if step % int(z["sync_every"]) == 0:
            reference = mix_reference(reference, tree(z, f"policy_after_step{step}"), float(z["alpha"]))
            synced.append(step)
        for name, weight in tree(z, f"ref_after_step{step}").items():
            np.testing.assert_allclose(reference[name], weight, atol=1e-6, err_msg=f"step {step}, {name}")
    assert synced == z["synced_steps"].tolist()


def test_keeps_the_reference_dtype_and_rounds_once():
    reference, policy = {"w": jnp.asarray([1.0, 3.0], jnp.bfloat16)}, {"w": jnp.asarray([1.004, 2.99], jnp.float32)}
    mixed = mix_reference(reference, policy, 0.9)["w"]
    assert mixed.dtype == jnp.bfloat16
    expected = np.array([0.9 * 1.004 + 0.1, 0.9 * 2.99 + 0.3])  # 1.004 rounded to bf16 first would end at 1.0078
    np.testing.assert_array_equal(mixed, jnp.asarray(expected, jnp.bfloat16))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_ends_are_copies(alpha):
    reference, policy = {"w": jnp.asarray([1.5, -2.0])}, {"w": jnp.asarray([7.25, 3.0])}
    np.testing.assert_array_equal(mix_reference(reference, policy, alpha)["w"], (policy if alpha else reference)["w"])


def test_trees_must_agree():
    with pytest.raises(AssertionError):
        mix_reference({"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}, 0.9)
    with pytest.raises(AssertionError):
        mix_reference({"w": jnp.zeros(2)}, {"v": jnp.zeros(2)}, 0.9)
