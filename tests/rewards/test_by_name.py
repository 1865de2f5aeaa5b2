"""Reward functions by name: which file runs, and what is refused."""

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest

from rlt_jax.configs import RewardConfig
from rlt_jax.errors import UserError
from rlt_jax.rewards.by_name import chosen_reward, own_reward, reads_of
from rlt_jax.rewards.rlt import BOTH, RewardInputs, Rewards
from rlt_jax.types import RewardLogprobs

GOOD = """
from __future__ import annotations
import numpy as np
from rlt_jax import RewardConfig, RewardInputs, Rewards, reads
RUNS = open({log!r}, "a").write("x")

@reads("student")
def summed(inputs: RewardInputs, *, weight: float = 1.0) -> np.ndarray:
    return weight * (inputs.logprobs.solution_logps * inputs.logprobs.solution_mask).sum(axis=1)

def settings(inputs: RewardInputs, *, config: RewardConfig) -> Rewards:
    ones = np.full(len(inputs.rows), config.not_matched_penalty)
    return Rewards(ones, {{"thought_kl/mean": ones}})

@reads()
def failing(inputs):
    return inputs.nothing

class Kind: ...
number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD.format(log=str(tmp_path / "log")))
    return path


@pytest.fixture
def inputs():
    """Two explanations: solutions of 2 and 1 tokens, thoughts of 2 and none."""
    off = 1e9  # off the masks
    logprobs = RewardLogprobs(
        np.array([[-1.0, -2.0], [-4.0, off]]),
        np.array([[True, True], [True, False]]),
        np.array([[-1.0, -3.0], [off, off]]),
        np.array([[-0.5, -1.5], [off, off]]),
        np.array([[True, True], [False, False]]),
        np.array([True, False]),
    )
    return RewardInputs((), [None, None], logprobs)


def config_of(file, name="summed", **options) -> RewardConfig:
    return RewardConfig(fn=f"{file}:{name}", options=options)


def test_a_function_of_a_file_gets_its_options(file, inputs):
    own = own_reward(config_of(file, weight=2))
    assert (own.name, own.file, own.reads_settings) == ("summed", file, False)
    assert own.source == file.read_bytes() and own.sha256 == hashlib.sha256(own.source).hexdigest()
    assert own.fn(inputs).reward.tolist() == [-6.0, -8.0]
    assert own.fn.__qualname__ == "summed"


def test_the_components_that_runs_are_compared_by_are_there(file, inputs):
    """As in the paper's reward: mean over tokens, the penalty for a thought without any; as far as models are read."""
    summed, settings = (own_reward(config_of(file, name)).fn(inputs).components for name in ("summed", "settings"))
    assert {name: values.tolist() for name, values in summed.items()} == {"solution_logp/mean": [-1.5, -4.0]}
    assert list(settings) == ["thought_kl/mean", "solution_logp/mean"]
    assert settings["thought_kl/mean"].tolist() == [-1.0, -1.0]  # the function's own
    assert settings["solution_logp/mean"].tolist() == [-1.5, -4.0]


def test_which_models_are_read_is_known_by_name(file):
    assert reads_of(config_of(file)) == {"student"}
    assert reads_of(config_of(file, "settings")) == BOTH
    assert reads_of(RewardConfig(include_teacher_think_entropy=False)) == {"student"}


def test_a_file_runs_once_and_again_when_it_has_changed(file, tmp_path, inputs):
    for _ in range(3):
        own_reward(config_of(file))
    assert (tmp_path / "log").read_text() == "x"
    file.write_text(file.read_text() + "\n# changed\n")
    own_reward(config_of(file))
    assert (tmp_path / "log").read_text() == "xx"


def test_another_file_than_the_recorded_one_does_not_run(file, tmp_path):
    pinned = replace(config_of(file), fn_sha256="0" * 64)
    with pytest.raises(UserError) as refused:
        own_reward(pinned)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"expected the file with SHA-256 {'0' * 64}" in str(refused.value)
    assert f"{file} has {found}: restore that file" in str(refused.value)
    assert not (tmp_path / "log").exists()


