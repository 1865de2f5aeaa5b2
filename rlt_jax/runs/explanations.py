"""Explanations of some rows, those that came out wrong sampled again, as lines of a data set."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlt_jax.configs import GenerateConfig
from rlt_jax.data import (
    ChatFormat,
    distillation_row,
    score_row_from_ids,
)
from rlt_jax.sampling.base import Sampler
from rlt_jax.sampling.factory import (
    sample_request,
    sampling_params,
)
from rlt_jax.types import Completion, Prompt, ScoreRow

CUT_OFF, NOT_CLOSED, UNREADABLE = "cut off", "tags not closed", "with a tag of the student's chat inside"


class Explanation(NamedTuple):
    """One drawn explanation of a row."""

    prompt: Prompt
    sample: int  # which of the row's
    draw: int  # tries before this one
    completion: Completion
    row: ScoreRow
    columns: dict[str, Any] | None  # of the data set; None: it cannot be a row of one
    problem: str | None  # why it should be drawn again


def sample_explanations(
    config: GenerateConfig, prompts: Sequence[Prompt], sampler: Sampler, chat: ChatFormat, ends: tuple[int, ...]
) -> tuple[list[Explanation], Counter[str]]:
    """Explanations of some rows by row and sample, those that came out wrong drawn again; and what became of them."""
    sampling = sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)
    found: dict[tuple[int, int], Explanation] = {}  # (index of the prompt, sample) -> its newest try
    missing = {i: list(range(config.samples)) for i in range(len(prompts))}
    counts: Counter[str] = Counter()
    for tries in range(config.redraws + 1):
        requests = [
            sample_request(
                prompts[i].teacher_ids, seed=config.seed, row=prompts[i].row.number, samples=samples, draw=tries
            )
            for i, samples in missing.items()
        ]
        counts["drawn again"] += sum(map(len, missing.values())) if tries else 0
        for (i, samples), completions in zip(missing.items(), sampler.generate(requests, sampling)):
            for sample, completion in zip(samples, completions):
                found[i, sample] = _explanation(prompts[i], sample, tries, completion, chat, ends)
        missing = {
            i: wrong
            for i, samples in missing.items()
            if (wrong := [sample for sample in samples if found[i, sample].problem])
        }
    counts.update(it.problem for it in found.values() if it.problem is not None)
    kept = [
        it
        for _, it in sorted(found.items())
        if it.problem is None or (config.on_unfinished == "keep" and it.columns is not None)
    ]
    counts["dropped"] += len(found) - len(kept)
    return kept, counts


def _explanation(
    prompt: Prompt, sample: int, draw: int, completion: Completion, chat: ChatFormat, ends: tuple[int, ...]
) -> Explanation:
    row = score_row_from_ids(prompt, completion.token_ids, chat, ends)
    columns = distillation_row(prompt.row, row.explanation, chat)
    problem = None
    if not completion.finished:
        problem = CUT_OFF
    elif not row.matched:
        problem = NOT_CLOSED
    elif columns is None:
        problem = UNREADABLE
    return Explanation(prompt, sample, draw, completion, row, columns, problem)


def explanation_record(explanation: Explanation) -> dict[str, Any]:
    """A line of the data set, without scores."""
    assert explanation.columns is not None  # draw leaves out what is no row
    return explanation.columns | {
        "sample": explanation.sample,
        "draw": explanation.draw,
        "matched": explanation.row.matched,
        "finished": explanation.completion.finished,
        "tokens": len(explanation.completion.token_ids),
        "copy_rate": explanation.row.copy_rate,
        "repeat_rate": explanation.row.repeat_rate,
    }


def describe_problems(counts: Counter[str]) -> str:
    """Why explanations could not be used: `3 cut off, 1 tags not closed`."""
    return ", ".join(f"{counts[problem]} {problem}" for problem in (CUT_OFF, NOT_CLOSED, UNREADABLE) if counts[problem])
