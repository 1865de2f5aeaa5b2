"""The metrics of what a step computed: tokens by pass and phase, the device's utilisation, the attention that ran."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rlt_jax.device.peaks import Peak, peak_of
from rlt_jax.models import Model, Params, Work, dtype_of, kernel_name

SCORE_PASSES = ("teacher", "student", "policy", "reference")  # of the phase `score`; the one of `update` has its name

StepWork = Mapping[
    str, Work
]  # pass ("teacher", "student", "policy", "reference", "update") -> its work; only those made


@dataclass(frozen=True)
class Meter:
    """What a run's metrics need to know of the machine."""

    attention: str  # `models.kernel_name` of the model that is trained
    peak: Peak | None  # of the device, for the type of its weights

    def metrics(self, work: StepWork) -> dict[str, float]:
        """`tokens/...` of each phase and pass that was made, and `attention/...`."""
        made = by_phase(work) | {f"score_{name}": work[name] for name in SCORE_PASSES if name in work}
        tokens: dict[str, float] = {}
        for name, one in made.items():
            tokens |= {f"tokens/{name}_real": one.real, f"tokens/{name}_computed": one.computed}
            tokens[f"tokens/{name}_shared"] = one.shared
        return {**tokens, **attention_metrics(self.attention)}

    def at_peak(self, work: StepWork) -> dict[str, dict[str, float]]:
        """Name of a utilisation -> phase -> seconds that it would take at the device's peak; {} if it is not known."""
        if self.peak is None:
            return {}
        phases, (data_sheet, measured) = by_phase(work), self.peak
        seconds = {"mfu_full": {phase: one.full_flops / data_sheet for phase, one in phases.items()}}
        if measured is not None:
            seconds["mfu"] = {phase: one.flops / measured for phase, one in phases.items()}
            seconds["mfu_unshared"] = {phase: one.unshared_flops / measured for phase, one in phases.items()}
        return seconds


def open_meter(model: Model, params: Params) -> Meter:
    """The meter of a run that trains a model with these parameters on JAX's device."""
    dtype = jnp.dtype(dtype_of(params))
    peak = peak_of(jax.local_devices()[0].device_kind) if dtype.itemsize == 2 else None
    return Meter(kernel_name(dtype, model.config.head_dim), peak)


def kernels(dtype: jnp.dtype | str, **models: Model | None) -> dict[str, str]:
    """Name of a model -> the attention that it runs, for those that there are."""
    return {name: kernel_name(dtype, model.config.head_dim) for name, model in models.items() if model is not None}


def tokens_line(work: Work) -> str:
    """What passes computed, in words."""
    return (
        f"{work.real:,} tokens scored: {work.shared:,} shared ones not again, {work.computed:,} computed with "
        f"{work.padding:,} of padding"
    )


def by_phase(work: StepWork) -> dict[str, Work]:
    """`score` and `update` -> the sum of their passes; only phases with a pass."""
    scored = [work[name] for name in SCORE_PASSES if name in work]
    phases = {"score": sum(scored, Work())} if scored else {}
    return phases | ({"update": work["update"]} if "update" in work else {})


def attention_metrics(kernel: str) -> dict[str, float]:
    """A kernel's name as numbers, which metrics can hold."""
    return {
        "attention/fused": float(kernel != "xla"),
        "attention/flat": float(kernel in ("cudnn", "flash-attn3")),
        "attention/flash3": float(kernel == "flash-attn3"),
    }
