"""`~` in every path of every configuration, whichever way it is made."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from dataclasses import replace
from itertools import pairwise
from typing import get_type_hints

import pytest

import rlt_jax.configs
from rlt_jax.configs import PRESETS, DataConfig, config_yaml, load_config, load_study, parse_command, parse_train_args
from rlt_jax.configs.evaluate import EvaluateConfig
from rlt_jax.configs.pipeline import PipelineData
from rlt_jax.configs.resume import changed_fields
from rlt_jax.configs.settings import NO_PATHS, Settings
from rlt_jax.errors import UserError
from rlt_jax.studies.ablation_runs import study_runs

PATH_WORDS = ("folder", "file", "hub", "path", "interpreter", "`student`")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def configurations() -> list[type]:
    """Every dataclass of the room, but for the command line's own."""
    found = {}
    for module in pkgutil.iter_modules(rlt_jax.configs.__path__, "rlt_jax.configs."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if dataclasses.is_dataclass(value) and isinstance(value, type) and not name.startswith("_"):
                found[name] = value
    return [config for config in found.values() if all(field.kw_only for field in dataclasses.fields(config))]


def texts(config_class: type) -> list[str]:
    """Fields that hold any text, alone or several."""
    hints = get_type_hints(config_class)
    return [
        field.name
        for field in dataclasses.fields(config_class)
        if hints[field.name] in (str, str | None, tuple[str, ...])
    ]


def help_of(config_class: type) -> dict[str, str]:
    body = ast.parse(inspect.getsource(config_class)).body[0].body
    return {
        field.target.id: line.value.value
        for field, line in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(line, ast.Expr)
    }


def test_every_configuration_expands():
    assert len(configurations()) > 15
    assert [found.__name__ for found in configurations() if not issubclass(found, Settings)] == []


@pytest.mark.parametrize("config_class", configurations(), ids=lambda found: found.__name__)
def test_every_path_is_expanded_and_no_other_text(config_class, home):
    config = object.__new__(config_class)
    for field in dataclasses.fields(config_class):
        object.__setattr__(config, field.name, None)
    hints, names = get_type_hints(config_class), texts(config_class)
    for name in names:
        object.__setattr__(config, name, ("~/x", "y") if hints[name] == tuple[str, ...] else "~/x")
    config.__post_init__()
    for name in names:
        whole = "~/x" if name in NO_PATHS else f"{home}/x"
        assert getattr(config, name) == ((whole, "y") if hints[name] == tuple[str, ...] else whole), name


def test_a_text_is_a_path_by_its_help_too():
    """A new field that is none belongs in NO_PATHS."""
    for config_class in configurations():
        helps = help_of(config_class)
        for name in texts(config_class):
            says = any(word in helps[name].lower() for word in PATH_WORDS)
            assert says or name in NO_PATHS, f"{config_class.__name__}.{name}: a path? Its help does not say so"


def test_flags(home):
    line = ["--preset", "tiny", "--output-dir", "~/run", "--data.path", "~/rows.jsonl", "--sampler.kind", "vllm"]
    config, _ = parse_train_args([*line, "--sampler.python=~/bin/python", "--teacher=~/m", "--reference", "~/r"])
    assert (config.output_dir, config.data.path) == (f"{home}/run", f"{home}/rows.jsonl")
    assert (config.sampler.python, config.teacher, config.reference) == (f"{home}/bin/python", f"{home}/m", f"{home}/r")


def test_a_file_named_with_a_tilde_and_its_paths(home):
    (home / "run.yaml").write_text(
        "preset: tiny\noutput_dir: ~/run\nteacher: Qwen/Qwen2.5-7B-Instruct\ndata: {path: ~/rows}\n"
    )
    config, _ = parse_train_args(["--config=~/run.yaml"])
    assert (config.output_dir, config.data.path) == (f"{home}/run", f"{home}/rows")
    assert config.teacher == "Qwen/Qwen2.5-7B-Instruct"
    assert config == load_config(home / "run.yaml")


def test_python(home):
    """What is saved is the whole path, so that a run's folder is the same run wherever `~` comes from."""
    config = replace(PRESETS["tiny"], output_dir="~/run", teacher="~/teacher")
    assert f"output_dir: {home}/run\n" in config_yaml(config)
    assert changed_fields(config, replace(config, teacher=f"{home}/teacher")) == []


def test_a_study_of_the_pipeline(home):
    (home / "study.yaml").write_text(
        "teacher: ~/t\nstudent: ~/s\nmax_prompt_length: 9\nmax_completion_length: 9\nteacher_prompt_file: ~/p.txt\n"
        "data: {path: ~/rows.jsonl, answer: '~/(.*)'}\n"
    )
    study = load_study("~/study.yaml")
    assert (study.teacher, study.student, study.teacher_prompt_file) == (f"{home}/t", f"{home}/s", f"{home}/p.txt")
    assert (study.data.path, study.data.answer) == (f"{home}/rows.jsonl", "~/(.*)")


def test_arms_and_grid_of_an_ablation(home):
    (home / "base.yaml").write_text("preset: tiny\nteacher: ~/teacher\n")
    (home / "study.yaml").write_text(
        "seeds: [1]\narms: {a: {student: ~/student}}\ngrid: {reference: [~/one, nobody/two]}\n"
    )
    config, _ = parse_command(
        rlt_jax.configs.AblateConfig,
        ["--study=~/study.yaml", "--output-dir=~/out", "--base=~/base.yaml"],
        command="ablate",
        description="",
    )
    one, two = (runs[1] for runs in study_runs(config).values())
    assert (one.teacher, one.student, one.reference) == (f"{home}/teacher", f"{home}/student", f"{home}/one")
    assert two.reference == "nobody/two"
    assert one.output_dir.startswith(f"{home}/out/a")


def test_texts_that_the_locale_cannot_hold(monkeypatch):
    """A shell in the C locale hands over what it cannot decode as halves of surrogate pairs."""
    with pytest.raises(UserError, match=r"^answer=.*: expected signs that the locale of this shell has"):
        PipelineData(path="x", answer="\udcc2")
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match=r"^path=±: expected signs that .*, which is ascii: set LC_ALL=C\.UTF-8"):
        DataConfig(path="±")
    assert PipelineData(path="x", answer="±").answer == "±"


def test_no_such_user_is_named_with_the_field():
    with pytest.raises(UserError, match=r"^path=~nobody-here/x: expected the home folder of a user"):
        DataConfig(path="~nobody-here/x")
    with pytest.raises(UserError, match=r"^out=~nobody-here/x"):
        parse_command(
            EvaluateConfig,
            ["--out", "~nobody-here/x", "--model", "m", "--data.path", "d"],
            command="evaluate",
            description="",
        )
    assert PipelineData(path="x", answer="~nobody-here").answer == "~nobody-here"
