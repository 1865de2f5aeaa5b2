"""Rotary frequencies (RoPE, arXiv 2104.09864), plain or stretched to longer texts, and how config.json asks for them.

    angle of position p in the pair (i, i + hd/2):  p · f_i,   f_i = theta^(-2i/hd), stretched by `Yarn` or `Llama3`

A config.json says it in `rope_theta` and `rope_scaling` (transformers up to 4) or in `rope_parameters` (from 5).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlt_jax.errors import UserError
from rlt_jax.models.fields import flag, positive, size

DEFAULT_THETA = 10000.0  # of transformers, for every family


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071): slow pairs are interpolated, fast ones kept, and cos and sin scaled."""

    factor: float
    original_max_position_embeddings: int  # tokens before stretching
    attention_factor: float  # of cos and sin
    beta_fast: float = 32.0  # turns over the original length above which a pair is kept
    beta_slow: float = 1.0  # turns below which it is interpolated by `factor`
    truncate: bool = True  # the ramp between both begins and ends at whole pairs

    def stretch(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Stretched frequencies f32[hd/2]."""
        pairs = len(frequencies)
        low, high = (
            pairs * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        if low == high:
            high += 0.001
        ramp = np.clip((np.arange(pairs, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
        return frequencies / np.float32(self.factor) * ramp + frequencies * (1 - ramp)


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's: wavelengths above original/low_freq_factor are stretched, those below original/high_freq_factor not.

    In between, f·((1 - s)/factor + s) with s = (original/wavelength - low_freq_factor) / (high - low_freq_factor).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int  # tokens before stretching

    @property
    def attention_factor(self) -> float:
        """Of cos and sin."""
        return 1.0

    def stretch(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Stretched frequencies f32[hd/2]."""
        turns = np.float32(self.original_max_position_embeddings / (2 * math.pi)) * frequencies
        smooth = (turns - np.float32(self.low_freq_factor)) / np.float32(self.high_freq_factor - self.low_freq_factor)
        smooth = np.clip(smooth, 0, 1)
        return frequencies * ((1 - smooth) / np.float32(self.factor) + smooth)


Scaling = Yarn | Llama3

_KEYS = {  # rope_type -> its keys besides the type and rope_theta
    "default": (),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # null is as good as absent


def frequencies(head_dim: int, theta: float, scaling: Scaling | None) -> tuple[np.ndarray, float]:
    """Radians per position f32[hd/2], and the factor of cos and sin."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # In NumPy's float32: a compiled power rounds differently, and multiplied by the position that shows in the angle.
    plain = np.float32(1) / np.float32(theta) ** exponents
    return (plain, 1.0) if scaling is None else (scaling.stretch(plain, theta), scaling.attention_factor)


def unsupported_rope(values: Mapping[str, Any], where: str) -> list[str]:
    """What a config.json asks of rotary positions that is not computed here, in words.

    Raises:
      UserError: an entry is no object, or has two types.
    """
    found = []
    for key, entry in _entries(values, where).items():
        if (kind := _type(entry, key, where)) not in tuple(_KEYS):  # it may be unhashable
            found.append(f"{key} of type {kind!r} (only {', '.join(_KEYS)})")
        found += _partial(entry, f" in {key}")
    return found + _partial(values, "")


def read_rope(values: Mapping[str, Any], where: str) -> tuple[float, Scaling | None]:
    """theta, and the stretching if there is any, from a config.json without unsupported types.

    As in transformers, a `rope_theta` inside an entry comes before the one outside, and the length before stretching is
    max_position_embeddings if there is no other word on it.

    Raises:
      UserError: a key is missing, unknown or malformed; `rope_scaling` and `rope_parameters` contradict each other.
    """
    found = {key: _read_entry(entry, values, key, where) for key, entry in _entries(values, where).items()}
    if len(set(found.values())) > 1:
        said = " but ".join(f"{key} {values[key]}" for key in found)
        raise UserError(f"{where}: expected rope_scaling and rope_parameters to say the same, got {said}: remove one")
    return next(iter(found.values()), (positive(values.get("rope_theta", DEFAULT_THETA), "rope_theta", where), None))


def rope_json(theta: float, scaling: Scaling | None, *, nested: bool) -> dict[str, Any]:
    """The keys of a config.json that `read_rope` reads as theta and scaling.

    Args:
      nested: under `rope_parameters`, as transformers 5 writes them, instead of `rope_theta` and `rope_scaling`.
    """
    stretched = {} if scaling is None else {"rope_type": type(scaling).__name__.lower(), **asdict(scaling)}
    if nested:
        return {"rope_parameters": {"rope_type": "default", **stretched, "rope_theta": theta}}
    return {"rope_theta": theta, "rope_scaling": stretched or None}


def _entries(values: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The two objects of a config.json that speak of rotary positions, as far as they are there and say anything."""
    entries = {key: values[key] for key in ("rope_scaling", "rope_parameters") if values.get(key) not in (None, {})}
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected {key} to be an object or null, got {entry!r}: correct it")
    return entries


def _type(entry: Mapping[str, Any], key: str, where: str) -> object:
    kinds = [entry[name] for name in ("rope_type", "type") if name in entry] or ["default"]
    if kinds[0] != kinds[-1]:
        raise UserError(f"{where}: expected one type in {key}, got {kinds[0]!r} and {kinds[-1]!r}: remove one")
    return kinds[0]


def _partial(values: Mapping[str, Any], place: str) -> list[str]:
    value = values.get("partial_rotary_factor")
    return [] if value in (None, 1) else [f"partial_rotary_factor={value!r}{place} (only 1)"]


def _read_entry(
    entry: Mapping[str, Any], values: Mapping[str, Any], key: str, where: str
) -> tuple[float, Scaling | None]:
    """theta and stretching by one of the two objects; `values` is the whole config.json."""
    kind = str(_type(entry, key, where))
    if unknown := sorted(entry.keys() - {*_COMMON, *_KEYS[kind]}):
        known = ", ".join(["rope_theta", *_KEYS[kind]])
        raise UserError(
            f"{where}: expected only {known} in {key} of type {kind!r}, got {', '.join(unknown)} too: remove what is "
            "not meant"
        )
    inside = {name: value for name, value in entry.items() if value is not None or name not in _OPTIONAL}
    theta = positive(inside.get("rope_theta", values.get("rope_theta", DEFAULT_THETA)), "rope_theta", where)
    if kind == "default":
        return theta, None

    def number(name: str, default: float | None = None) -> float:
        return positive(inside.get(name, default), f"{name} in {key}", where)

    needed = ("factor", "low_freq_factor", "high_freq_factor") if kind == "llama3" else ("factor",)
    if missing := [name for name in needed if name not in inside]:
        raise UserError(f"{where}: expected {key} of type {kind!r} to have {', '.join(missing)}: add what is missing")
    factor = number("factor")
    if factor < 1:
        raise UserError(f"{where}: expected factor in {key} to be at least 1, got {factor:g}: correct it")
    original = _original(inside, values, key, where)
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise UserError(
                f"{where}: expected high_freq_factor in {key} to be larger than low_freq_factor, got {high:g} and "
                f"{low:g}: correct them"
            )
        return theta, Llama3(factor, low, high, original)
    fast, slow = number("beta_fast", 32), number("beta_slow", 1)
    if fast < slow or theta <= 1:
        raise UserError(
            f"{where}: expected beta_fast in {key} to be at least beta_slow and rope_theta to be larger than 1, got "
            f"{fast:g}, {slow:g} and {theta:g}: correct them"
        )
    attention = (_mscale(factor, number("mscale", 1)), _mscale(factor, number("mscale_all_dim", 1)))
    both = {"mscale", "mscale_all_dim"} <= inside.keys()
    attention_factor = number("attention_factor", attention[0] / attention[1] if both else _mscale(factor, 1))
    truncate = flag(inside.get("truncate", True), f"truncate in {key}", where)
    return theta, Yarn(factor, original, attention_factor, fast, slow, truncate)


def _original(inside: Mapping[str, Any], values: Mapping[str, Any], key: str, where: str) -> int:
    """The length before stretching: in the object, else next to it, else max_position_embeddings."""
    name = "original_max_position_embeddings"
    said = [size(place[name], name, where) for place in (values, inside) if name in place]
    if len(set(said)) > 1:
        raise UserError(f"{where}: expected one {name}, got {said[0]} and in {key} {said[1]}: remove one")
    return said[0] if said else size(values["max_position_embeddings"], "max_position_embeddings", where)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1
