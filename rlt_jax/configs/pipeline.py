"""A study of the whole pipeline: the file that describes it, and the commands that it stands for."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

from rlt_jax.configs.ablate import changed_fields, leaves
from rlt_jax.configs.check import check_config
from rlt_jax.configs.evaluate import EvaluateConfig, QuestionsConfig, check_evaluate_config
from rlt_jax.configs.files import build, load_config, load_settings, read_yaml, train_config
from rlt_jax.configs.generate import GenerateConfig, RowsConfig, check_generate_config
from rlt_jax.configs.schema import CheckpointConfig, DataConfig, RewardConfig, SamplerConfig, TrainConfig
from rlt_jax.configs.score import ScoreConfig, check_score_config
from rlt_jax.configs.sft import SftConfig, check_sft_config
from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_Command = Literal["sft", "train", "generate", "score", "evaluate"]
_COMMAND: dict[type, _Command] = {GenerateConfig: "generate", ScoreConfig: "score", EvaluateConfig: "evaluate"}

Stage = Literal["warmup", "anchors", "rlt", "no-kl", "explain", "distil", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Source = Literal["warmup", "rlt", "no-kl", "traces"]
OF_THE_STUDY = {  # fields that no section may set: the pipeline does, or the study for all sections
    "warmup": ("target", "student_gap", "model", "output_dir", "resume", "seed", "data"),
    "student_warmup": ("target", "student_gap", "model", "output_dir", "resume", "seed", "data"),
    "rlt": ("teacher", "student", "output_dir", "resume", "seed", "data", "reward"),
    "explain": ("teacher", "student", "data", "out", "samples", "seed", "reward"),
    "distil": ("target", "student_gap", "model", "output_dir", "resume", "seed", "data"),
    "evaluate": ("model", "data", "out", "prompt", "tags", "system_prompt_file", "seed"),
}
FREE = re.compile(  # fields that change neither what is computed nor what is left: they may differ when work goes on
    r"(log|checkpoint|memory)\..*|sampler\.(python|url|max_batch)|(.*\.)?(score_batch_size|logprob_chunk|kept_mlp|"
    r"kept_attention|per_device_train_batch_size|vllm_gpu_memory_utilization|save_steps|budget_gb|planned_gb|host_gb)"
)


@dataclass(frozen=True, kw_only=True)
class PipelineData:
    """The problems of a study."""

    path: str
    """Training rows with question, solution and reasoning_trace: a hub name, a local folder or a file."""
    split: str = "train"
    """Split of data.path."""
    heldout_path: str | None = None
    """Held-out rows, as data.path. None: the last rows of data.path, taken out of it."""
    heldout_split: str = "train"
    """Split of data.heldout_path."""
    train_rows: int | None = None
    """First rows of data.path to train on, rows. None: all."""
    explain_rows: int | None = None
    """First training rows that the teachers explain and students are distilled on, rows. None: all."""
    heldout_rows: int = 128
    """First held-out rows, for losses, anchors and the evaluation while training, rows."""
    test_rows: int = 256
    """First held-out rows that students are tested on, rows."""
    answer: str | None = None
    """Regular expression whose group is the answer in a solution; the last match counts. None: the whole solution."""


@dataclass(frozen=True, kw_only=True)
class PipelineStudy:
    """A study as its file describes it. Sections hold fields of the command's own configuration."""

    teacher: str
    """Model that becomes the teacher: a local Hugging Face folder or a hub name."""
    student: str
    """Model that students are distilled from."""
    asked_student: str | None = None
    """Model that the reward asks. None: `student`, after student_warmup where there is one."""
    data: PipelineData
    """The problems."""
    tags: Literal["bespoke", "r1"] = "bespoke"
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the default prompt."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of weights and activations."""
    temperature: float = 0.7
    """Sampling temperature of teachers and students, no unit, above 0."""
    max_prompt_length: int
    """Longest teacher prompt, question and solution included, tokens; longer ones are skipped and counted."""
    max_completion_length: int
    """Explanations are cut off here, tokens."""
    score_batch_size: int = 8
    """Sequences per forward pass when models score. Changes memory, not results."""
    sampler: SamplerConfig = SamplerConfig()
    """How texts are drawn."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward, in training and for choosing explanations."""
    warmup: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.sft` for the teacher's warm-up on the rows' own traces."""
    student_warmup: dict[str, Any] | None = None
    """The same for `student` before the reward asks it (the paper's asked student, Bespoke-Stratos-7B, knows such
    traces). None: no warm-up."""
    rlt: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.train`, also for the arm without KL term."""
    samples: int = 1
    """Explanations per question; the best-rewarded one is kept. 1: raw ones, as in the paper."""
    explain: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.generate`."""
    students: tuple[Source, ...] = ("warmup", "rlt")
    """Students to distil, by what they are trained on: explanations of a teacher, or the rows' own traces."""
    token_tolerance: float = 0.02
    """Largest difference between the explanation tokens of the warmed-up and the RLT teacher's student, share."""
    distil: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.sft` for students; max_steps makes them equally long."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.evaluate`."""


class Task(NamedTuple):
    """One command of the pipeline."""

    stage: Stage
    name: str  # unique; names its files
    command: _Command
    config: "DataclassInstance"
    result: Path  # there: it is done
    needs: tuple[Path, ...]  # results of other tasks


def load_study(path: str | Path) -> PipelineStudy:
    """Read a study file.

    Raises:
      UserError: it cannot be read, or its values cannot be a study, one line each.
    """
    study = load_settings(path, PipelineStudy, example="scripts/studies/tiny.yaml")
    if problems := list(_study_problems(study)):
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return study


def pipeline_tasks(study: PipelineStudy, work: Path, *, seed: int) -> list[Task]:
    """Every command of a study in its order, each checked.

    Args:
      work: folder of everything that is made.
    Raises:
      UserError: mistakes in the sections, one per line.
    """
    problems = [
        f"{section}.{name}: the pipeline sets it, or the study for all sections: leave it out"
        for section, taken in OF_THE_STUDY.items()
        for name in taken
        if name in (getattr(study, section) or {})
    ]
    tasks = [] if problems else list(_tasks(study, work, seed))
    found = (_where_told(problem, task, study) for task in tasks for problem in _task_problems(task))
    problems += dict.fromkeys(found)  # once, as several tasks are told the same
    if problems:
        raise UserError("\n".join(problems))
    return tasks


def explained_sources(study: PipelineStudy) -> tuple[Source, ...]:
    """Teachers that explain the training questions: the two that are compared, and another that a student needs."""
    return ("warmup", "rlt", *(source for source in study.students if source == "no-kl"))


def check_same_task(task: Task, saved: Path) -> None:
    """Stop where a task has done something under other settings, those apart that change neither it nor what is left.

    Commands that write one file look after its pieces themselves.

    Args:
      saved: the settings that it was begun with.
    Raises:
      UserError: they differ in these fields, or the file cannot be read.
    """
    folder = task.result.parent
    if task.result.exists() or (task.command in ("sft", "train") and any((folder / "checkpoints").glob("*"))):
        check_same_settings(task.config, saved, task.name)


def told_settings(tasks: Path) -> dict[str, Any]:
    """What a work folder's commands were told: "TASK.FIELD" -> value, but for paths inside the folder, and FREE.

    Args:
      tasks: the folder of their settings; one that cannot be read is left out.
    """
    told: dict[str, Any] = {}
    for file in sorted(tasks.glob("*.yaml")):
        with contextlib.suppress(UserError):
            told |= leaves({file.stem: read_yaml(file)})
    own = next((Path(value).parent for name, value in told.items() if name.endswith(".output_dir")), None)

    def belongs(value: object) -> bool:
        return own is not None and isinstance(value, str) and Path(value).is_relative_to(own)

    return {
        name: value for name, value in told.items() if not (belongs(value) or FREE.fullmatch(name.partition(".")[2]))
    }


def check_same_settings(config: "DataclassInstance", saved: Path, name: str) -> None:
    """Stop where `saved` holds other settings than `config`, but for those that change neither result nor what is left.

    Args:
      name: what they are of, for the message.
    Raises:
      UserError: they differ in these fields, or the file cannot be read.
    """
    if not saved.exists():
        return
    theirs = load_config(saved) if isinstance(config, TrainConfig) else load_settings(saved, type(config))
    changed = [field for field in changed_fields(config, theirs) if not FREE.fullmatch(field)]
    if changed:
        raise UserError(
            f"{saved}: {name} was begun with other settings ({', '.join(changed)}): give another --work, or delete "
            "this one"
        )


def _tasks(study: PipelineStudy, work: Path, seed: int) -> Iterator[Task]:
    """In order: each needs only earlier ones."""

    def trained(stage: Stage, config: SftConfig | TrainConfig, *needs: Path) -> Task:
        folder = Path(config.output_dir)
        command: Literal["sft", "train"] = "sft" if isinstance(config, SftConfig) else "train"
        return Task(stage, folder.name, command, config, folder / "final", needs)

    def written(stage: Stage, name: str, config: GenerateConfig | ScoreConfig | EvaluateConfig, *needs: Path) -> Task:
        return Task(stage, name, _COMMAND[type(config)], config, Path(config.out), needs)

    rows, warm = work / "data" / "train.jsonl", work / "warmup" / "final"
    yield trained("warmup", _sft(study, work / "warmup", seed, rows=rows))
    asked, needed = study.asked_student or study.student, [warm]
    if study.student_warmup is not None:
        yield trained("warmup", _sft(study, work / "asked-student", seed, rows=rows))
        needed.append(work / "asked-student" / "final")
        asked = str(needed[-1])

    anchors = _score(study, work / "anchors" / "anchors", teacher=str(warm), student=asked, reward=study.reward)
    yield written("anchors", "anchors", anchors, *needed)

    arms: tuple[Literal["rlt", "no-kl"], ...] = ("rlt", "no-kl")
    for arm in arms:
        run = _run(study, work / arm, seed, teacher=str(warm), student=asked)
        if arm == "no-kl":
            run = replace(run, reward=replace(run.reward, kl_penalty_reward_coeff=(0.0,)))
        yield trained(arm, run, *needed)

    explained = []
    for source in explained_sources(study):
        teacher = work / source / "final"
        explain = _explain(study, work / "explained" / f"{source}.jsonl", seed, teacher=str(teacher), student=asked)
        explained.append(Path(explain.out))
        yield written("explain", f"explain-{source}", explain, teacher, *needed)

    for source in study.students:
        distil = _sft(study, work / f"student-{source}", seed, rows=work / "distil" / f"{source}.jsonl")
        yield trained("distil", distil, *explained)

    # what a student itself finds likely, at temperature 1; the command needs a teacher, who does not count here
    own = RewardConfig(unbias_student_log_probs_temp=None)
    for name in ("base", *study.students):
        model = study.student if name == "base" else str(work / f"student-{name}" / "final")
        distilled = [] if name == "base" else [Path(model)]
        out = work / "evaluated" / f"{name}.jsonl"
        yield written("evaluate", f"evaluate-{name}", _evaluate(study, out, seed, model=model), *distilled)
        score = _score(study, out.with_suffix(""), teacher=model, student=model, reward=own)
        yield written("evaluate", f"logp-{name}", score, out, *distilled)


def _sft(study: PipelineStudy, folder: Path, seed: int, *, rows: Path) -> SftConfig:
    """The warm-up of the teacher (`warmup`) or of the asked student (`asked-student`), or a student to distil."""
    base = SftConfig(
        target="teacher",
        model=study.teacher,
        output_dir=str(folder),
        seed=seed,
        dtype=study.dtype,
        eval_steps=25,
        save_steps=50,
        data=_data(study, folder.parent, rows),
        checkpoint=CheckpointConfig(keep=1, at_end=False),
    )
    if folder.name == "warmup":
        return _with(base, study.warmup, "warmup")
    base = replace(base, target="student", student_gap="blank-line", model=study.student)
    if folder.name == "asked-student":
        return _with(base, study.student_warmup or {}, "student_warmup")
    return _with(base, study.distil, "distil")


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
    return _with(base, study.rlt, "rlt")


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
    return _with(base, study.explain, "explain")


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
    return _with(base, study.evaluate, "evaluate")


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
        on_bad_row="stop",  # a row left out would shift those behind it
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


def _with(base: Config, section: Mapping[str, Any], name: str) -> Config:
    """A command's configuration with what a section of the study changes in it."""
    return build(type(base), section, source=name, base=base)


