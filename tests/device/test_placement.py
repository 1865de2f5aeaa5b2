"""Trees between the GPU and pinned host memory: values stay, memory is freed when it is said to be."""

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.device.placement import device_memory, free, move_to_host, on_device, on_host, to_device


def tree():
    return jax.device_put({"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones(4, jnp.bfloat16)}}, device_memory())


def test_moving_to_the_host_keeps_the_values_and_frees_the_gpu():
    arrays = tree()
    expected = jax.tree.map(np.asarray, tree())
    moved = move_to_host(arrays)
    assert on_host(moved) and not on_host(tree())
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, moved), expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arrays))


def test_a_visit_to_the_gpu_ends_with_its_context():
    host = move_to_host(tree())
    with on_device(host) as visiting:
        assert not on_host(visiting)
        total = jax.jit(lambda t: t["a"].sum())(visiting)
    assert float(total) == 15.0
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(visiting))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(host))


def test_a_visit_ends_with_an_error_too():
    host, seen = move_to_host(tree()), []
    try:
        with on_device(host) as visiting:
            seen.append(visiting)
            raise RuntimeError
    except RuntimeError:
        pass
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(seen))


def test_what_is_on_the_gpu_already_is_not_copied_and_not_freed():
    arrays = tree()
    with on_device(arrays) as here:
        assert here is arrays
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(arrays))


def test_a_copy_of_what_is_on_the_host_and_nothing_of_what_is_on_the_gpu():
    arrays = tree()
    assert to_device(arrays) is arrays
    host = move_to_host(arrays)
    copy = to_device(host)
    assert on_host(host) and not on_host(copy)
    jax.tree.map(np.testing.assert_array_equal, copy, tree())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(host))


def test_freeing_twice_is_allowed():
    arrays = tree()
    free(arrays)
    free(arrays)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arrays))
