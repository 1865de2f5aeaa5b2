"""Samples explanations of rows, resamples unusable ones, and turns them into lines of a data set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlt_jax.configs import GenerateConfig
from rlt_jax.data import (
    ChatFormat,
    distillation_row,
    judged,
    score_row_from_ids,
)
from rlt_jax.sampling.base import Sampler
from rlt_jax.sampling.factory import (
    sample_request,
    sampling_params,
)
from rlt_jax.types import Completion, Prompt, ScoreRow

CUT_OFF, NOT_CLOSED, FORGED = "cut off", "tags not closed", "with a tag of the chat inside"


class Explanation(NamedTuple):
    """One sampled explanation of a row."""

    prompt: Prompt
    sample: int  # its number among the row's samples
    draw: int  # earlier tries
    completion: Completion
    row: ScoreRow
    columns: dict[str, Any] | None  # of a data set; None: it cannot be a row of one
    problem: str | None  # why it is unusable; None: it is usable


def sample_explanations(
    config: GenerateConfig, prompts: Sequence[Prompt], sampler: Sampler, chat: ChatFormat, eos_ids: tuple[int, ...]
) -> tuple[list[Explanation], Counter[str]]:
    """Sample explanations, and resample unusable ones up to config.redraws times.

    Returns:
      The explanations to write, ordered by prompt and sample, and counts: of `resampled` and `dropped` ones, and of
      each problem after the last try.
    """
    sampling = sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)
    newest: dict[tuple[int, int], Explanation] = {}  # (index of the prompt, sample) -> last try
    missing = {i: list(range(config.samples)) for i in range(len(prompts))}
    counts: Counter[str] = Counter()
    for tries in range(config.redraws + 1):
        requests = [
            sample_request(
                prompts[i].teacher_ids, seed=config.seed, row=prompts[i].row.number, samples=samples, draw=tries
            )
            for i, samples in missing.items()
        ]
        counts["resampled"] += sum(map(len, missing.values())) if tries else 0
        for (i, samples), completions in zip(missing.items(), sampler.generate(requests, sampling)):
            for sample, completion in zip(samples, completions):
                newest[i, sample] = _explanation(prompts[i], sample, tries, completion, chat, eos_ids)
        missing = {
            i: unusable
            for i, samples in missing.items()
            if (unusable := [sample for sample in samples if newest[i, sample].problem])
        }
    counts.update(explanation.problem for explanation in newest.values() if explanation.problem is not None)
    kept = [
        explanation
        for _, explanation in sorted(newest.items())
        if explanation.problem is None or (config.on_unfinished == "keep" and explanation.columns is not None)
    ]
    counts["dropped"] += len(newest) - len(kept)
    return kept, counts


def _explanation(
    prompt: Prompt, sample: int, draw: int, completion: Completion, chat: ChatFormat, eos_ids: tuple[int, ...]
) -> Explanation:
    written = score_row_from_ids(prompt, completion.token_ids, chat, eos_ids)
    row = judged(written, chat)
    columns = distillation_row(prompt.row, row.explanation, chat)
    problem = None
    if not completion.finished:
        problem = CUT_OFF
    elif not written.matched:
        problem = NOT_CLOSED
    elif not row.matched or columns is None:
        problem = FORGED
    return Explanation(prompt, sample, draw, completion, row, columns, problem)


def explanation_record(explanation: Explanation) -> dict[str, Any]:
    """A line of the data set, without scores."""
    assert explanation.columns is not None  # sample_explanations drops the others
    return explanation.columns | {
        "sample": explanation.sample,
        "draw": explanation.draw,
        "matched": explanation.row.matched,
        "finished": explanation.completion.finished,
        "tokens": len(explanation.completion.token_ids),
        "copy_rate": explanation.row.copy_rate,
        "repeat_rate": explanation.row.repeat_rate,
    }


def count_unusable(counts: Mapping[str, int]) -> int:
    """How many explanations were unusable after the last try."""
    return sum(counts.get(problem, 0) for problem in (CUT_OFF, NOT_CLOSED, FORGED))


def describe_problems(counts: Mapping[str, int]) -> str:
    """Why explanations were unusable: `3 cut off, 1 tags not closed`."""
    return ", ".join(f"{counts[problem]} {problem}" for problem in (CUT_OFF, NOT_CLOSED, FORGED) if counts.get(problem))
