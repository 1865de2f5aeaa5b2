"""`~`, and the path that was probably meant."""

import os
from pathlib import Path

import pytest

from rlt_jax.errors import UserError
from rlt_jax.paths import did_you_mean, expanded, nearest


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_folders(home):
    import pwd

    me = pwd.getpwuid(os.getuid())
    assert expanded("~") == str(home)
    assert expanded("~/runs/a b") == f"{home}/runs/a b"
    assert expanded(f"~{me.pw_name}/x") == os.path.join(me.pw_dir, "x")


@pytest.mark.parametrize("text", ["Qwen/Qwen2.5-7B-Instruct", "runs/~/x", "./~x", "a~", "", "http://~/"])
def test_everything_else_stays_as_it_is(home, text):
    assert expanded(text) == text


def test_no_such_home(home, monkeypatch):
    with pytest.raises(UserError, match=r"^out=~nobody-here/x: expected the home folder of a user .* ~nobody-here: "):
        expanded("~nobody-here/x", name="out")
    monkeypatch.setenv("HOME", str(home / "gone"))
    with pytest.raises(UserError, match=r"~/x: expected ~ to be a folder, but there is no .*gone: set HOME"):
        expanded("~/x")


def test_the_nearest_path_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/warmup/final").mkdir(parents=True)
    (tmp_path / "rows.jsonl").write_text("")
    for wrong, meant in {
        "runs/warmup/fina": "runs/warmup/final",
        "run/warmpu/final": "runs/warmup/final",
        "./runs/warmup/Final": "runs/warmup/final",
        "row.jsonl": "rows.jsonl",
        str(tmp_path / "rnus"): str(tmp_path / "runs"),
    }.items():
        assert nearest(wrong) == Path(meant)
    for far_or_there in ("models/other", "runs/evaluation", "rows.jsonl/x", "x", "rows.jsonl", "runs/warmup"):
        assert nearest(far_or_there) is None
    assert did_you_mean("row.jsonl") == "did you mean rows.jsonl? "
    assert did_you_mean("x") == ""
