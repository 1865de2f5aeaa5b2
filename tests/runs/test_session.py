"""Run folders: whether a start is accepted, what a refused one leaves, and what a crash does."""

import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from rlt_jax.configs import PRESETS
from rlt_jax.errors import UserError
from rlt_jax.report.owner import sole_user
from rlt_jax.runs.run_folder import check_run_folder
from rlt_jax.runs.session import open_session

pytestmark = pytest.mark.usefixtures("restored_log")

TINY = PRESETS["tiny"]


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder, with a hash of what is in it and when it was changed."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_folder_with_a_checkpoint_is_resumed(tmp_path, resume):
    assert resume == "must" or not check_run_folder(tmp_path, resume=resume)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    assert check_run_folder(tmp_path, resume=resume)


@pytest.mark.parametrize("made", ["", "checkpoints", "checkpoints/20.orbax-checkpoint-tmp"])
def test_must_resume_needs_a_checkpoint(tmp_path, made):
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError) as refusal:
        check_run_folder(tmp_path, resume="must")
    assert str(refusal.value) == (
        f"--resume must: no checkpoint under {tmp_path}/checkpoints: start without it, or check --output-dir"
    )


def test_never_resume_refuses_a_folder_that_holds_anything(tmp_path):
    (tmp_path / ".lock").write_text("")  # of a process that was killed before it began
    assert not check_run_folder(tmp_path, resume="never")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: choose another --output-dir, or delete it"):
        check_run_folder(tmp_path, resume="never")


def test_starting_over_a_run_without_a_checkpoint_is_logged(tmp_path, logged):
    (tmp_path / "metrics.jsonl").write_text("")
    check_run_folder(tmp_path, resume="auto")
    assert f"{tmp_path} holds a run without a checkpoint: starting over, its metrics are replaced" in logged.messages


@pytest.mark.parametrize("resume", ["auto", "must", "never"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, resume):
    (tmp_path / "file").write_text("")
    config = replace(TINY, output_dir=str(tmp_path / "file" / "run"), resume=resume)
    with pytest.raises(UserError, match=r"cannot be used \(Not a directory\): choose another"), open_session(config):
        pass


def refused(config) -> None:
    with pytest.raises(UserError), open_session(config):
        logging.getLogger("rlt_jax").warning("about the rows")
        raise UserError("bad rows")


def test_a_refused_start_leaves_no_folder(tmp_path):
    refused(replace(TINY, output_dir=str(tmp_path / "new" / "run")))
    assert list(tmp_path.iterdir()) == []


def test_a_refused_start_changes_nothing_in_a_folder_that_was_there(tmp_path):
    for name in ("metrics.jsonl", "notes.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    refused(replace(TINY, output_dir=str(tmp_path)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "config.yaml", ".lock", "logs", "logs/training.log", "final", "checkpoints", "checkpoints/5/x"],
)
def test_a_link_out_of_the_run_folder_is_refused_and_not_written_through(tmp_path, name):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / name).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    (run / name).symlink_to(elsewhere if "." not in name else elsewhere / "mine")
    before = contents(tmp_path)
    message = rf"{name} leads to .*elsewhere.*, which the run would write: remove the link"
    with pytest.raises(UserError, match=message), open_session(replace(TINY, output_dir=str(run))):
        pass
    assert contents(tmp_path) == before


def test_the_run_folder_itself_may_be_a_link_and_so_may_what_stays_in_it(tmp_path):
    (tmp_path / "disk" / "wandb").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "latest").symlink_to("wandb")
    (tmp_path / "disk" / "wandb" / "live.txt").symlink_to("/etc/hostname")  # as wandb makes them
    with open_session(replace(TINY, output_dir=str(tmp_path / "run"))):
        pass


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_start_leaves_nothing(tmp_path, interruption):
    with pytest.raises(interruption), open_session(replace(TINY, output_dir=str(tmp_path / "run"))):
        raise interruption
    assert list(tmp_path.iterdir()) == []


def out_of_memory():
    try:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
    except jax.errors.JaxRuntimeError as error:
        raise UserError("the GPU's memory is too small") from error


def bug():
    raise ZeroDivisionError


@pytest.mark.parametrize("fails", [out_of_memory, bug])
def test_a_crash_leaves_its_log(tmp_path, fails):
    with (
        pytest.raises((UserError, ZeroDivisionError)),
        open_session(replace(TINY, output_dir=str(tmp_path / "run"))),
    ):
        logging.getLogger("rlt_jax").warning("what led to it")
        fails()
    assert contents(tmp_path).keys() == {"run", "run/logs", "run/logs/training.log"}
    assert "WARNING rlt_jax: what led to it\n" in (tmp_path / "run/logs/training.log").read_text()


def test_an_engine_that_does_not_start_leaves_its_log(tmp_path):
    """The message names it."""
    config = replace(TINY, output_dir=str(tmp_path / "run"))
    with pytest.raises(UserError), open_session(config) as session:
        (session.folder / "logs").mkdir()
        (session.folder / "logs" / "vllm.log").write_text("no room")
        raise UserError("the vLLM engine did not start")
    assert contents(tmp_path / "run").keys() == {"logs", "logs/training.log", "logs/vllm.log"}


def test_a_folder_in_use_is_refused(tmp_path):
    config = replace(TINY, output_dir=str(tmp_path / "run"))
    with sole_user(tmp_path / "run", "--output-dir"):
        with pytest.raises(UserError) as refusal, open_session(config):
            pass
        assert contents(tmp_path / "run").keys() == {".lock"}
    message = str(refusal.value)
    assert message.startswith(f"--output-dir {tmp_path}/run is in use by another run (process {os.getpid()} on ")
    assert message.endswith("): wait, stop it, or choose another folder")
    with open_session(config) as session:
        assert session.folder.is_dir()


def test_a_run_of_the_other_command_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("target: teacher\nmodel: x\n")
    before = contents(tmp_path)
    with pytest.raises(UserError) as refusal, open_session(replace(TINY, output_dir=str(tmp_path))):
        pass
    assert str(refusal.value) == (
        f"--output-dir {tmp_path} holds a run of `rlt_jax.sft` (its config.yaml says so), but this is `rlt_jax.train`: "
        "choose another folder"
    )
    assert contents(tmp_path) == before
