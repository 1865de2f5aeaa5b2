"""How much a GPU can compute: products of 16-bit numbers with float32 sums, without sparsity."""

from typing import NamedTuple


class Peak(NamedTuple):
    """FLOP/s of a GPU."""

    data_sheet: float  # what its vendor says
    measured: float | None  # that a large product reached; None: not measured


_H100, _NVL, _A100 = Peak(989e12, 790e12), Peak(835e12, None), Peak(312e12, None)

PEAKS = {  # name of the device, whole: a part of a GPU (MIG) has its name with something behind it
    "NVIDIA H100 80GB HBM3": _H100,  # SXM
    "NVIDIA H200": _H100,  # SXM; the same chip with other memory
    "NVIDIA H100 NVL": _NVL,
    "NVIDIA H200 NVL": _NVL,
    "NVIDIA H100 PCIe": Peak(756e12, None),
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
}


def peak_of(device: str) -> Peak | None:
    """The peak of a device by its name; None where it is not known, as for a CPU."""
    return PEAKS.get(device)
