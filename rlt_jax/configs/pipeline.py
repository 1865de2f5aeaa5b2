"""Settings of the pipeline, and the study file with its models, data and sizes.

studies/pipeline_tasks.py turns a study into commands.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from rlt_jax.configs.checks import column_problems, count_problems, text_problems
from rlt_jax.configs.files import load_settings, type_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.reward import RewardConfig
from rlt_jax.configs.schema import SamplerConfig
from rlt_jax.configs.settings import Settings
from rlt_jax.errors import UserError
from rlt_jax.types import Dtype, TagFormat

Stage = Literal["warmup", "baselines", "rlt", "no-kl", "explain", "distil", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ExplanationSource = Literal["warmup", "rlt", "no-kl", "traces"]  # of explanations: a teacher, or the rows themselves

ASSETS = "rlt_jax/assets/"  # start of paths to the package's own models and data
EXAMPLE = f"{ASSETS}studies/pipeline/tiny.yaml"


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(Settings):
    """Stages of a study to run under one seed, a work folder to pack, and work folders to compare."""

    study: str | None = None
    """Study with models, data and sizes: a YAML file, or one that comes with the package: tiny, lab or lab-legs."""
    work: str | None = None
    """Work folder for all files; one per seed."""
    seed: int = 42
    """Seed of data order, sampling and evaluation, 0 to 2**31 - 1."""
    stages: tuple[Stage, ...] = ()
    """Stages to run now. Empty: all but no-kl."""
    no_kl: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also run the stage no-kl: RLT without the reward's KL term."""
    minutes: float | None = None
    """Stop after this many minutes with exit code 3, whatever is running; the same command resumes. None: no limit."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Hide the output of the commands; it is also in WORK/tasks/*.log."""
    collect: str | None = None
    """Pack the small files of --work (numbers, pictures, logs, texts; at most 16 MiB) into this new .tar.gz file."""
    summary: tuple[str, ...] = ()
    """Work folders to compare, one per seed, or unpacked archives of --collect. Tables and pictures go to --out."""
    out: str = "runs/pipeline-results"
    """Folder for the summary."""


def check_pipeline_config(config: PipelineConfig) -> None:
    """Reject inconsistent settings; work folders are not inspected.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(_pipeline_problems(config))
    if problems:
        raise UserError("\n".join(problems))


def _pipeline_problems(config: PipelineConfig) -> Iterator[str]:
    if not (config.study or config.collect or config.summary):
        yield "nothing to do: give --study NAME and --work DIR, or --collect FILE and --work DIR, or --summary DIR ..."
    if (config.study or config.collect) and config.work is None:
        yield "--work is missing: give a folder for the pipeline's files"
    yield from text_problems(
        {
            "--work": (config.work, "a folder for the pipeline's files"),
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
class PipelineData(Settings):
    """Data of a study."""

    path: str
    """Training rows with question, solution and reasoning_trace: a hub name, a local folder or a file."""
    split: str = "train"
    """Split of data.path."""
    subset: str | None = None
    """Subset (configuration) of data.path. None: the only one, or the default that the data set names."""
    heldout_path: str | None = None
    """Held-out rows, in the same form as data.path. None: the last rows of data.path, which are then not trained on."""
    heldout_split: str = "train"
    """Split of data.heldout_path."""
    heldout_subset: str | None = None
    """Subset of data.heldout_path, as data.subset."""
    question_column: str | None = None
    """Column with the question. None: `question`, or `prompt`."""
    solution_column: str | None = None
    """Column with the solution, as text or as a number. None: `solution`. A named question or solution is read instead
    of the row's `conversations`."""
    trace_column: str | None = None
    """Column with the reasoning trace. None: `reasoning_trace`."""
    system_column: str | None = None
    """Column with the student's system prompt. None: `system`."""
    train_rows: int | None = None
    """Number of rows to train on, from the start of data.path. None: all."""
    explain_rows: int | None = None
    """Number of training rows, from the start, that teachers explain and students are distilled on. None: all."""
    heldout_rows: int = 128
    """Number of held-out rows, from the start, for losses, baselines and evaluations during training."""
    test_rows: int = 256
    """Number of held-out rows, from the start, to test students on."""
    answer: str | None = None
    """Regular expression whose group is the answer in a solution; the last match counts. None: all of the solution."""


