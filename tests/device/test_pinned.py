"""Arithmetic of pinned memory."""

import pytest

from rlt_jax.device.pinned import host_bytes, pool_limit_gib


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
