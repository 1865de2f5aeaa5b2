"""Names of the hub against mistyped paths, and what is said without a network. The tests' hub is offline."""

import os
import subprocess
import sys

import pytest

from rlt_jax.errors import UserError
from rlt_jax.hub import check_dataset, check_name, fetch, local_folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/warmup/final").mkdir(parents=True)
    (tmp_path / "runs/warmup/final/config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runs/warmup/fina", "runs/warmup/fina does not exist: did you mean runs/warmup/final? check the path"),
        ("runs/warmpu", "(as there is a folder runs here, the hub is not asked): did you mean runs/warmup? check"),
        ("./none", "./none does not exist: check the path"),
        ("a/b/c", "a/b/c does not exist: check the path"),
        ("runs/warmup", "got the folder runs/warmup of a run: did you mean runs/warmup/final?"),
        ("runs/warmup/final/config.json", "expected a model's folder, got the file runs/warmup/final/config.json"),
    ],
)
def test_a_mistyped_folder_is_not_asked_for_at_the_hub(path, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(UserError) as error:
        local_folder(path)
    assert message in str(error.value)


def test_names_of_the_hub_are_left_to_it(here):
    assert local_folder("Qwen/Qwen2.5-7B-Instruct") is None
    assert local_folder("gpt2") is None
    assert local_folder("runs/warmup/final") == here.__class__("runs/warmup/final")
    check_name("bespokelabs/Bespoke-Stratos-17k", "dataset")
    with pytest.raises(UserError, match="expected a data set's folder, file, or name"):
        check_name("runs/rows", "dataset")


def test_a_model_of_the_cache_is_found_beside_a_folder_of_its_first_name(here, monkeypatch):
    (here / "cache/models--runs--model/snapshots").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    assert local_folder("runs/model") is None


def test_offline_is_said():
    with pytest.raises(UserError, match=r"no nobody/nothing here and HF_HUB_OFFLINE is set, .* holds no such model: "):
        fetch("nobody/nothing", files=["*.json"])
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, .* holds no such data set: check the name"):
        check_dataset("nobody/rows")


def test_a_hub_that_cannot_be_reached_is_said_at_once():
    """Its clients try again for half a minute."""
    program = "import time\nfrom rlt_jax.hub import *\nfrom rlt_jax.errors import UserError\n"
    program += "import huggingface_hub, huggingface_hub.errors\nstart = time.monotonic()\n"
    program += "for ask in (lambda: fetch('nobody/nothing', files=['*']), lambda: check_dataset('nobody/rows')):\n"
    program += "    try: ask()\n    except UserError as error: print(error)\nprint(time.monotonic() - start)"
    unreachable = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=unreachable)
    model, data, seconds = done.stdout.splitlines()
    assert "the hub cannot be asked ([Errno 111] Connection refused): check the name, or give the folder" in model
    assert "the hub cannot be asked ([Errno 111] Connection refused): check the name, or give the folder" in data
    assert float(seconds) < 10
    assert done.stderr == ""
