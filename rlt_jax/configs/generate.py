"""Settings for writing explanations for a data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlt_jax.configs.checks import check_problems, column_problems, text_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.reward import RewardConfig, reward_problems
from rlt_jax.configs.sampling import sampling_problems
from rlt_jax.configs.schema import SamplerConfig
from rlt_jax.configs.settings import Settings
from rlt_jax.types import RunDtype, TagFormat


@dataclass(frozen=True, kw_only=True)
class RowsConfig(Settings):
    """Rows to explain, and how they become prompts."""

    path: str
    """Rows with question and solution: a hub name, a local folder, or a .jsonl, .json, .parquet or .csv file."""
    split: str = "train"
    """Split of data.path."""
    subset: str | None = None
    """Subset (configuration) of data.path. None: the only one, or the default that the data set names."""
    tags: TagFormat | None = None
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`. None: as the
    model was trained (rlt_jax.json in its folder), else bespoke."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt. None: the one that the teacher was trained with (rlt_jax.json in its
    folder), else the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the one that the student was
    trained with (rlt_jax.json in its folder), else the default prompt."""
    on_contradiction: MayChange[Literal["stop", "warn"]] = "stop"
    """What to do if tags, prompts, roles or chat templates contradict rlt_jax.json in a model's folder: stop, or
    warn and go on."""
    question_column: str | None = None
    """Column with the question. None: `question`, or `prompt`."""
    solution_column: str | None = None
    """Column with the solution, as text or as a number. None: `solution`. A named question or solution is read instead
    of the row's `conversations`."""
    trace_column: str | None = None
    """Column with the reasoning trace. None: `reasoning_trace`."""
    system_column: str | None = None
    """Column with the student's system prompt. None: `system`."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with an unusable row: skip (number, reason and count are reported) or stop."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Settings):
    """Explanations for every row of a data set, as a data set to train a student on."""

    teacher: str
    """Model that writes the explanations: a local Hugging Face folder or a hub name."""
    student: str | None = None
    """Frozen model whose log-probs make the reward: folder or hub name. None: no rewards."""
    data: RowsConfig
    """Rows to explain, and how they become prompts."""
    out: MayChange[str]
    """JSON Lines file to write. It must not exist. OUT.partial holds the finished chunks, from which the same command
    resumes."""
    samples: int = 1
    """Explanations per row."""
    redraws: int = 1
    """How many times to sample again if an explanation is cut off or does not close its tags. 0: never."""
    on_unfinished: Literal["drop", "keep"] = "drop"
    """What to do with an explanation that is still unfinished after that: drop it or keep it; both are counted."""
    min_usable: MayChange[float] = 0.1
    """Stop after the first chunk if fewer than this share of its explanations are usable; with on_unfinished keep, only
    if none can be written. 0: never."""
    rows_per_chunk: int = 256
    """Rows per chunk, which are explained together and then saved."""
    seed: int = 42
    """Seed of sampling, 0 to 2**31 - 1; with the numbers of row and sample it gives each explanation's own seed."""
    dtype: RunDtype = "auto"
    """Dtype of weights and activations. auto: float32 on a CPU, bfloat16 on a GPU."""
    max_prompt_length: int = 16384
    """Maximum length of the teacher's prompt, which includes question and solution, tokens; longer ones are skipped and
    counted."""
    max_completion_length: int = 16384
    """Maximum length of an explanation, tokens; longer ones are cut off. The default takes at most half of the model's
    positions."""
    temperature: float = 0.7
    """Sampling temperature, no unit. 0: greedy."""
    sampler: SamplerConfig = SamplerConfig()
    """How explanations are sampled."""
    vllm_gpu_memory_utilization: MayChange[float] = 0.55
    """Share of the GPU's memory for a vLLM engine, in (0, 1]; no effect with the native sampler."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward; no effect without a student."""
    score_batch_size: MayChange[int] = 8
    """As many tokens per forward pass, when teacher and student score, as this many of the longest rows have. Changes
    memory, not results."""
    logprob_chunk: MayChange[int] = 1024
    """Chunk size for logits over the vocabulary, tokens. Changes memory, not results."""


def check_generate_config(config: GenerateConfig) -> None:
    """Reject inconsistent settings.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    check_problems(config, _generate_problems)


def _generate_problems(config: GenerateConfig) -> Iterator[str]:
    yield from text_problems(
        {
            "teacher": (config.teacher, "a model folder or hub name"),
            "student": (config.student, "a model folder or hub name, or None for no rewards"),
            "data.path": (config.data.path, "a hub name, folder or file"),
            "data.split": (config.data.split, "the name of a split, such as train"),
            "data.subset": (config.data.subset, "the name of a subset, or None"),
            "out": (config.out, "a file to write"),
        }
    )
    yield from column_problems(config.data, "data.")
    yield from sampling_problems(
        config,
        positive={
            "rows_per_chunk": config.rows_per_chunk,
            "max_prompt_length": config.max_prompt_length,
            "max_completion_length": config.max_completion_length,
            "score_batch_size": config.score_batch_size,
            "logprob_chunk": config.logprob_chunk,
        },
    )
    if config.redraws < 0:
        yield f"redraws={config.redraws}: expected a positive whole number, or 0 for none"
    if not 0 <= config.min_usable <= 1:
        yield f"min_usable={config.min_usable:g}: expected a share from 0 to 1"
    if config.temperature == 0 and config.redraws > 0:
        yield "temperature=0 with redraws: sampling again would give the same text: add --redraws 0"
    yield from reward_problems(config.reward)
