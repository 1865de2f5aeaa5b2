"""The dtype of a run's weights and activations, where the settings leave it to the machine."""

from typing import Literal

from rlt_jax.types import Dtype, RunDtype

Device = Literal["cpu", "gpu"]  # gpu: any accelerator


def dtype_on(device: Device, dtype: RunDtype) -> Dtype:
    """The dtype on a device: auto is float32 on a CPU, which computes bfloat16 more slowly, and bfloat16 elsewhere."""
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else "bfloat16"


def decided_dtype(dtype: RunDtype) -> Dtype:
    """The dtype of a configuration that `runs.machine.on_this_machine` has decided.

    Raises:
      ValueError: it is still auto, which a model's loader would take for "as stored".
    """
    if dtype == "auto":
        raise ValueError("dtype='auto': expected the dtype of a configuration that on_this_machine returned")
    return dtype