def test_what_was_pinned_stays_in_this_process(file):
    own = own_reward(config_of(file))
    pinned = replace(config_of(file), fn_sha256=own.sha256)
    file.write_text("def summed(inputs): ...")
    assert own_reward(pinned).source == own.source
    assert own_reward(config_of(file)).source == b"def summed(inputs): ..."


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_copy_with_the_recorded_hash_stands_in(tmp_path, change):
    copies = tmp_path / "run" / "reward"
    copies.mkdir(parents=True)
    text = f"def f(inputs):\n    return {hash(change)}\n"
    (copies / "f.py").write_text("def f(inputs): ...")
    (copies / "f-12345678.py").write_text(text)
    file = tmp_path / "f.py"
    if change == "other":
        file.write_text("def f(inputs): return 0")
    config = RewardConfig(fn=f"{file}:f", fn_sha256=hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(UserError):
        own_reward(config)
    own = own_reward(config, copies=copies)
    assert own.file == copies / "f-12345678.py" and own.source.decode() == text


def test_a_function_of_a_module(tmp_path, monkeypatch):
    package = tmp_path / "rewards_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("from .other import one\ndef f(inputs): return one()\n")
    (package / "other.py").write_text("def one(): return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = own_reward(RewardConfig(fn="rewards_of_a_test.mine:f"))
    assert own.file == package / "mine.py"
    with pytest.raises(UserError, match=r"rewards_of_a_test\.mine defines, .* name rewards_of_a_test\.other:one"):
        own_reward(RewardConfig(fn="rewards_of_a_test.mine:one"))


def test_a_file_finds_the_modules_beside_it_but_hides_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_a_test.py").write_text("ONE = 1\n")
    (tmp_path / "statistics.py").write_text("raise RuntimeError('hides the standard library')\n")
    (tmp_path / "f.py").write_text("import beside_a_test, statistics\ndef f(inputs): return beside_a_test.ONE\n")
    assert own_reward(RewardConfig(fn=f"{tmp_path}/f.py:f")) is not None


WRONG_FILES = [
    ("def f(inputs) return 1", "in {file}, line 1: SyntaxError: "),
    ("\nimport nowhere_at_all", "in {file}, line 2: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("def g():\n    1 / 0\n\ng()", "in {file}, line 2: ZeroDivisionError: division by zero"),
    ("import sys\nsys.exit('bye')", "in {file}, line 2: SystemExit: bye"),
    ("from rlt_jax import reads\n@reads('reference')\ndef f(inputs): ...", "line 2: ValueError: reads(...): expected "),
    (
        "def f(inputs): ...\nf.reads = 'teachers'",
        "expected none, one or both of 'student' and 'teacher', got 'teachers'",
    ),
    ("def score(inputs): ...", "it has no f: it has score"),
    ("def ff(inputs): ...\ndef h(inputs): ...", "it has no f: did you mean ff?"),
    ("f = 3", "expected a function of RewardInputs, but it is a int, not callable"),
    ("class f: ...", "expected a function of RewardInputs, but it is the class f: name a function"),
    ("from os.path import join as f", "but it is of posixpath: name posixpath:join, or define one that calls it"),
    ("def f(prompts, completions): ...", "but it takes completions beside prompts"),
    ("\0", "SyntaxError: source code string cannot contain null bytes"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_FILES, ids=lambda value: value[:30].replace("\n", " ").strip("\0"))
def test_a_file_that_is_no_use_is_refused(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        own_reward(RewardConfig(fn=f"{file}:f"))
    assert str(refused.value).startswith(f"reward.fn={file}:f: ") and message.format(file=file) in str(refused.value)


WRONG_NAMES = [
    ("mine", "expected path/to/file.py:function or package.module:function"),
    ("nowhere/mine.py:f", "expected a Python file, but there is nothing: nowhere/mine.py"),
    ("nowhere.at.all:f", "expected a module that Python finds from "),
    ("math:sqrt", "expected a module with Python source, but math is "),
    ("concurrent.futures.thread.x:f", "but there is no concurrent.futures.thread.x: start the command in the folder"),
]


@pytest.mark.parametrize(("fn", "message"), WRONG_NAMES)
def test_a_name_of_nothing_is_refused(fn, message):
    with pytest.raises(UserError) as refused:
        own_reward(RewardConfig(fn=fn))
    assert str(refused.value).startswith(f"reward.fn={fn}: ") and message in str(refused.value)


def test_a_name_that_is_nearly_right(file):
    with pytest.raises(UserError, match=f"did you mean {file}\\? expected a Python file"):
        own_reward(RewardConfig(fn=f"{file.with_name('mines.py')}:summed"))
    with pytest.raises(UserError, match="there is a folder"):
        (file.parent / "folder.py").mkdir()
        own_reward(RewardConfig(fn=f"{file.parent}/folder.py:f"))


def test_there_is_one_reward(file):
    assert chosen_reward(RewardConfig()) is None
    assert chosen_reward(RewardConfig(), len) is len
    assert chosen_reward(config_of(file)).__qualname__ == "summed"
    with pytest.raises(UserError, match="expected one reward: leave out the other"):
        chosen_reward(config_of(file), len)
    assert isinstance(Rewards(np.zeros(1), {}), tuple)
