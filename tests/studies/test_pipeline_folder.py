"""A pipeline's work folder: settings that may change before work resumes, folders that may be summarised together."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlt_jax.configs import PRESETS, TrainConfig, save_config
from rlt_jax.errors import UserError
from rlt_jax.studies.pipeline_folder import (
    check_same_task,
    check_summary_folders,
    finished_tasks,
    record_seconds,
    recorded_settings,
    settings_file,
)
from rlt_jax.studies.pipeline_tasks import Task


def rlt_task(work: Path, **changes) -> Task:
    """The task `rlt` of a work folder: the preset tiny with these changes."""
    config = replace(PRESETS["tiny"], output_dir=str(work / "rlt"), **changes)
    return Task("rlt", "rlt", "train", config, work / "rlt" / "final", ())


def loss(**changes):
    return replace(PRESETS["tiny"].loss, **changes)


def test_what_may_change_before_work_resumes(tmp_path):
    begun, saved = rlt_task(tmp_path, loss=loss(beta=0.1)), tmp_path / "rlt.yaml"
    save_config(begun.config, saved)
    other = rlt_task(tmp_path, loss=loss(beta=0.2))
    check_same_task(other, saved)  # nothing was left by the first attempt
    (tmp_path / "rlt" / "checkpoints" / "5").mkdir(parents=True)
    check_same_task(begun, saved)
    free = {"per_device_train_batch_size": 8, "log": replace(PRESETS["tiny"].log, wandb=True)}
    check_same_task(rlt_task(tmp_path, loss=loss(beta=0.1, logprob_chunk=64), **free), saved)
    with pytest.raises(UserError, match=r"rlt was started with other settings \(loss\.beta\): give another --work"):
        check_same_task(other, saved)


def test_a_finished_task_counts_whatever_came_before(tmp_path):
    task = rlt_task(tmp_path)
    assert finished_tasks(tmp_path) == set()
    record_seconds(tmp_path, task, 1.5, finished=False)
    assert finished_tasks(tmp_path) == set()
    record_seconds(tmp_path, task, 2.0, finished=True)
    assert finished_tasks(tmp_path) == {"rlt"}


@pytest.fixture
def work_folder(tmp_path):
    """work_folder(name, seed=..., ...): a work folder in which RLT has run with these settings."""

    def make(name: str, **settings) -> Path:
        work = tmp_path / name
        task = rlt_task(work, teacher=str(work / "warmup" / "final"), **settings)
        settings_file(work, "rlt").parent.mkdir(parents=True)
        save_config(task.config, settings_file(work, "rlt"))
        record_seconds(work, task, 1.0, finished=True)
        return work

    return make


def test_settings_are_recorded_without_paths_inside_the_folder(work_folder):
    settings = recorded_settings(work_folder("a", seed=3) / "tasks")
    assert (settings["rlt.seed"], settings["rlt.student"]) == (3, "rlt_jax/assets/tiny/student")
    assert "rlt.teacher" not in settings
    assert set(settings) < {f"rlt.{name}" for name in names(PRESETS["tiny"])}


def names(config: TrainConfig, section: str = "") -> list[str]:
    values = vars(config)
    return [
        path
        for name, value in values.items()
        for path in (names(value, f"{section}{name}.") if hasattr(value, "__dataclass_fields__") else [section + name])
    ]


def test_folders_of_one_study_under_different_seeds(work_folder, tmp_path):
    first, second = work_folder("a", seed=1), work_folder("b", seed=2)
    check_summary_folders([first, second], seed=1)
    check_summary_folders([first, tmp_path / "new"], running=tmp_path / "new", seed=2)


def test_folders_that_do_not_belong_together(work_folder, tmp_path):
    first, same, other = work_folder("a", seed=1), work_folder("b", seed=1), work_folder("c", seed=2, max_steps=3)
    with pytest.raises(UserError, match=f"--summary {first} {same}: both are of seed 1"):
        check_summary_folders([first, same], seed=1)
    with pytest.raises(UserError, match=f"--summary {first} {tmp_path / 'new'}: both are of seed 1"):
        check_summary_folders([first, tmp_path / "new"], running=tmp_path / "new", seed=1)
    with pytest.raises(UserError, match=r"these settings differ: rlt\.max_steps$"):
        check_summary_folders([first, other], seed=1)
    with pytest.raises(UserError, match=r"nowhere: expected the work folder of a pipeline"):
        check_summary_folders([first, tmp_path / "nowhere"], seed=1)
