"""The run folder on its disk: room, leftovers, and whether it is still the folder that it was."""

import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import jax
import pytest

from rlt_jax.configs import PRESETS, CheckpointConfig
from rlt_jax.errors import UserError
from rlt_jax.runs.run_folder import FolderWatch, check_export, recover_export, warn_of_room

GB = 10**9


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def model(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(folder.name)


def test_leftovers_of_a_killed_export_go(tmp_path, dead):
    for name in ("final", f".final.writing-{dead}", f".final.replaced-{dead}", ".final.writing-1", "other"):
        model(tmp_path / name)
    recover_export(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"final", "other", ".final.writing-1"}  # process 1 lives


def test_a_replaced_model_is_put_back_if_there_is_no_other(tmp_path, dead, logged):
    for name in (f".final.writing-{dead}", f".final.replaced-{dead}"):
        model(tmp_path / name)
    recover_export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "model.safetensors").read_text() == f".final.replaced-{dead}"
    assert "put back the model that was being replaced" in logged.messages[0]


def test_what_saving_would_refuse_is_refused_first(tmp_path):
    check_export(tmp_path)
    model(tmp_path / "final")
    check_export(tmp_path)
    (tmp_path / "final" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"it also holds notes.txt: choose another folder"):
        check_export(tmp_path)
    shutil.rmtree(tmp_path / "final")
    (tmp_path / "final").write_text("")
    with pytest.raises(UserError, match=r"final is a file: choose another path"):
        check_export(tmp_path)


@pytest.mark.parametrize(
    ("keep", "export", "there", "enough"),
    [(2, 1 * GB, 0, 7 * GB), (0, 1 * GB, 0, 1 * GB), (1, 0, 0, 4 * GB), (1, 0, 3000, 4 * GB - 3000)],
)
def test_a_disk_without_room_is_warned_of(tmp_path, monkeypatch, logged, keep, export, there, enough):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "data").write_bytes(b"x" * there)
    usage = namedtuple("usage", "total used free")
    checkpoint = CheckpointConfig(keep=keep or 2, at_end=keep > 0, export=export > 0)
    config = replace(PRESETS["tiny"], save_steps=25 if keep else 0, checkpoint=checkpoint)
    state, params = (jax.ShapeDtypeStruct((size,), "uint8") for size in (2 * GB, export))
    for free in (enough, enough - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
        assert logged.messages == []
        warn_of_room(config, tmp_path, state=state, params=params)
    (message,) = logged.messages
    assert message.startswith(f"{tmp_path}: {enough / GB:.2f} GB free, but the run will write about {enough / GB:.2f}")
    assert (f"{keep + 1} checkpoints of 2.00 GB" in message) == (keep > 0)
    assert ("the exported model of 1.00 GB" in message) == (export > 0)


def test_a_folder_that_is_gone_or_another_is_seen(tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    run.mkdir()
    with FolderWatch(run) as watch:
        watch.check()
        run.rename(moved)
        with pytest.raises(UserError, match=r"run is gone: it was moved or removed .* which resumes from the last"):
            watch.check()
        run.mkdir()
        with pytest.raises(UserError, match=r"is another folder than when the run began"):
            watch.check()
        run.rmdir()
        moved.rename(run)
        watch.check()
        shutil.rmtree(run)
        run.write_text("")
        with pytest.raises(UserError, match=r"is another folder"):
            watch.check()
