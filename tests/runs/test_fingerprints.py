"""Fingerprints of models and packages: they change with the files, and not with their place."""

import shutil
from pathlib import Path

import pytest

from rlt_jax.errors import UserError
from rlt_jax.runs.fingerprints import model_fingerprints, version_fingerprints


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_models_fingerprints_are_those_of_its_files(tmp_path, golden):
    folder = shutil.copytree(golden / "teacher", tmp_path / "copy")
    before = model_fingerprints({"teacher": str(golden / "teacher"), "reference": str(folder)})
    assert list(before) == [
        *("the teacher's weights", "the teacher's tokenizer", "the reference's weights", "the reference's tokenizer")
    ]
    assert before["the teacher's weights"] == before["the reference's weights"]
    assert before["the teacher's tokenizer"] == before["the reference's tokenizer"]
    (folder / "notes.txt").write_text("read by nobody")
    assert model_fingerprints({"teacher": str(folder)})["the teacher's weights"] == before["the teacher's weights"]
    for name, changed in (
        ("model.safetensors", "weights"),
        ("config.json", "weights"),
        ("tokenizer.json", "tokenizer"),
    ):
        other = shutil.copytree(golden / "teacher", tmp_path / name)
        flip(other / name)
        if name.endswith("json"):  # a valid file again
            (other / name).write_bytes((golden / "teacher" / name).read_bytes() + b"\n")
        now = model_fingerprints({"teacher": str(other)})
        assert [key for key in now if now[key] != before[key]] == [f"the teacher's {changed}"]


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError):
        model_fingerprints({"teacher": str(tmp_path / "none")})


def test_versions_are_those_that_are_installed():
    import jax

    assert version_fingerprints()["the version of jax"] == jax.__version__
