"""What testing a model on questions with known answers can be told."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from rlt_jax.configs.checks import not_finite_problems, text_problems
from rlt_jax.configs.files import type_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.sampling import sampling_problems
from rlt_jax.configs.schema import SamplerConfig
from rlt_jax.errors import UserError
from rlt_jax.types import Dtype, TagFormat

MOST_OPTIONS = 26  # letters


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """The test set, by the names of its columns."""

    path: str
    """Questions with answers: a hub name, a local folder, or a .jsonl, .json or .parquet file."""
    split: str = "train"
    """Split of data.path."""
    question_column: str = "question"
    """Column with the question."""
    answer_column: str = "answer"
    """Column with the right answer alone (57, not how one gets there); with choices, the right option's text."""
    choice_columns: tuple[str, ...] = ()
    """Columns with the wrong options of a multiple-choice question. Empty: the answer is free."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with a row that cannot be used: skip it, with number, reason and a count, or stop."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Exact-answer accuracy of a model on a test set."""

    model: str
    """Model to test: a local Hugging Face folder or a hub name."""
    data: QuestionsConfig
    """The test set, by the names of its columns."""
    out: MayChange[str]
    """File to write, JSON Lines, a line per sample. It must not exist; OUT.partial keeps what is done, and a second
    start goes on. The accuracies go to the file beside it that ends in .summary.json."""
    answer_kind: Literal["math", "text"] = "math"
    """math: equal as mathematics (math-verify); text: the same number at the end, or the same words. Without effect
    with data.choice_columns, where letters are compared."""
    prompt: Literal["student", "chat"] = "student"
    """student: the chat the student was trained on, whose answer begins with the thought's tag; chat: the question in
    the model's own chat."""
    tags: TagFormat = "bespoke"
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`."""
    system_prompt_file: str | None = None
    """Text file with the system prompt. None: student: the row's `system` column, else the default student prompt;
    chat: none."""
    samples: int = 1
    """Answers per question."""
    k: tuple[int, ...] = (1,)
    """Report pass@k, the probability that one of k answers is right, for each of these, samples at most."""
    questions_per_chunk: int = 256
    """Questions that are drawn together and then saved, questions."""
    seed: int = 42
    """Seed of sampling, 0 to 2**31 - 1; each answer's own follows from it and from the question's number."""
    dtype: Dtype = "bfloat16"
    """Number format of weights and activations."""
    max_completion_length: int = 16384
    """Answers are cut off here, tokens."""
    temperature: float = 0.7
    """Sampling temperature, no unit. 0: the likeliest token each time."""
    sampler: SamplerConfig = SamplerConfig()
    """How answers are drawn."""
    vllm_gpu_memory_utilization: MayChange[float] = 0.55
    """Share of the GPU for a vLLM engine, in (0, 1]; without effect on the native sampler."""
    logprob_chunk: MayChange[int] = 1024
    """Tokens whose logits over the vocabulary are held at once when a vLLM engine is verified, tokens."""


def check_evaluate_config(config: EvaluateConfig) -> None:
    """Stop if the test cannot be what the user wants.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(not_finite_problems(asdict(config)))
    problems = problems or list(_evaluate_problems(config))
    if problems:
        raise UserError("\n".join(problems))


def _evaluate_problems(config: EvaluateConfig) -> Iterator[str]:
    data = config.data
    yield from text_problems(
        {
            "model": (config.model, "a model folder or hub name"),
            "data.path": (data.path, "a hub name, folder or file"),
            "data.split": (data.split, "the name of a split, such as test"),
            "data.question_column": (data.question_column, "the name of a column"),
            "data.answer_column": (data.answer_column, "the name of a column"),
            "out": (config.out, "a file to write"),
        }
    )
    columns = [data.question_column, data.answer_column, *data.choice_columns]
    if len(set(columns)) < len(columns):
        yield (
            f"data: the columns {', '.join(columns)} name one twice: expected the question, the right answer, and in "
            "data.choice_columns the wrong options alone"
        )
    if len(data.choice_columns) >= MOST_OPTIONS:
        yield f"data.choice_columns has {len(data.choice_columns)} columns: expected at most {MOST_OPTIONS - 1}"
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
            yield f"k={k} with samples={config.samples}: expected 1 to {config.samples}: draw more samples, or lower k"
