"""Checks that every configuration needs."""

import math
from collections.abc import Iterator, Mapping
from typing import Any


def text_problems(texts: Mapping[str, tuple[str | None, str]]) -> Iterator[str]:
    """Texts that are empty: `texts` maps a field's name to its value and what is expected there."""
    for name, (text, expected) in texts.items():
        if text is not None and not text.strip():
            yield f"{name} is empty: expected {expected}"


def not_finite_problems(values: dict[str, Any], section: str = "") -> Iterator[str]:
    """Fields that are NaN or infinite, of a configuration as nested dicts; no comparison catches a NaN."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from not_finite_problems(value, f"{section}{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                yield f"{section}{name}={number}: expected a finite number"
