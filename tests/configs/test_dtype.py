"""The dtype that settings leave to the machine."""

import pytest

from rlt_jax.configs import PRESETS
from rlt_jax.configs.dtype import decided_dtype, dtype_on


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", "auto", "float32"),
        ("gpu", "auto", "bfloat16"),
        ("cpu", "bfloat16", "bfloat16"),
        ("gpu", "float32", "float32"),
    ],
)
def test_auto_follows_the_device_and_a_given_dtype_stays(device, dtype, expected):
    assert dtype_on(device, dtype) == expected


def test_an_undecided_dtype_never_reaches_a_loader():
    """Which would take auto for "as stored"."""
    assert decided_dtype("float32") == "float32"
    with pytest.raises(ValueError, match="dtype='auto': expected the dtype of a configuration"):
        decided_dtype("auto")


def test_presets_for_gpus_follow_the_machine_too():
    assert {name: preset.dtype for name, preset in PRESETS.items() if preset.dtype != "auto"} == {"tiny": "float32"}
