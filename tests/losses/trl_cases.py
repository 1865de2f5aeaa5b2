"""The recorded cases of TRL 1.16.0 (tests/golden/trl/README.md), and which of them a test must reproduce."""

import json
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.losses import Totals, off_policy_keep, policy_loss, top_entropy_keep, totals_of

FOLDER = Path(__file__).parents[1] / "golden" / "trl"
# Every batch is filled up to these, with NaN: fewer shapes compile less, and what stands off the mask is tested.
WIDTH = 13  # columns; the recorded ones have 5 to 12
ROWS = 8  # rows; the recorded ones have 6 or 8, parts of them 3 or 4

LOSSES_LEFT_OUT = {  # name pattern -> why no loss of ours has to be the same
    "rloo_*": "RLOO's loss clips the product of a sequence's ratios, which is off by e^4 at 6144 tokens and is no kind "
    "here; its advantages are, with baseline=leave_one_out",
    "bnpo_off_accum2": "each micro-batch is divided by its own tokens: the loss depends on how the step was cut",
    "dapo_topent50_accum2": "the quantile is of each micro-batch, ours of the step",
    "e2e_dapo_batch_full": "the same quantile",
    "dapo_entcoef_accum2": "the entropy bonus is a mean of each micro-batch, ours of the step",
    "grpo_aux_loss_accum2": "a load-balancing loss of mixture-of-experts models, which there are none of here",
}


class Case(NamedTuple):
    name: str
    record: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def hyper(self) -> dict[str, Any]:
        return self.record["hyper"]

    def padded(self, name: str, suffix: str = "") -> np.ndarray:
        """An array [B, T] as [B, WIDTH], with NaN in the new columns (0 in a mask)."""
        array = self.arrays.get(name + suffix, self.arrays.get(name))
        fill = 0 if name == "mask" else np.nan
        return np.pad(array, ((0, 0), (0, WIDTH - array.shape[1])), constant_values=fill)


@cache
def cases() -> dict[str, Case]:
    records = json.loads((FOLDER / "cases.json").read_text())["cases"]
    recorded = np.load(FOLDER / "goldens.npz")
    arrays: dict[str, dict[str, np.ndarray]] = {record["name"]: {} for record in records}
    for key in recorded:
        case, name = key.split("/")
        arrays[case][name] = recorded[key]
    return {record["name"]: Case(record["name"], record, arrays[record["name"]]) for record in records}


def with_array(name: str) -> list[str]:
    """The names of the cases that recorded this array."""
    return [case.name for case in cases().values() if name in case.arrays]


def left_out(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in LOSSES_LEFT_OUT)


def loss_cases() -> list[str]:
    return [name for name in with_array("loss") if not left_out(name)]


def entropy_coef(case: Case) -> float:
    """The coefficient with which the loss was recorded; an adaptive one is that of the last of its windows."""
    if not case.hyper.get("use_adaptive_entropy", False):
        return case.hyper.get("entropy_coef", 0.0)
    last = case.record["windows"][-1]
    return last["entropy_coef_before"] if last["last_entropy_before"] <= case.hyper["entropy_target"] else 0.0


class Call(NamedTuple):
    """A call of `policy_loss`."""

    arrays: dict[str, Any]  # logps, old_logps, ref_logps, advantages, mask and the optional ones
    options: dict[str, Any]

    def rows(self, taken: slice) -> "Call":
        return Call({k: x if x is None else x[taken] for k, x in self.arrays.items()}, self.options)

    def filled(self, totals: Totals | None = None) -> "Call":
        """With ROWS rows; `totals` None: those of this call."""
        more = ROWS - len(self.arrays["mask"])
        if totals is None and (more == 0 or "totals" in self.options):
            totals = self.options.get("totals")
        elif totals is None:
            totals = totals_of(self.arrays["mask"], entropy_keep=self.arrays["entropy_keep"])
        fill = {"mask": 0, "advantages": 0, "keep": False, "entropy_keep": False}
        arrays = {
            name: x
            if x is None
            else np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1), constant_values=fill.get(name, np.nan))
            for name, x in self.arrays.items()
        }
        return Call(arrays, self.options | {"totals": totals})

    def loss(self, logps: Any, entropies: Any = None) -> tuple[Any, dict[str, Any]]:
        return policy_loss(**self.arrays | {"logps": logps, "entropies": entropies}, **self.options)

    def gradients(self) -> tuple[tuple[Any, dict[str, Any]], tuple[Any, ...]]:
        """(loss, diagnostics), (gradient by logps, and by entropies if there are any)."""
        logps, entropies = self.arrays["logps"], self.arrays["entropies"]
        wanted = (0,) if entropies is None else (0, 1)
        return jax.value_and_grad(self.loss, argnums=wanted, has_aux=True)(logps, entropies)


