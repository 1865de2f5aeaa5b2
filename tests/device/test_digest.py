"""Digests of trees: equal for equal bits, different for any difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.device.digest import digest
from rlt_jax.device.placement import on_host, pinned_host


def tree(dtype: str) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    values = {"a": (3, 5, 7), "b": (11,), "c": ()}
    return {name: jnp.asarray(rng.normal(size=shape) * 100).astype(dtype) for name, shape in values.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "uint16", "int32", "float16", "uint8"])
def test_equal_trees_have_equal_digests_and_any_bit_changes_them(dtype):
    params = tree(dtype)
    assert digest(params) == digest(jax.tree.map(jnp.copy, params))
    seen = {digest(params)}
    for name, leaf in params.items():
        for flat in range(leaf.size):
            raw = np.asarray(leaf).copy().reshape(-1)
            raw.view(np.uint8)[flat * raw.itemsize] ^= 1 << (flat % 8)
            seen.add(digest(params | {name: jnp.asarray(raw.reshape(leaf.shape))}))
    assert len(seen) == 1 + sum(leaf.size for leaf in params.values())


def test_a_tree_on_the_host_has_the_digest_that_it_has_on_the_device():
    params = tree("bfloat16")
    host = jax.device_put(params, pinned_host())
    assert on_host(host) and digest(host) == digest(params)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(host))
    assert digest(jax.device_put(params | {"b": params["b"] + 1}, pinned_host())) != digest(params)


def test_order_and_shape_and_the_sign_of_zero_count():
    x = jnp.arange(12, dtype=jnp.float32)
    others = [x[::-1], x.reshape(3, 4), x.at[0].set(-0.0), jnp.roll(x, 1), x.at[1].set(x[2]).at[2].set(x[1])]
    assert len({digest(x), *map(digest, others)}) == 6
    assert digest(x.at[3].set(jnp.nan)) == digest(x.at[3].set(jnp.nan))
