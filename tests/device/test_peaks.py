"""Peaks of GPUs by the names that they have in JAX."""

import pytest

from rlt_jax.device.peaks import PEAKS, peak_of


def test_peaks():
    assert peak_of("NVIDIA H100 80GB HBM3") == peak_of("NVIDIA H200") == (989e12, 790e12)
    assert peak_of("NVIDIA A100-SXM4-80GB") == (312e12, None)
    assert all(peak.measured is None or peak.measured < peak.data_sheet for peak in PEAKS.values())


@pytest.mark.parametrize("name", ["cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA B200", ""])
def test_others_are_not_guessed(name):
    assert peak_of(name) is None
