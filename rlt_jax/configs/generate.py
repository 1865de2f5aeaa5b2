"""What writing explanations for a data set can be told."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from rlt_jax.configs.checks import not_finite_problems, text_problems
from rlt_jax.configs.files import type_problems
from rlt_jax.configs.resume import MayChange
from rlt_jax.configs.sampling import sampling_problems
from rlt_jax.configs.schema import RewardConfig, SamplerConfig, reward_problems
from rlt_jax.errors import UserError
from rlt_jax.types import Dtype, TagFormat


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Rows to explain, and the prompts they are laid out with."""

    path: str
    """Rows with question and solution: a hub name, a local folder, or a .jsonl, .json or .parquet file."""
    split: str = "train"
    """Split of data.path."""
    tags: TagFormat = "bespoke"
    """Style of the tags: bespoke `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, r1 `<NAME>` ... `</NAME>`."""
    teacher_prompt_file: str | None = None
    """Text file with the teacher's system prompt: the one it was trained with. None: the default prompt."""
    student_prompt_file: str | None = None
    """Text file with the student's system prompt. None: the row's `system` column, else the default prompt."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with a row that cannot be used: skip it, with number, reason and a count, or stop."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Explanations for every row of a data set, as a data set to train a student on."""

    teacher: str
    """Model that explains: a local Hugging Face folder or a hub name."""
    student: str | None = None
    """Model that is asked how likely the solution is, for rewards: folder or hub name. None: no rewards."""
    data: RowsConfig
    """Rows to explain, and the prompts they are laid out with."""
    out: MayChange[str]
    """File to write, JSON Lines. It must not exist; OUT.partial keeps what is done, and a second start goes on."""
    samples: int = 1
    """Explanations per row."""
    redraws: int = 1
    """Further tries for an explanation that is cut off or does not close its tags, tries. 0: none."""
    on_unfinished: Literal["drop", "keep"] = "drop"
    """What to do with one that still is so after the last try: leave it out, or write it; both are counted."""
    rows_per_chunk: int = 256
    """Rows that are drawn together and then saved, rows."""
    seed: int = 42
    """Seed of sampling, 0 to 2**31 - 1; each explanation's own follows from it and from the row's number."""
    dtype: Dtype = "bfloat16"
    """Number format of weights and activations."""
    max_prompt_length: int = 16384
    """Longest teacher prompt, question and solution included, tokens; longer ones are skipped and counted."""
    max_completion_length: int = 16384
    """Explanations are cut off here, tokens."""
    temperature: float = 0.7
    """Sampling temperature, no unit. 0: the likeliest token each time."""
    sampler: SamplerConfig = SamplerConfig()
    """How explanations are drawn."""
    vllm_gpu_memory_utilization: MayChange[float] = 0.55
    """Share of the GPU for a vLLM engine, in (0, 1]; without effect on the native sampler."""
    reward: RewardConfig = RewardConfig()
    """The teacher's reward; without effect without a student."""
    score_batch_size: MayChange[int] = 8
    """Sequences per forward pass when teacher and student score. Changes memory, not results."""
    logprob_chunk: MayChange[int] = 1024
    """Tokens whose logits over the vocabulary are held at once, tokens. Changes memory, not results."""


def check_generate_config(config: GenerateConfig) -> None:
    """Stop if the explanations cannot be what the user wants.

    Raises:
      UserError: every inconsistency, one per line: what was expected, what came, what to do.
    """
    problems = type_problems(config) or list(not_finite_problems(asdict(config)))
    if not problems:
        problems = [*_generate_problems(config), *reward_problems(config.reward)]
    if problems:
        raise UserError("\n".join(problems))


def _generate_problems(config: GenerateConfig) -> Iterator[str]:
    yield from text_problems(
        {
            "teacher": (config.teacher, "a model folder or hub name"),
            "student": (config.student, "a model folder or hub name, or None for no rewards"),
            "data.path": (config.data.path, "a hub name, folder or file"),
            "data.split": (config.data.split, "the name of a split, such as train"),
            "out": (config.out, "a file to write"),
        }
    )
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
    if config.temperature == 0 and config.redraws > 0:
        yield "temperature=0 with redraws: a further try would give the same text: add --redraws 0"
