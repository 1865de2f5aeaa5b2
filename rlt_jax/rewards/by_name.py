"""A reward function of the user's own, named in `reward.fn`: its file is loaded, its options are checked and bound.

What runs is what is recorded: the file is read once, hashed, compared with `reward.fn_sha256` if there is one, and run
from those bytes. What the file imports is not compared.
"""

import difflib
import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rlt_jax.configs import RewardConfig
from rlt_jax.configs.reward import FunctionName, parse_function_name
from rlt_jax.errors import UserError
from rlt_jax.paths import did_you_mean
from rlt_jax.rewards.options import bound_options
from rlt_jax.rewards.rlt import Reads, RewardFn, RewardInputs, Rewards, read_by, reads


@dataclass(frozen=True)
class OwnReward:
    """A reward function of the user's own."""

    fn: RewardFn  # with its options
    name: str  # as in `reward.fn`
    file: Path
    source: bytes  # of the file, as it ran
    sha256: str  # of `source`, 64 hexadecimal digits
    reads_settings: bool  # whether it takes the settings of the paper's reward


class _Loaded(NamedTuple):
    file: Path
    source: bytes
    sha256: str
    module: ModuleType


_loaded: dict[tuple[str, str], _Loaded] = {}  # (home, SHA-256) -> what was run, once in a process


def own_reward(config: RewardConfig, *, copies: Path | None = None) -> OwnReward | None:
    """Load the function that `reward.fn` names; None: the paper's reward. The same file is run once in a process.

    Args:
      copies: a folder of files, such as a run's, of which one with SHA-256 `reward.fn_sha256` is taken if the named
        file has another or is gone.
    Raises:
      UserError: no such file, module or function, an error when it is run, another file than `reward.fn_sha256` says, a
        signature or options that do not fit.
    """
    if config.fn is None:
        return None
    named = parse_function_name(config.fn)
    if named is None:
        raise UserError(f"reward.fn={config.fn}: expected path/to/file.py:function or package.module:function")
    loaded = _load(named, config, copies)
    function = _function(loaded.module, named)
    takes_settings, options = bound_options(function, config.options, fn=config.fn)
    keywords = {**options, "config": config} if takes_settings else options
    try:
        declared = read_by(function)
    except ValueError as error:
        raise UserError(f"reward.fn={config.fn}: {error}: use the decorator @reads of rlt_jax") from None
    fn = _bound(function, keywords, declared, name=named.name, empty=-config.not_matched_penalty)
    return OwnReward(fn, named.name, loaded.file, loaded.source, loaded.sha256, takes_settings)


def chosen_reward(config: RewardConfig, reward_fn: RewardFn | None = None) -> RewardFn | None:
    """The reward function of a run: that of Python, or that of `reward.fn`; None: the paper's reward.

    Raises:
      UserError: both are given, or as `own_reward`.
    """
    if reward_fn is not None and config.fn is not None:
        raise UserError(f"reward_fn={reward_fn!r} and reward.fn={config.fn}: expected one reward: leave out the other")
    own = own_reward(config)
    return reward_fn if own is None else own.fn


def reads_of(config: RewardConfig) -> Reads:
    """The models whose log-probs the reward reads.

    Raises:
      UserError: as `own_reward`.
    """
    own = own_reward(config)
    return config.reads if own is None else read_by(own.fn)


def _load(named: FunctionName, config: RewardConfig, copies: Path | None) -> _Loaded:
    home, wanted = named.home, config.fn_sha256
    if wanted is not None and (home, wanted) in _loaded:
        return _loaded[home, wanted]
    try:
        file = _file_of(named)
        found = _read(file, config)
    except UserError:
        if (kept := _copy(copies, wanted)) is None:
            raise
        file, found = kept
    sha256 = hashlib.sha256(found).hexdigest()
    if wanted not in (None, sha256):
        if (kept := _copy(copies, wanted)) is None:
            raise UserError(
                f"reward.fn={config.fn}: expected the file with SHA-256 {wanted}, as the settings record it, but "
                f"{file} has {sha256}: restore that file (a run keeps it in RUN/reward), or add "
                "--reward.fn-sha256 None to take the file as it is, which a run that is resumed must be told to accept"
            )
        file, found = kept
        sha256 = wanted or sha256
    if (home, sha256) not in _loaded:
        _loaded[home, sha256] = _Loaded(file, found, sha256, _run(named, config, file, found, sha256))
    return _loaded[home, sha256]


def _file_of(named: FunctionName) -> Path:
    """The file to run, of which nothing has run yet."""
    fn = f"{named.home}:{named.name}"
    if named.in_file:
        file = Path(named.home)
        if not file.is_file():
            what = "a folder" if file.is_dir() else "nothing"
            raise UserError(f"reward.fn={fn}: {did_you_mean(file)}expected a Python file, but there is {what}: {file}")
        return file
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # also for `rlt-train`, as for `python -m rlt_jax.train`
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(named.home)  # runs the packages that it is in
    except ModuleNotFoundError as error:
        if error.name is None or not f"{named.home}.".startswith(f"{error.name}."):
            raise _failed(fn, None, error) from None
        spec = None
    except (Exception, SystemExit) as error:
        raise _failed(fn, None, error) from None
    if spec is None:
        raise UserError(
            f"reward.fn={fn}: expected a module that Python finds from {here}, but there is no {named.home}: start the "
            "command in the folder that holds it, set PYTHONPATH, or name its file, as in "
            f"{named.home.replace('.', '/')}.py:{named.name}"
        )
    if spec.origin is None or not spec.origin.endswith(".py"):
        came = "is a package without code of its own" if spec.origin in (None, "namespace") else f"is {spec.origin}"
        raise UserError(f"reward.fn={fn}: expected a module with Python source, but {named.home} {came}: name another")
    return Path(spec.origin)


