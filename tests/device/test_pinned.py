"""Arithmetic of pinned memory."""

import pytest

from rlt_jax.device.pinned import host_bytes, layers_of_a_part, pool_limit_gib


@pytest.mark.parametrize(
    ("moments", "master_in_weights", "expected"),
    [("float32", False, 10), ("bfloat16", False, 6), ("float32", True, 8), ("bfloat16", True, 4)],
)
def test_bytes_of_a_parameter(moments, master_in_weights, expected):
    assert host_bytes(1_000, moments, master_in_weights=master_in_weights) == 1_000 * expected


def test_a_7b_model_takes_76_gb_and_a_limit_a_little_above_it():
    """Qwen2.5-7B. The limit is in GiB: 76.2 GB are 70.9 of them."""
    num_bytes = host_bytes(7_615_616_512, "float32")
    assert num_bytes == 76_156_165_120
    assert pool_limit_gib(num_bytes) == 76
    assert pool_limit_gib(host_bytes(7_615_616_512, "bfloat16")) == 48
    assert pool_limit_gib(2**30) == 6
    assert pool_limit_gib(2**30 + 1) == 7


@pytest.mark.parametrize(
    ("layer_bytes", "num_layers", "expected"),
    [(466_115_584, 28, 7), (10**9, 28, 4), (10**9, 5, 3), (10**6, 28, 28), (10**10, 3, 1)],
)
def test_layers_visit_in_the_fewest_parts_of_about_equal_size(layer_bytes, num_layers, expected):
    """The first are those of a 7B model: four parts of 3.3 GB. One layer is always taken, however large."""
    assert layers_of_a_part(layer_bytes, num_layers) == expected
