"""Options of reward functions, by the names and types of their signatures."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pytest

from rlt_jax.configs import RewardConfig
from rlt_jax.errors import UserError
from rlt_jax.rewards.options import bound_options


@dataclass(frozen=True)
class Range:
    low: int
    high: int | None = None


@dataclass
class Changeable:
    low: int = 1


def every_kind(
    inputs,
    *,
    weight: float,
    count: int = 3,
    on: bool = False,
    name: str = "a",
    kind: "Literal['mean', 'sum']" = "mean",
    limits: tuple[int, ...] = (1, 2),
    pair: tuple[float, str] = (0.5, "x"),
    maybe: float | None = None,
    span: Range = Range(1),
):
    return np.zeros(len(inputs.rows))


def bound(function, **options):
    return bound_options(function, options, fn="mine.py:f")


def test_values_get_the_types_of_the_signature():
    given = {
        "weight": 2,
        "count": 5,
        "on": True,
        "name": "b",
        "kind": "sum",
        "limits": [3, 4, 5],
        "pair": [1, "y"],
        "maybe": 0.25,
        "span": {"low": 2, "high": 9},
    }
    takes_settings, values = bound(every_kind, **given)
    assert not takes_settings
    assert values == {**given, "limits": (3, 4, 5), "pair": (1.0, "y"), "span": Range(2, 9)}
    assert isinstance(values["weight"], float)
    assert bound(every_kind, weight=1.0)[1] == {
        "weight": 1.0,
        "count": 3,
        "on": False,
        "name": "a",
        "kind": "mean",
        "limits": (1, 2),
        "pair": (0.5, "x"),
        "maybe": None,
        "span": Range(1),
    }
    assert bound(partial(every_kind, weight=3.0), count=1)[1]["weight"] == 3.0


def test_the_settings_of_the_papers_reward_are_no_option():
    def takes(inputs, config: RewardConfig, weight: float = 1.0):
        return inputs

    assert bound(takes, weight=2) == (True, {"weight": 2.0})
    with pytest.raises(UserError, match="config: no such field: it has weight"):
        bound(takes, config={})


WRONG_VALUES = [
    ({}, "weight: missing: give it a value"),
    ({"weight": "a"}, "weight='a': expected a number"),
    ({"weight": 1, "count": 1.5}, "count=1.5: expected a whole number"),
    ({"weight": 1, "count": True}, "count=True: expected a whole number"),
    ({"weight": True}, "weight=True: expected a number"),
    ({"weight": 1, "on": 1}, "on=1: expected true or false"),
    ({"weight": 1, "kind": "median"}, "kind='median': expected 'mean' or 'sum'"),
    ({"weight": 1, "limits": 3}, "limits=3: expected a list"),
    ({"weight": 1, "limits": [3, "a"]}, "limits.1='a': expected a whole number"),
    ({"weight": 1, "pair": [1]}, "pair.1: missing: give it a value"),
    ({"weight": 1, "span": {"lo": 3}}, "span.lo: no such field: did you mean span.low?"),
    ({"wieght": 1}, "wieght: no such field: did you mean weight?"),
    ({"weight": 1, "zzz": 1}, "zzz: no such field: it has weight, count, on, name, kind, limits, pair, maybe, span"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_VALUES, ids=lambda value: str(value)[:40])
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(UserError) as refused:
        bound(every_kind, **options)
    assert f"reward.options of mine.py:f: {message}" in str(refused.value).splitlines()


def keywords(inputs, **options): ...
def nothing(): ...
def trl_style(prompts, completions): ...
def untyped(inputs, *, weight=1.0): ...
def listed(inputs, *, weights: list[float]): ...
def settings_of_another_type(inputs, *, config: dict): ...
def changeable(inputs, *, span: Changeable = Changeable()): ...  # noqa: B008
def unknown_type(inputs, *, weight: "nowhere.Type"): ...  # noqa: F821
async def later(inputs): ...
def yields(inputs):
    yield inputs


WRONG_SIGNATURES = [
    (keywords, "it takes **options, of which no option can be checked"),
    (nothing, "it takes no `inputs`"),
    (trl_style, "it takes completions beside prompts"),
    (untyped, "the type of its option weight, one of int, float, bool, str, "),
    (listed, "its annotation is list[float]"),
    (settings_of_another_type, "only a parameter `config: RewardConfig` gets the reward's settings"),
    (changeable, "its annotation is Changeable"),
    (unknown_type, "its signature cannot be read: name 'nowhere' is not defined"),
    (later, "it is asynchronous"),
    (yields, "it has a `yield`"),
]


@pytest.mark.parametrize(("function", "message"), WRONG_SIGNATURES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_signature_of_no_reward_function_is_refused(function, message):
    with pytest.raises(UserError) as refused:
        bound(function)
    assert str(refused.value).startswith("reward.fn=mine.py:f: expected ") and message in str(refused.value)