@dataclass(frozen=True, kw_only=True)
class PipelineStudy(Settings):
    """A study, as its file describes it. A section sets fields of its command's configuration."""

    teacher: str
    """Model to train as the teacher: a local Hugging Face folder or a hub name."""
    student: str
    """Model to train as students: folder or hub name."""
    reward_student: str | None = None
    """Frozen student whose log-probs make the reward. None: `student`, after student_warmup where there is one."""
    data: PipelineData
    """Training and held-out rows."""
    tags: TagFormat = "bespoke"
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the default prompt."""
    dtype: Dtype = "bfloat16"
    """Dtype of weights and activations."""
    temperature: float = 0.7
    """Sampling temperature of teachers and students, no unit, above 0."""
    max_prompt_length: int
    """Maximum length of the teacher's prompt, which includes question and solution, tokens; longer ones are skipped and
    counted."""
    max_completion_length: int
    """Maximum length of an explanation, tokens; longer ones are cut off."""
    score_batch_size: MayChange[int] = 8
    """As many tokens per forward pass for log-probs as this many of the longest rows have. Changes memory, not
    results."""
    sampler: SamplerConfig = SamplerConfig()
    """How texts are sampled."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward, for training and for choosing explanations."""
    warmup: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.sft` for the teacher's warm-up on the rows' own traces."""
    student_warmup: dict[str, Any] | None = None
    """The same for `student`, which makes it the reward student. The paper's reward student, Bespoke-Stratos-7B, was
    trained on such traces. None: no warm-up."""
    rlt: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.train`, also for the arm without the KL term."""
    samples: int = 1
    """Explanations per question, of which students get the best-rewarded one. 1: no choice, as in the paper."""
    explain: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.generate`."""
    students: tuple[ExplanationSource, ...] = ("warmup", "rlt")
    """Students to distil, named after what they are trained on: a teacher's explanations, or the rows' own traces."""
    token_tolerance: float = 0.02
    """Largest difference in explanation tokens between the students of the warmed-up and the RLT teacher, share."""
    distil: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.sft` for students; max_steps gives all of them equally many steps."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Fields of `rlt_jax.evaluate`."""


def load_study(path: str | Path) -> PipelineStudy:
    """Read a study file. Paths below rlt_jax/assets/ point into the package, wherever it is installed.

    Raises:
      UserError: the file cannot be read, or its values are inconsistent, one per line.
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
    """Turn a path below rlt_jax/assets/ into one of the installed package."""
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
    yield from count_problems(counts)
    yield from column_problems(data, "data.")
    for name, count in {"data.heldout_rows": data.heldout_rows, "data.test_rows": data.test_rows}.items():
        if count < 2:
            yield f"{name}={count}: expected 2 or more, as confidence intervals need them"
    if data.heldout_subset is not None and data.heldout_path is None:
        yield f"data.heldout_subset={data.heldout_subset} without data.heldout_path: give that, or leave it out"
    if data.answer is not None:
        try:
            groups = re.compile(data.answer).groups
        except re.error as error:
            yield f"data.answer={data.answer!r}: not a regular expression: {error}"
        else:
            if groups != 1:
                yield f"data.answer={data.answer!r}: expected one group (...), the answer, found {groups}"
    if len(set(study.students)) < len(study.students):
        yield f"students: {', '.join(study.students)}: one is named twice"
    if not 0 <= study.token_tolerance <= 1:
        yield f"token_tolerance={study.token_tolerance:g}: expected a share from 0 to 1"
    if study.reward_student is not None and study.student_warmup is not None:
        yield (
            "reward_student and student_warmup: give only one of them, as student_warmup makes the reward student from "
            "`student`"
        )
    if study.temperature <= 0:
        yield f"temperature={study.temperature:g}: expected a number above 0"