def _study_problems(study: PipelineStudy) -> Iterator[str]:
    data = study.data
    counts = {
        "data.train_rows": 1 if data.train_rows is None else data.train_rows,
        "data.explain_rows": 1 if data.explain_rows is None else data.explain_rows,
        "samples": study.samples,
    }
    for name, count in counts.items():
        if count < 1:
            yield f"{name}={count}: expected a positive whole number"
    for name, count in {"data.heldout_rows": data.heldout_rows, "data.test_rows": data.test_rows}.items():
        if count < 2:
            yield f"{name}={count}: expected 2 or more, as intervals are over them"
    if data.answer is not None:
        try:
            groups = re.compile(data.answer).groups
        except re.error as error:
            yield f"data.answer={data.answer!r}: not a regular expression: {error}"
        else:
            if groups != 1:
                yield f"data.answer={data.answer!r}: expected one group (...), the answer, found {groups}"
    if len(set(study.students)) < len(study.students):
        yield f"students: {', '.join(study.students)}: one stands there twice"
    if not 0 <= study.token_tolerance <= 1:
        yield f"token_tolerance={study.token_tolerance:g}: expected a share from 0 to 1"
    if study.asked_student is not None and study.student_warmup is not None:
        yield "asked_student and student_warmup: expected one of them, the second makes the asked one from `student`"
    if study.temperature <= 0:
        yield f"temperature={study.temperature:g}: expected a number above 0"


def _where_told(problem: str, task: Task, study: PipelineStudy) -> str:
    """A problem of a command as one of the study: behind the section whose field it is, alone if it is the study's."""
    section = _section(task)
    name = re.split(r"\W", problem, maxsplit=1)[0]
    if section is None or (hasattr(study, name) and name not in (getattr(study, section) or {})):
        return problem
    return f"{section}: {problem}"


def _section(task: Task) -> str | None:
    """The section of the study that sets fields of a command; None for those that score, which none does."""
    if isinstance(task.config, ScoreConfig):
        return None
    if task.name == "asked-student":
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
