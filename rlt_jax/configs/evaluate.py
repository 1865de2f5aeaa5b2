"""Settings of an evaluation: a model is tested on questions with known answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlt_jax.configs.checks import check_problems, text_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.sampling import sampling_problems
from rlt_jax.configs.schema import SamplerConfig
from rlt_jax.configs.settings import Settings
from rlt_jax.types import RunDtype, TagFormat

MAX_OPTIONS = 26  # one letter each


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig(Settings):
    """The test set, and the columns to read."""

    path: str
    """Questions with answers: a hub name, a local folder, or a .jsonl, .json, .parquet or .csv file."""
    split: str = "train"
    """Split of data.path."""
    subset: str | None = None
    """Subset (configuration) of data.path. None: the only one, or the default that the data set names."""
    question_column: str = "question"
    """Column with the question."""
    answer_column: str = "answer"
    """Column with nothing but the right answer (57, without derivation); with choices, the text of the right option."""
    choice_columns: tuple[str, ...] = ()
    """Columns with the wrong options of multiple-choice questions. Empty: free-form answers."""
    system_column: str | None = None
    """Column with the student's system prompt. None: `system`."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with an unusable row: skip (number, reason and count are reported) or stop."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Exact-answer accuracy of a model on a test set."""

    model: str
    """Model to test: a local Hugging Face folder or a hub name."""
    data: QuestionsConfig
    """The test set, and the columns to read."""
    out: MayChange[str]
    """JSON Lines file to write, one line per sample. It must not exist. OUT.partial holds the finished chunks, from
    which the same command resumes. The accuracies go to a second file, which ends in .summary.json."""
    answer_kind: Literal["math", "text"] = "math"
    """How answers are compared: math: as mathematics (math-verify); text: the last number, or the words. No effect with
    data.choice_columns, where letters are compared."""
    prompt: Literal["student", "chat"] = "student"
    """student: the chat format that students are trained on, up to the thought's start tag; chat: the question in the
    model's own chat format."""
    tags: TagFormat | None = None
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`. None: as the
    model was trained (rlt_jax.json in its folder), else bespoke."""
    system_prompt_file: str | None = None
    """Text file with the system prompt. None: for prompt student, the row's `system` column, else the one that the
    model was trained with (rlt_jax.json in its folder), else the default; for prompt chat, no system prompt."""
    on_contradiction: MayChange[Literal["stop", "warn"]] = "stop"
    """What to do if tags, prompts, roles or chat templates contradict rlt_jax.json in a model's folder: stop, or
    warn and go on."""
    samples: int = 1
    """Answers per question."""
    k: tuple[int, ...] = (1,)
    """Values of k to report pass@k for, the probability that at least one of k answers is right; at most samples."""
    questions_per_chunk: int = 256
    """Questions per chunk, which are answered together and then saved."""
    seed: int = 42
    """Seed of sampling, 0 to 2**31 - 1; with the numbers of question and sample it gives each answer's own seed."""
    dtype: RunDtype = "auto"
    """Dtype of weights and activations. auto: float32 on a CPU, bfloat16 on a GPU."""
    max_completion_length: int = 16384
    """Maximum length of an answer, tokens; longer ones are cut off. The default takes at most half of the model's
    positions."""
    temperature: float = 0.7
    """Sampling temperature, no unit. 0: greedy."""
    sampler: SamplerConfig = SamplerConfig()
    """How answers are sampled."""
    vllm_gpu_memory_utilization: MayChange[float] = 0.55
    """Share of the GPU's memory for a vLLM engine, in (0, 1]; no effect with the native sampler."""
    logprob_chunk: MayChange[int] = 1024
    """Chunk size for logits over the vocabulary when a vLLM engine is verified, tokens."""


def check_evaluate_config(config: EvaluateConfig) -> None:
    """Reject inconsistent settings.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    check_problems(config, _evaluate_problems)


def _evaluate_problems(config: EvaluateConfig) -> Iterator[str]:
    data = config.data
    yield from text_problems(
        {
            "model": (config.model, "a model folder or hub name"),
            "data.path": (data.path, "a hub name, folder or file"),
            "data.split": (data.split, "the name of a split, such as test"),
            "data.subset": (data.subset, "the name of a subset, or None"),
            "data.question_column": (data.question_column, "the name of a column"),
            "data.answer_column": (data.answer_column, "the name of a column"),
            "data.system_column": (data.system_column, "the name of a column, or None"),
            "out": (config.out, "a file to write"),
        }
    )
    columns = [data.question_column, data.answer_column, *data.choice_columns]
    if len(set(columns)) < len(columns):
        yield (
            f"data: the columns {', '.join(columns)} name one twice: expected the question, the right answer and, in "
            "data.choice_columns, only the wrong options"
        )
    if len(data.choice_columns) >= MAX_OPTIONS:
        yield f"data.choice_columns has {len(data.choice_columns)} columns: expected at most {MAX_OPTIONS - 1}"
    yield from sampling_problems(
        config,
        positive={
            "questions_per_chunk": config.questions_per_chunk,
            "max_completion_length": config.max_completion_length,
            "logprob_chunk": config.logprob_chunk,
        },
    )
    for k in config.k:
        if not 1 <= k <= config.samples:
            yield (
                f"k={k} with samples={config.samples}: expected 1 to {config.samples}: use --samples {max(k, 1)}, or "
                "another k"
            )
