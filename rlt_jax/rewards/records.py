"""Metrics and readable records of a step's completions and rewards, shared by training and evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np

from rlt_jax.data import ChatFormat, score_row_from_trace
from rlt_jax.rewards.metrics import completion_metrics, reward_metrics
from rlt_jax.rewards.scorer import Scored
from rlt_jax.types import Completion, Prompt


def rollout_metrics(
    scored: Scored, completions: Sequence[Completion], chat: ChatFormat, *, num_generations: int
) -> dict[str, float]:
    """Reward, components, lengths, matches, copy and repeat rates of B completions (see docs/metrics.md)."""
    return reward_metrics(scored.rewards.reward, scored.rewards.components, num_generations) | completion_metrics(
        lengths=np.array([len(completion.token_ids) for completion in completions]),
        finished=np.array([completion.finished for completion in completions]),
        matched=np.array([row.matched for row in scored.rows]),
        copy_rates=np.array([row.copy_rate for row in scored.rows]),
        repeat_rates=np.array([row.repeat_rate for row in scored.rows]),
        trace_copy_rates=_trace_copy_rates(scored.prompts, chat),
    )


def sample_records(
    scored: Scored, completions: Sequence[Completion], *, probability: float, seed: tuple[int, int]
) -> Iterator[dict[str, object]]:
    """Records of some completions for completions.jsonl, each chosen with the given probability."""
    chosen = np.random.default_rng(seed).random(len(completions)) < probability
    for i, (prompt, row, completion) in enumerate(zip(scored.prompts, scored.rows, completions)):
        if chosen[i]:
            yield {
                "row": prompt.row.number,
                "question": prompt.row.question,
                "solution": prompt.row.solution,
                "explanation": row.explanation,
                "matched": row.matched,
                "finished": completion.finished,
                "tokens": len(completion.token_ids),
                "copy_rate": row.copy_rate,
                "repeat_rate": row.repeat_rate,
                "weight_version": completion.weight_version,
                "reward": scored.rewards.reward[i],
                **{name: values[i] for name, values in scored.rewards.components.items()},
            }


def _trace_copy_rates(prompts: Sequence[Prompt], chat: ChatFormat) -> np.ndarray:
    """Copy rates f64[B] that the rows' own traces would have as completions; NaN for rows without a trace."""
    rates: dict[int, float] = {}
    for prompt in prompts:
        if prompt.row.number not in rates:
            scored = score_row_from_trace(prompt, chat)
            rates[prompt.row.number] = np.nan if scored is None else scored.copy_rate
    return np.array([rates[prompt.row.number] for prompt in prompts])
