"""Metrics of one batch, computed from its arrays. Names, meanings and units: docs/metrics.md.

Departure from the original: with one completion per question there is no spread within a group, so the two metrics
about it are left out (the original logs NaN).
"""

from collections.abc import Mapping

import numpy as np

EQUAL_REWARDS = 1e-3  # rewards of one text differ by less: rounding depends on the batch that it is scored in


def reward_metrics(rewards: np.ndarray, components: Mapping[str, np.ndarray], num_generations: int) -> dict[str, float]:
    """Mean reward, its spread within groups, and the mean of each component.

        reward_std = mean_g std_{i in g}(r_i),   std unbiased (n - 1), as the original logs it

    Args:
      rewards: f32[B], groups of `num_generations` consecutive rows, one group per question.
      components: name -> f32[B], the components of the reward.
      num_generations: completions per question.
    Returns:
      `reward`, `component/NAME`, and only when num_generations > 1 `reward_std`, `zero_spread_share` and
      `near_zero_spread_share`.
    Raises:
      ValueError: no rewards, a batch that is not whole groups, or a component of another length.
    """
    values = _vector("rewards", rewards)
    if num_generations < 1 or values.size % num_generations:
        raise ValueError(f"{values.size} rewards are not whole groups of num_generations={num_generations}")
    metrics = {"reward": float(values.mean())}
    if num_generations > 1:
        groups = values.reshape(-1, num_generations)
        metrics["reward_std"] = float(groups.std(axis=1, ddof=1).mean())
        # max == min, not std == 0: rounding in the mean leaves a tiny std where all rewards are equal
        spread = groups.max(axis=1) - groups.min(axis=1)
        metrics["zero_spread_share"] = float((spread == 0).mean())
        metrics["near_zero_spread_share"] = float((spread < EQUAL_REWARDS).mean())
    for name, component in components.items():
        metrics[f"component/{name}"] = float(_vector(name, component, size=values.size).mean())
    return metrics


def completion_metrics(
    lengths: np.ndarray,
    finished: np.ndarray,
    matched: np.ndarray,
    copy_rates: np.ndarray,
    repeat_rates: np.ndarray,
    *,
    trace_copy_rates: np.ndarray | None = None,
) -> dict[str, float]:
    """Lengths of the completions, and how many were cut off, closed their tags, copy or repeat.

    Args:
      lengths: i32[B], tokens sampled, EOS included.
      finished: bool[B], True: ended by EOS.
      matched: bool[B], True: the explanation's tags were closed.
      copy_rates: f32[B], share of explanation tokens inside a run of >= 8 tokens that also occurs in the solution.
      repeat_rates: f32[B], the same for runs that occurred earlier in the explanation itself.
      trace_copy_rates: f32[B], the copy rates of the rows' own reasoning traces; NaN where a row has none.
    Returns:
      `completion_length/min|mean|max`, `cut_off_share`, `match_rate`, `copy_rate`, `repeat_rate`, and `trace_copy_rate`
      if any row has a trace: the copy rate of an honest explanation of these rows.
    Raises:
      ValueError: no completions, or arrays of unequal length.
    """
    tokens = _vector("lengths", lengths)
    metrics = {
        "completion_length/min": float(tokens.min()),
        "completion_length/mean": float(tokens.mean()),
        "completion_length/max": float(tokens.max()),
        "cut_off_share": 1.0 - float(_vector("finished", finished, size=tokens.size).mean()),
        "match_rate": float(_vector("matched", matched, size=tokens.size).mean()),
        "copy_rate": float(_vector("copy_rates", copy_rates, size=tokens.size).mean()),
        "repeat_rate": float(_vector("repeat_rates", repeat_rates, size=tokens.size).mean()),
    }
    if trace_copy_rates is not None:
        traces = _vector("trace_copy_rates", trace_copy_rates, size=tokens.size)
        if not np.isnan(traces).all():
            metrics["trace_copy_rate"] = float(np.nanmean(traces))
    return metrics


def eval_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Rename metrics for held-out prompts: `reward` -> `eval/reward`."""
    return {f"eval/{name}": value for name, value in metrics.items()}


def _vector(name: str, values: np.ndarray, *, size: int | None = None) -> np.ndarray:
    """Check the shape and convert to f64[B], so that a mean over thousands of float32 rewards loses no precision."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0 or (size is not None and vector.size != size):
        expected = "one dimension, at least one value" if size is None else f"shape ({size},)"
        raise ValueError(f"{name}: expected {expected}, got shape {vector.shape}")
    return vector
