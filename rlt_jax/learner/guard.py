"""Checks before a gradient step changes anything: gradients, diagnostics and the weights that would come out."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from rlt_jax.configs.numbers import LARGEST
from rlt_jax.device.placement import free
from rlt_jax.finite import NotFinite, largest
from rlt_jax.learner.state import global_norm
from rlt_jax.models import Model, Params, bad_tensors, describe_tensors

SAFE_NORM = 1e19  # its square is a float32 in whatever order the squares are summed

_global_norm = jax.jit(global_norm)


def check_update(
    model: Model,
    params: Params,
    gradients: Params,
    diagnostics: Mapping[str, jax.Array],
    *,
    bound: Callable[[float], float],
    who: str,
) -> None:
    """Check that diagnostics and gradients of a step are finite, and that the update's weights and moments will be.

    Args:
      params: the weights before the step.
      gradients: of the step; freed if the step is refused.
      diagnostics: f32[] by name.
      bound: the largest weight -> an upper bound of all numbers of the update (`configs.numbers.update_bound`).
      who: whose weights these are, such as "the policy".
    Raises:
      NotFinite: it names the tensors.
    """
    weight, norm, found = jax.device_get((largest(params), _global_norm(gradients), dict(diagnostics)))
    checked = {**found, "grad_norm": norm, "largest_weight": weight}
    culprit = _culprit(model, params, gradients, {name: float(x) for name, x in checked.items()}, bound=bound, who=who)
    if culprit is not None:
        free(gradients)
        raise NotFinite(culprit, values={name: np.asarray(x) for name, x in checked.items()})


def _culprit(
    model: Model,
    params: Params,
    gradients: Params,
    checked: Mapping[str, float],
    *,
    bound: Callable[[float], float],
    who: str,
) -> str | None:
    """What is not finite, the cause first; None: nothing."""
    weight, norm = checked["largest_weight"], checked["grad_norm"]
    if not np.isfinite(weight):
        return f"{who}: {describe_tensors(bad_tensors(model, params))}"
    if bad := [f"{name} is {x}" for name, x in checked.items() if not np.isfinite(x) and name != "grad_norm"]:
        return f"{who}'s step: {', '.join(bad)}; its weights are finite, the largest is {weight:.3g}"
    if not np.isfinite(norm) and (tensors := bad_tensors(model, gradients)):
        return f"{who}'s gradient: {describe_tensors(tensors)}; its weights are finite, the largest is {weight:.3g}"
    if not norm <= SAFE_NORM:
        return f"{who}'s gradient: the largest number is {float(largest(gradients)):.3g}, so that its norm overflows"
    if not bound(weight) <= LARGEST:
        return (
            f"{who}: the largest weight is {weight:.3g}, and an update could be {bound(weight):.3g}, which is no "
            "float32: the learning rate is too high"
        )
    return None
