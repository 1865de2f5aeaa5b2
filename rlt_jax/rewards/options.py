"""Options of a reward function of the user's own: checked against the names and annotations of its signature.

    def short(inputs: RewardInputs, *, weight: float, limits: tuple[int, int] = (10, 20)) -> Rewards: ...

A parameter `config: RewardConfig` is no option: it gets the run's own `--reward` settings.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlt_jax.configs import RewardConfig
from rlt_jax.configs.files import build
from rlt_jax.errors import UserError

SIGNATURE = "def NAME(inputs, *, OPTION: TYPE = DEFAULT)"
TYPES = "int, float, bool, str, a Literal, a tuple of those, a frozen dataclass of those, each perhaps `| None`"


def bound_options(function: Callable, options: Mapping[str, Any], *, fn: str) -> tuple[bool, dict[str, Any]]:
    """(whether the function takes the settings of the paper's reward, its options as keyword arguments).

    Args:
      options: name -> plain value, as read from YAML.
      fn: the function's name, for messages.
    Raises:
      UserError: a signature that is none of a reward function, an unknown or missing option, a value of another type.
    """
    parameters = _parameters(function, fn)
    takes_settings = "config" in parameters and parameters["config"].annotation is RewardConfig
    if takes_settings:
        del parameters["config"]
    for name, parameter in parameters.items():
        if not _is_plain(parameter.annotation):
            came = "nothing" if parameter.annotation is parameter.empty else _shown(parameter.annotation)
            hint = " (only a parameter `config: RewardConfig` gets the reward's settings)" if name == "config" else ""
            raise UserError(
                f"reward.fn={fn}: expected the type of its option {name}, one of {TYPES}, but its annotation is "
                f"{came}{hint}: write {SIGNATURE}"
            )
    made = dataclasses.make_dataclass(
        "Options", [_field(parameter) for parameter in parameters.values()], kw_only=True, frozen=True
    )
    known = f"it has {', '.join(parameters)}" if parameters else "it has no options"
    values: Any = build(made, options, source=f"reward.options of {fn}", known=known)
    return takes_settings, {name: getattr(values, name) for name in parameters}


def _parameters(function: Callable, fn: str) -> dict[str, inspect.Parameter]:
    """The parameters after the first."""
    try:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    except Exception as error:  # of an annotation, which is code
        raise UserError(f"reward.fn={fn}: expected {SIGNATURE}, but its signature cannot be read: {error}") from None
    first = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    problem = None
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        problem = "it is asynchronous" if inspect.iscoroutinefunction(function) else "it has a `yield`"
    elif not parameters or parameters[0].kind not in first:
        problem = "it takes no `inputs`"
    elif wrong := [parameter for parameter in parameters[1:] if parameter.kind not in named]:
        problem = f"it takes {wrong[0]}, of which no option can be checked"
    elif wrong := [
        parameter
        for parameter in parameters[1:]
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and parameter.annotation is parameter.empty
        and parameter.default is parameter.empty
    ]:
        problem = f"it takes {wrong[0].name} beside {parameters[0].name}"
    if problem is not None:
        raise UserError(
            f"reward.fn={fn}: expected {SIGNATURE}, which returns a number for each explanation, but {problem}: change "
            "the function, or define one that calls it"
        )
    return {parameter.name: parameter for parameter in parameters[1:]}


def _field(parameter: inspect.Parameter) -> Any:
    default = parameter.default
    if default is parameter.empty:
        return parameter.name, parameter.annotation
    return parameter.name, parameter.annotation, dataclasses.field(default_factory=lambda: default)


def _is_plain(kind: Any) -> bool:
    """Whether a value of this type can stand in YAML."""
    origin = get_origin(kind)
    if origin is Literal:
        return True
    if origin in (Union, types.UnionType, tuple):
        parts = [part for part in get_args(kind) if part is not Ellipsis]
        return bool(parts) and all(map(_is_plain, parts))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        frozen = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and all(map(_is_plain, get_type_hints(kind).values()))
    return kind in (int, float, bool, str, type(None))


def _shown(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) and not get_args(kind) else str(kind)
