"""Options of the whole pipeline, and the study that says which models, data and sizes it runs with.

The commands that a study stands for: studies/pipeline_tasks.py.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from rlt_jax.configs.checks import text_problems
from rlt_jax.configs.files import load_settings, type_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.schema import RewardConfig, SamplerConfig
from rlt_jax.errors import UserError
from rlt_jax.types import Dtype, TagFormat

Stage = Literal["warmup", "baselines", "rlt", "no-kl", "explain", "distil", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Source = Literal["warmup", "rlt", "no-kl", "traces"]

ASSETS = "rlt_jax/assets/"  # in a study: the package's own models and data
EXAMPLE = f"{ASSETS}studies/pipeline/tiny.yaml"


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Stages of a study to run under one seed, a work folder to pack, work folders to compare."""

    study: str | None = None
    """Models, data and sizes: a YAML file, or a study of the package: tiny, lab or lab-legs."""
    work: str | None = None
    """Work folder: all that is made. One per seed."""
    seed: int = 42
    """Seed of data order, sampling and evaluation, 0 to 2**31 - 1."""
    stages: tuple[Stage, ...] = ()
    """Stages to run now. Empty: all but no-kl."""
    no_kl: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the stage no-kl too: RLT without the KL term of the reward."""
    minutes: float | None = None
    """Stop after this time, whatever is running, with exit code 3; the same call resumes. None: no limit."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Do not show what the commands print; WORK/tasks/*.log has it."""
    collect: str | None = None
    """Pack the small files of --work (numbers, pictures, logs, texts; at most 16 MiB) into this new .tar.gz file."""
    summary: tuple[str, ...] = ()
    """Work folders to compare, one per seed, also unpacked ones of --collect: tables and pictures go to --out."""
    out: str = "runs/pipeline-results"
    """Folder of the summary."""


def check_pipeline_config(config: PipelineConfig) -> None:
    """Stop if the options cannot be what the user wants; work folders are not looked into.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(_option_problems(config))
    if problems:
        raise UserError("\n".join(problems))


def _option_problems(config: PipelineConfig) -> Iterator[str]:
    if not (config.study or config.collect or config.summary):
        yield "nothing to do: give --study NAME and --work DIR, or --collect FILE and --work DIR, or --summary DIR ..."
    if (config.study or config.collect) and config.work is None:
        yield "--work is missing: give the folder of the pipeline's files"
    yield from text_problems(
        {
            "--work": (config.work, "the folder of the pipeline's files"),
            "--out": (config.out, "a folder for the summary"),
        }
    )
    if config.minutes is not None and not 0 < config.minutes < math.inf:
        yield f"--minutes {config.minutes:g}: expected a number above 0; leave it out for no limit"
    if not 0 <= config.seed < 2**31:
        yield f"--seed {config.seed}: expected a whole number from 0 to 2**31 - 1"
    if config.collect is not None and not config.collect.endswith(".tar.gz"):
        yield f"--collect {config.collect}: expected a name that ends in .tar.gz"
    elif config.collect is not None and Path(config.collect).exists():
        yield f"--collect {config.collect} exists: choose another file, or delete it"


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
    """First held-out rows, for losses, baselines and the evaluation while training, rows."""
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
    reward_student: str | None = None
    """Frozen student whose log-probs make the reward. None: `student`, after student_warmup where there is one."""
    data: PipelineData
    """The problems."""
    tags: TagFormat = "bespoke"
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the default prompt."""
    dtype: Dtype = "bfloat16"
    """Number format of weights and activations."""
    temperature: float = 0.7
    """Sampling temperature of teachers and students, no unit, above 0."""
    max_prompt_length: int
    """Longest teacher prompt, question and solution included, tokens; longer ones are skipped and counted."""
    max_completion_length: int
    """Explanations are cut off here, tokens."""
    score_batch_size: MayChange[int] = 8
    """Sequences per forward pass when models score. Changes memory, not results."""
    sampler: SamplerConfig = SamplerConfig()
    """How texts are sampled."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward, in training and for choosing explanations."""
    warmup: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.sft` for the teacher's warm-up on the rows' own traces."""
    student_warmup: dict[str, Any] | None = None
    """The same for `student`, which makes the reward student; the paper's, Bespoke-Stratos-7B, knows such traces.
    None: no warm-up."""
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


def load_study(path: str | Path) -> PipelineStudy:
    """Read a study file. Paths below rlt_jax/assets/ are those of the package, wherever it is installed.

    Raises:
      UserError: it cannot be read, or its values cannot be a study, one line each.
    """
    study = load_settings(path, PipelineStudy, example=EXAMPLE)
    if problems := list(_study_problems(study)):
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    data = study.data
    data = replace(data, path=_installed(data.path), heldout_path=_installed(data.heldout_path))
    models = {name: _installed(getattr(study, name)) for name in ("teacher", "student", "reward_student")}
    prompts = {name: _installed(getattr(study, name)) for name in ("teacher_prompt_file", "student_prompt_file")}
    return replace(study, data=data, **models, **prompts)


def _installed(path: str | None) -> Any:
    """A path below rlt_jax/assets/ as it is on this machine."""
    if path is not None and path.startswith(ASSETS):
        return str(Path(__file__).resolve().parents[2] / path)
    return path


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
        yield f"students: {', '.join(study.students)}: one is there twice"
    if not 0 <= study.token_tolerance <= 1:
        yield f"token_tolerance={study.token_tolerance:g}: expected a share from 0 to 1"
    if study.reward_student is not None and study.student_warmup is not None:
        yield (
            "reward_student and student_warmup: expected one of them, as student_warmup makes the reward student from "
            "`student`"
        )
    if study.temperature <= 0:
        yield f"temperature={study.temperature:g}: expected a number above 0"
