"""The commands of a pipeline study, in order."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from rlt_jax.configs.evaluate import EvaluateConfig, QuestionsConfig, check_evaluate_config
from rlt_jax.configs.files import build
from rlt_jax.configs.following import Layer, given_keys, print_note, settle
from rlt_jax.configs.generate import GenerateConfig, RowsConfig, check_generate_config
from rlt_jax.configs.pipeline import ExplanationSource, PipelineStudy, Stage
from rlt_jax.configs.presets import train_config
from rlt_jax.configs.reward import RewardConfig
from rlt_jax.configs.schema import CheckpointConfig, DataConfig
from rlt_jax.configs.score import ScoreConfig, check_score_config
from rlt_jax.configs.sft import SftConfig, check_sft_config
from rlt_jax.configs.train import TrainConfig, check_config
from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

Command = Literal["sft", "train", "generate", "score", "evaluate"]
COMMAND_OF: dict[type, Command] = {
    SftConfig: "sft",
    TrainConfig: "train",
    GenerateConfig: "generate",
    ScoreConfig: "score",
    EvaluateConfig: "evaluate",
}

RESERVED_FIELDS = {  # no section may set them: the pipeline does, or the study for all sections
    "warmup": ("target", "student_gap", "model", "output_dir", "resume", "seed", "data"),
    "student_warmup": ("target", "student_gap", "model", "output_dir", "resume", "seed", "data"),
    "rlt": ("teacher", "student", "output_dir", "resume", "seed", "data", "reward"),
    "explain": ("teacher", "student", "data", "out", "samples", "seed", "reward"),
    "distil": ("target", "student_gap", "model", "output_dir", "resume", "seed", "data"),
    "evaluate": ("model", "data", "out", "prompt", "tags", "system_prompt_file", "seed"),
}


class Task(NamedTuple):
    """One command of the pipeline."""

    stage: Stage
    name: str  # unique; names its files
    command: Command
    config: "DataclassInstance"
    result: Path  # once it exists, the task is done
    needs: tuple[Path, ...]  # results of other tasks


def pipeline_tasks(study: PipelineStudy, work: Path, *, seed: int) -> list[Task]:
    """Build and check every command of a study, in order.

    Args:
      work: folder for all files.
    Raises:
      UserError: mistakes in the study's sections, one per line.
    """
    problems = [
        f"{section}.{name}: the pipeline sets it, or the study for all sections: leave it out"
        for section, reserved in RESERVED_FIELDS.items()
        for name in reserved
        if name in (getattr(study, section) or {})
    ]
    tasks = [] if problems else list(_tasks(study, work, seed))
    found = (_study_problem(problem, task, study) for task in tasks for problem in _task_problems(task))
    problems += dict.fromkeys(found)  # once, as tasks share settings
    if problems:
        raise UserError("\n".join(problems))
    return tasks


def explained_sources(study: PipelineStudy) -> tuple[ExplanationSource, ...]:
    """Teachers that explain the training questions: the two that are compared, and any other that a student needs."""
    return ("warmup", "rlt", *(source for source in study.students if source == "no-kl"))


def _tasks(study: PipelineStudy, work: Path, seed: int) -> Iterator[Task]:
    """In order: each task needs only earlier ones."""

    def training_task(stage: Stage, config: SftConfig | TrainConfig, *needs: Path) -> Task:
        folder = Path(config.output_dir)
        return Task(stage, folder.name, COMMAND_OF[type(config)], config, folder / "final", needs)

    def file_task(stage: Stage, name: str, config: GenerateConfig | ScoreConfig | EvaluateConfig, *needs: Path) -> Task:
        return Task(stage, name, COMMAND_OF[type(config)], config, Path(config.out), needs)

    rows, warm_teacher = work / "data" / "train.jsonl", work / "warmup" / "final"
    yield training_task("warmup", _sft(study, work / "warmup", seed, rows=rows, section="warmup"))
    reward_student, models = study.reward_student or study.student, [warm_teacher]
    if study.student_warmup is not None:
        folder = work / "reward-student"
        yield training_task("warmup", _sft(study, folder, seed, rows=rows, section="student_warmup"))
        models.append(folder / "final")
        reward_student = str(folder / "final")

    stem = work / "baselines" / "baselines"
    baselines = _score(study, stem, teacher=str(warm_teacher), student=reward_student, reward=study.reward)
    yield file_task("baselines", "baselines", baselines, *models)

    arms: tuple[Literal["rlt", "no-kl"], ...] = ("rlt", "no-kl")
    for arm in arms:
        run = _run(study, work / arm, seed, teacher=str(warm_teacher), student=reward_student)
        if arm == "no-kl":
            run = replace(run, reward=replace(run.reward, kl_penalty_reward_coeff=(0.0,)))
        yield training_task(arm, run, *models)

    explained = []
    for source in explained_sources(study):
        teacher, out = work / source / "final", work / "explained" / f"{source}.jsonl"
        explain = _explain(study, out, seed, teacher=str(teacher), student=reward_student)
        explained.append(out)
        yield file_task("explain", f"explain-{source}", explain, teacher, *models)

    for source in study.students:
        folder, taught = work / f"student-{source}", work / "distil" / f"{source}.jsonl"
        yield training_task("distil", _sft(study, folder, seed, rows=taught, section="distil"), *explained)

    # the student's own log-probs at temperature 1; the command also needs a teacher, which plays no role here
    at_temperature_1 = RewardConfig(unbias_student_log_probs_temp=None)
    for name in ("base", *study.students):
        model = study.student if name == "base" else str(work / f"student-{name}" / "final")
        distilled = [] if name == "base" else [Path(model)]
        out = work / "evaluated" / f"{name}.jsonl"
        yield file_task("evaluate", f"evaluate-{name}", _evaluate(study, out, seed, model=model), *distilled)
        score = _score(study, out.with_suffix(""), teacher=model, student=model, reward=at_temperature_1)
        score = replace(score, on_contradiction="warn")  # a student in the teacher's place
        yield file_task("evaluate", f"logp-{name}", score, out, *distilled)


def _sft(
    study: PipelineStudy,
    folder: Path,
    seed: int,
    *,
    rows: Path,
    section: Literal["warmup", "student_warmup", "distil"],
) -> SftConfig:
    """Settings for the warm-up of the teacher or of the reward student, or for distilling a student."""
    base = SftConfig(
        target="teacher",
        model=study.teacher,
        output_dir=str(folder),
        seed=seed,
        dtype=study.dtype,
        eval_steps=25,
        save_steps=50,
        check_texts=0,  # the study's own stages sample from these models, and count
        data=_data(study, folder.parent, rows),
        checkpoint=CheckpointConfig(keep=1, at_end=False),
    )
    if section != "warmup":
        base = replace(base, target="student", student_gap="blank-line", model=study.student)
    return _override(base, getattr(study, section) or {}, section)


def _run(study: PipelineStudy, folder: Path, seed: int, *, teacher: str, student: str) -> TrainConfig:
    preset = train_config({"preset": study.rlt.get("preset", "tiny")}, source="rlt")
    base = replace(
        preset,
        teacher=teacher,
        student=student,
        output_dir=str(folder),
        seed=seed,
        dtype=study.dtype,
        score_batch_size=study.score_batch_size,
        max_prompt_length=study.max_prompt_length,
        max_completion_length=study.max_completion_length,
        temperature=study.temperature,
        eval_steps=25,
        sampler=study.sampler,
        reward=study.reward,
        data=_data(study, folder.parent, folder.parent / "data" / "train.jsonl"),
        checkpoint=CheckpointConfig(keep=1, at_end=False),
    )
    return _override(base, study.rlt, "rlt")


def _explain(study: PipelineStudy, out: Path, seed: int, *, teacher: str, student: str) -> GenerateConfig:
    base = GenerateConfig(
        teacher=teacher,
        student=student,
        data=RowsConfig(
            path=str(out.parents[1] / "data" / "explain.jsonl"),
            tags=study.tags,
            teacher_prompt_file=study.teacher_prompt_file,
            student_prompt_file=study.student_prompt_file,
        ),
        out=str(out),
        samples=study.samples,
        seed=seed,
        dtype=study.dtype,
        max_prompt_length=study.max_prompt_length,
        max_completion_length=study.max_completion_length,
        temperature=study.temperature,
        sampler=study.sampler,
        reward=study.reward,
        score_batch_size=study.score_batch_size,
    )
    return _override(base, study.explain, "explain")


def _evaluate(study: PipelineStudy, out: Path, seed: int, *, model: str) -> EvaluateConfig:
    base = EvaluateConfig(
        model=model,
        data=QuestionsConfig(path=str(out.parents[1] / "data" / "test.jsonl")),
        out=str(out),
        tags=study.tags,
        system_prompt_file=study.student_prompt_file,
        seed=seed,
        dtype=study.dtype,
        temperature=study.temperature,
        sampler=study.sampler,
    )
    return _override(base, study.evaluate, "evaluate")


def _score(study: PipelineStudy, stem: Path, *, teacher: str, student: str, reward: RewardConfig) -> ScoreConfig:
    return ScoreConfig(
        teacher=teacher,
        student=student,
        data=f"{stem}.rows.jsonl",
        out=f"{stem}.scores.jsonl",
        temperature=study.temperature,
        reward=reward,
        tags=study.tags,
        teacher_prompt_file=study.teacher_prompt_file,
        student_prompt_file=study.student_prompt_file,
        on_bad_row="stop",  # a skipped row would shift those after it
        dtype=study.dtype,
        score_batch_size=study.score_batch_size,
    )


def _data(study: PipelineStudy, work: Path, rows: Path) -> DataConfig:
    return DataConfig(
        path=str(rows),
        eval_path=str(work / "data" / "heldout.jsonl"),
        eval_rows=study.data.heldout_rows,
        tags=study.tags,
        teacher_prompt_file=study.teacher_prompt_file,
        student_prompt_file=study.student_prompt_file,
    )


def _override(base: Config, section: Mapping[str, Any], name: str) -> Config:
    """A command's configuration with the fields that a section of the study sets; untouched ones follow."""
    given = given_keys(section)
    config, notes = settle(build(type(base), section, source=name, base=base), Layer(given=given, now=given, base=base))
    for note in notes:
        print_note(f"{name}: {note}")
    return config


def _study_problem(problem: str, task: Task, study: PipelineStudy) -> str:
    """A command's problem as one of the study: after the name of the section that sets the field, if one does."""
    section = _section(task)
    name = re.split(r"\W", problem, maxsplit=1)[0]
    if section is None or (hasattr(study, name) and name not in (getattr(study, section) or {})):
        return problem
    return f"{section}: {problem}"


def _section(task: Task) -> str | None:
    """The section of the study for a command; None for score commands, which have none."""
    if isinstance(task.config, ScoreConfig):
        return None
    if task.name == "reward-student":
        return "student_warmup"
    return "rlt" if task.stage == "no-kl" else task.stage


def _task_problems(task: Task) -> list[str]:
    try:
        match task.config:
            case SftConfig():
                check_sft_config(task.config)
            case TrainConfig():
                check_config(task.config)
            case GenerateConfig():
                check_generate_config(task.config)
            case ScoreConfig():
                check_score_config(task.config)
            case EvaluateConfig():
                check_evaluate_config(task.config)
    except UserError as error:
        return str(error).splitlines()
    return []
