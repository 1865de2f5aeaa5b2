"""What a config.json may ask for that changes the numbers and that `decoder.py` does not compute: refused by name."""

from collections.abc import Mapping
from typing import Any

from rlt_jax.errors import UserError
from rlt_jax.models.family import Family
from rlt_jax.models.fields import flag, size
from rlt_jax.models.rope import unsupported_rope


def check_supported(values: Mapping[str, Any], family: Family, where: str) -> None:
    """Refuse a configuration with features that change the numbers but are not implemented, naming all of them.

    Args:
      values: of config.json, with the family's defaults. Windows are left to `check_windows`.
      where: names the file in errors.
    Raises:
      UserError: there are such features, or a key that decides about one is malformed.
    """
    found = unsupported_rope(values, where)
    odd_layers = sorted({str(kind) for kind in layer_types(values, where)} - {"full_attention", "sliding_attention"})
    if odd_layers:
        found.append(f"layer_types {', '.join(odd_layers)} (only full_attention)")
    if values.get("hidden_act", "silu") != "silu":
        found.append(f"hidden_act={values['hidden_act']!r} (only silu)")
    if values.get("attention_dropout"):
        found.append(f"attention_dropout={values['attention_dropout']!r} (only 0)")
    if values.get("mlp_bias"):
        found.append(f"mlp_bias={values['mlp_bias']!r} (only false)")
    if values.get("is_causal", True) is not True:
        found.append(f"is_causal={values['is_causal']!r} (only true)")
    if (code := _own_code(values, family)) is not None:
        found.append(f"auto_map with {code} (only {family.architecture}: code that comes with a model is never run)")
    if values.get("quantization_config") is not None:
        found.append("quantization_config (only bfloat16, float16 and float32 weights)")
    for key, wanted in (("per_layer_config", "all layers alike"), ("dual_chunk_attention_config", "plain attention")):
        if values.get(key) is not None:
            found.append(f"{key} (only {wanted})")
    if found:
        raise UserError(f"{where} asks for what is not supported: {'; '.join(found)}: use another model or turn it off")


def _own_code(values: Mapping[str, Any], family: Family) -> str | None:
    """The code that computes the model, by its auto_map; None if `architectures` says that the family's own does."""
    own, architectures = values.get("auto_map"), values.get("architectures")
    if not isinstance(own, Mapping) or (isinstance(architectures, list) and family.architecture in architectures):
        return None
    return next((str(own[name]) for name in ("AutoModelForCausalLM", "AutoModel") if name in own), None)


def check_windows(values: Mapping[str, Any], family: Family, positions: int, where: str) -> None:
    """Refuse a sliding window that any layer has, unless it holds all of the model's positions and so changes nothing.

    In families with the key `use_sliding_window` (Qwen), that decides whether there is a window, and `layer_types` or
    `max_window_layers` which layers have it; in others every layer has one as soon as there is a `sliding_window`.

    Args:
      values, where: as in `check_supported`.
      positions: that the model was made for.
    Raises:
      UserError: there is such a window, or a key that decides about it is malformed.
    """
    window = values.get("sliding_window")
    switched = "use_sliding_window" in family.defaults
    if switched and not flag(values["use_sliding_window"], "use_sliding_window", where):
        window = None
    if window is not None:
        window = size(window, "sliding_window", where)
    kinds = layer_types(values, where)
    sliding = "sliding_attention" in kinds
    if not switched:
        sliding |= window is not None
    elif not kinds and window is not None:
        first = values["max_window_layers"]
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise UserError(f"{where}: expected max_window_layers to be an integer from 0, got {first!r}: correct it")
        sliding = values["num_hidden_layers"] > first
    if not sliding or (window is not None and window >= positions):
        return
    said = "layer_types sliding_attention without a window" if window is None else f"sliding_window={window}"
    if switched and window is not None:
        said = f"use_sliding_window=true with {said}"
    raise UserError(
        f"{where} asks for what is not supported: {said} (every layer attends to all earlier tokens; a window is right "
        f"only from the model's {positions} positions on): use another model or turn it off"
    )


def layer_types(values: Mapping[str, Any], where: str) -> list[Any]:
    """The kinds of the layers; empty if config.json has none.

    Raises:
      UserError: they are no list.
    """
    kinds = values.get("layer_types") or []
    if not isinstance(kinds, list):
        raise UserError(f"{where}: expected layer_types to be a list or null, got {kinds!r}: correct it")
    return kinds