def _read(file: Path, config: RewardConfig) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"reward.fn={config.fn}: cannot read {file} ({error.strerror}): make it readable") from None


def _copy(copies: Path | None, sha256: str | None) -> tuple[Path, bytes] | None:
    """A copy with this SHA-256, and its bytes."""
    if copies is None or sha256 is None:
        return None
    for file in sorted(copies.glob("*.py")):
        if file.is_file() and hashlib.sha256(found := file.read_bytes()).hexdigest() == sha256:
            return file, found
    return None


def _run(named: FunctionName, config: RewardConfig, file: Path, source: bytes, sha256: str) -> ModuleType:
    """The module that `source` makes. A file finds the modules beside it, after all others."""
    fn = config.fn or ""
    name = f"reward_{file.stem}_{sha256[:8]}" if named.in_file else named.home
    if named.in_file and (beside := str(file.resolve().parent)) not in sys.path:
        sys.path.append(beside)
    if not named.in_file and name in sys.modules and not any(home == name for home, _ in _loaded):
        return sys.modules[name]  # imported by the program that calls us
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # where dataclasses look for it
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise _failed(fn, file, error) from None
    return module


def _failed(fn: str, file: Path | None, error: BaseException) -> UserError:
    """What to say of an exception when a file was run."""
    line = ""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        line = f", line {error.lineno}"
    elif file is not None:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = f", line {own[-1].lineno}" if own else ""
    where = "when its module was imported" if file is None else f"in {file}{line}"
    text = (str(error).splitlines() or [""])[0]
    return UserError(
        f"reward.fn={fn}: expected a file that runs without an error, but {where}: {type(error).__name__}: {text}: "
        f"mend it, `python {file or 'FILE'}` shows the same"
    )


def _function(module: ModuleType, named: FunctionName) -> Callable[..., Any]:
    """The function in its module."""
    fn = f"{named.home}:{named.name}"
    functions = [name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
    own = [name for name in functions if vars(module)[name].__module__ == module.__name__]
    if not hasattr(module, named.name):
        near = difflib.get_close_matches(named.name, own, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(own) or 'no function'}"
        raise UserError(f"reward.fn={fn}: expected a function of {named.home}, but it has no {named.name}: {hint}")
    function = getattr(module, named.name)
    if inspect.isclass(function) or not callable(function):
        what = "the class" if inspect.isclass(function) else f"a {type(function).__name__}, not"
        raise UserError(
            f"reward.fn={fn}: expected a function of RewardInputs, but it is {what} "
            f"{function.__name__ if inspect.isclass(function) else 'callable'}: name a function"
        )
    if inspect.isfunction(function) and function.__module__ != module.__name__:
        raise UserError(
            f"reward.fn={fn}: expected a function that {named.home} defines, whose file can be recorded, but it is "
            f"of {function.__module__}: name {function.__module__}:{function.__name__}, or define one that calls it"
        )
    return function


def _bound(
    function: Callable[..., Any], keywords: Mapping[str, Any], declared: Reads, *, name: str, empty: float
) -> RewardFn:
    """The function with its options, which also reports what makes runs of different rewards comparable."""

    @reads(*declared)
    def bound(inputs: RewardInputs) -> Rewards:
        returned = function(inputs, **keywords)
        rewards = returned if isinstance(returned, Rewards) else Rewards(np.asarray(returned, np.float32), {})
        more = {k: x for k, x in _measures(inputs, declared, empty=empty).items() if k not in rewards.components}
        return rewards._replace(components={**rewards.components, **more})

    bound.__name__ = bound.__qualname__ = name
    return bound


def _measures(inputs: RewardInputs, declared: Reads, *, empty: float) -> dict[str, np.ndarray]:
    """The two components of the paper's reward that summaries and ablations compare, as far as the log-probs are there.

    Args:
      empty: the KL of a thought without tokens.
    """
    logprobs, found = inputs.logprobs, {}
    if "student" in declared:
        found["solution_logp/mean"] = _means(logprobs.solution_logps, logprobs.solution_mask, empty=-empty)
        if "teacher" in declared:
            kl = logprobs.teacher_thought_logps - logprobs.student_thought_logps
            found["thought_kl/mean"] = _means(kl, logprobs.thought_mask, empty=empty)
    return found


def _means(values: np.ndarray, mask: np.ndarray, *, empty: float) -> np.ndarray:
    """f32[B, K] -> f32[B] over the masked tokens."""
    count = mask.sum(axis=1)
    means = np.where(mask, values, 0).sum(axis=1) / np.maximum(count, 1)
    return np.where(count > 0, means, empty).astype(np.float32)