def call_of(case: Case, suffix: str = "") -> Call:
    """The call that gives the loss of the whole window that was recorded. `suffix` "_f64": float64 where recorded."""
    hyper, arrays = case.hyper, case.arrays
    logps, old, mask = (case.padded(name) for name in ("logps", "old_logps", "mask"))
    advantages = arrays.get("advantages" + suffix, arrays["advantages"])
    if advantages.ndim == 2:
        advantages = case.padded("advantages")
    ratio = arrays.get("importance_sampling_ratio" + suffix, arrays.get("importance_sampling_ratio"))
    if ratio is not None and ratio.shape[1] > 1:
        ratio = case.padded("importance_sampling_ratio", suffix)
    entropies = case.padded("entropies") if "entropies" in arrays else None
    high_entropy = None
    if hyper.get("top_entropy_quantile", 1.0) < 1:
        high_entropy = np.asarray(top_entropy_keep(entropies, mask, quantile=hyper["top_entropy_quantile"]))
    keep = high_entropy
    if (threshold := hyper.get("off_policy_mask_threshold")) is not None:
        behaviour = case.padded("sampling_logps") if "sampling_logps" in arrays else old
        on_policy = off_policy_keep(logps, behaviour, advantages, mask, threshold=threshold)
        keep = np.asarray(on_policy) if keep is None else keep & np.asarray(on_policy)
    has_bonus = hyper.get("entropy_coef", 0.0) != 0
    call = Call(
        arrays={
            "logps": logps,
            "old_logps": old,
            "ref_logps": case.padded("ref_logps") if "ref_logps" in arrays else None,
            "advantages": advantages,
            "mask": mask,
            "token_weights": ratio,
            "keep": keep,
            "entropies": entropies if has_bonus else None,
            "entropy_keep": high_entropy,
        },
        options={
            "kind": hyper.get("loss_type", "gmpo") if case.record["trainer"] == "grpo" else "gmpo",
            "level": hyper.get("importance_sampling_level", "token"),
            "epsilon_low": hyper["epsilon_low"],
            "epsilon_high": hyper["epsilon_high"],
            "delta": hyper.get("delta"),
            "beta": hyper["beta"],
            "kl_bias_correction": hyper.get("use_bias_correction_kl", False),
            "max_completion_length": hyper["max_completion_length"],
            "entropy_coef": entropy_coef(case),
            **{name: value for name, value in hyper.items() if name.startswith(("sapo_", "vespo_"))},
        },
    )
    size, run = case.record["micro_batch_rows"], case.record["micro_batches_run"]
    taken = slice(run[0] * size, (run[-1] + 1) * size)
    if call.options["kind"] in ("dapo", "cispo", "vespo") and case.record["mode"] == "train":
        # TRL's divisor of a window that is not the whole step: a constant between the two, which `totals` can take.
        divisor = case.record["normaliser"]["value"]
        if divisor != max(mask.sum(), 1):
            call.options["totals"] = Totals(*map(jnp.float32, (taken.stop - taken.start, divisor, 0)))
    return call.rows(taken)


def importance_options(case: Case) -> dict[str, Any]:
    """The arguments of `importance_weights` by which TRL weighs."""
    correction, outside = case.hyper["vllm_importance_sampling_mode"].split("_")
    bounds = {
        "cap": case.hyper["vllm_importance_sampling_clip_max"],
        "low": case.hyper["vllm_importance_sampling_clip_min"],
    }
    return {"correction": correction, "outside": outside, **bounds}
