"""Run the stages of a pipeline study under one seed: one process per command, and none for what is already done."""

import time
from collections.abc import Sequence
from pathlib import Path

from rlt_jax.configs.files import save_config
from rlt_jax.configs.pipeline import STAGES, PipelineConfig, PipelineStudy, Stage
from rlt_jax.data import check_same_tokenizer, load_tokenizer, read_prompt_file
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.owner import sole_user
from rlt_jax.runs.launch import OutOfTime, run_logged
from rlt_jax.studies.pipeline_data import (
    check_matching,
    write_data_files,
    write_distillation,
    write_results,
    write_rows_to_score,
)
from rlt_jax.studies.pipeline_folder import check_same_task, finished_tasks, record_seconds, settings_file
from rlt_jax.studies.pipeline_tasks import Task, pipeline_tasks


def run_stages(config: PipelineConfig, study: PipelineStudy, work: Path) -> None:
    """Run the chosen stages of a study under one seed.

    Args:
      config: seed, stages, time limit, and whether to show the output of the commands.
      work: folder for all files.
    Raises:
      UserError: the study cannot work (found before the first command), or a command failed.
      OutOfTime: config.minutes have passed. The same call resumes.
    """
    started = time.monotonic()
    deadline = None if config.minutes is None else started + 60 * config.minutes
    stages = chosen_stages(config, study)
    study = with_own_reward(study, stages)
    tasks = pipeline_tasks(study, work, seed=config.seed)
    with sole_user(work, "--work"):
        check_work(tasks, stages, study, work)
        write_data_files(study, work)
        for stage in stages:
            before = time.monotonic()
            stage_tasks = [task for task in tasks if task.stage == stage]
            if stage == "distil" and not all(task.result.exists() for task in stage_tasks):
                write_distillation(study, work)
            for task in stage_tasks:
                run_task(task, study, work, quiet=config.quiet, deadline=deadline)
            write_results(stage, study, work)
            print(f"[{stage}] {time.monotonic() - before:.1f} s", flush=True)
    print(f"{', '.join(stages)}: done in {time.monotonic() - started:.1f} s: {work}", flush=True)


def chosen_stages(config: PipelineConfig, study: PipelineStudy) -> list[Stage]:
    """The stages to run, in order. Without config.stages: all, but no-kl only with --no-kl or if a student needs it."""
    with_no_kl = config.no_kl or "no-kl" in study.students
    chosen = config.stages or tuple(stage for stage in STAGES if stage != "no-kl" or with_no_kl)
    return [stage for stage in STAGES if stage in chosen or (stage == "no-kl" and config.no_kl)]


def check_work(tasks: Sequence[Task], stages: Sequence[Stage], study: PipelineStudy, work: Path) -> None:
    """Reject what cannot work, before hours are spent on the stages before it.

    Args:
      tasks: all tasks of the study.
    Raises:
      UserError: the work folder was started with other settings, something that a stage needs is missing, or the models
        do not fit together.
    """
    for task in tasks:
        check_same_task(task, settings_file(work, task.name))
    check_matching(study, work)
    chosen = [task for task in tasks if task.stage in stages]
    check_needs(chosen)
    if not all(task.result.exists() for task in chosen):
        check_models(study)


def with_own_reward(study: PipelineStudy, stages: Sequence[Stage]) -> PipelineStudy:
    """The study with the file of its own reward function, if it has one, which all commands then share.

    Raises:
      UserError: the function cannot be used, or the stage no-kl would train with the same reward as the stage rlt.
    """
    if study.reward.fn is None:
        return study
    from rlt_jax.rewards.by_name import own_reward  # here: they load JAX, which takes a second
    from rlt_jax.runs.own_reward import pinned

    own = own_reward(study.reward)
    if own is not None and not own.reads_settings and "no-kl" in stages:
        raise UserError(
            f"reward.fn={study.reward.fn} with the stage no-kl, which trains without the KL of the paper's reward: "
            "expected a function with a parameter `config: RewardConfig`, which gets reward.kl_penalty_reward_coeff, "
            "but it has none, so that both stages would be the same: leave out no-kl, or add the parameter"
        )
    return pinned(study)


def check_needs(tasks: Sequence[Task]) -> None:
    """Reject tasks that need a file which does not exist and which none of them writes.

    Raises:
      UserError: every missing path once, with one line per stage.
    """
    results = {task.result for task in tasks}
    missing: dict[Path, Stage] = {}
    for task in [task for task in tasks if not task.result.exists()]:
        for path in [path for path in task.needs if path not in results and not path.exists()]:
            missing.setdefault(path, task.stage)
    if missing:
        raise UserError(
            "\n".join(
                f"{stage} needs {', '.join(str(path) for path, needed_by in missing.items() if needed_by == stage)}: "
                f"run the stages before {stage} first"
                for stage in dict.fromkeys(missing.values())
            )
        )


def check_models(study: PipelineStudy) -> None:
    """Reject models and prompts that cannot work.

    Raises:
      UserError: a model or prompt file is missing or not supported, or the reward student has a different vocabulary.
    """
    from rlt_jax.planner.run_plan import find_model  # here: it loads JAX, which takes a second

    for name in ("teacher", "student", "reward_student"):
        if (model := getattr(study, name)) is not None:
            try:
                find_model(model)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    for prompt in (study.teacher_prompt_file, study.student_prompt_file):
        if prompt is not None:
            read_prompt_file(prompt)
    if study.reward.student_tokens == "ids":
        check_same_tokenizer(load_tokenizer(study.teacher), load_tokenizer(study.reward_student or study.student))


def run_task(task: Task, study: PipelineStudy, work: Path, *, quiet: bool, deadline: float | None) -> None:
    """Run one command unless its result exists, and record how long it took.

    Args:
      deadline: time.monotonic() at which to stop. None: never.
    Raises:
      UserError: the command failed.
      OutOfTime: the deadline has passed.
    """
    if task.result.exists():
        if task.name not in finished_tasks(work):
            record_seconds(work, task, 0.0, finished=True)
        print(f"[{task.stage}] {task.name}: already done", flush=True)
        return
    before, settings = time.monotonic(), settings_file(work, task.name)
    if deadline is not None and before >= deadline:
        raise OutOfTime(time_is_up(task))
    write_rows_to_score(task, study, work)
    with writing_to(work):
        task.result.parent.mkdir(parents=True, exist_ok=True)
    save_config(task.config, settings)
    print(f"[{task.stage}] python -m rlt_jax.{task.command} --config {settings}", flush=True)
    failure, finished = None, False
    try:
        failure = run_logged(
            f"rlt_jax.{task.command}",
            ["--config", str(settings)],
            task.name,
            settings.with_suffix(".log"),
            quiet=quiet,
            seconds=None if deadline is None else deadline - before,
        )
        finished = failure is None and task.result.exists()
    except OutOfTime:
        raise OutOfTime(time_is_up(task)) from None
    finally:
        record_seconds(work, task, time.monotonic() - before, finished=finished)
    if not finished:
        reason = failure or f"it left no {task.result}"
        raise UserError(f"{task.name} failed: {reason}: fix the cause and repeat the call, which resumes")
    print(f"[{task.stage}] {task.name}: {time.monotonic() - before:.1f} s", flush=True)


def time_is_up(task: Task) -> str:
    """The message when the time limit stops a task."""
    return f"[{task.stage}] {task.name}: the time is up, repeat the call to resume"
