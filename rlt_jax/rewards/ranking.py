"""Selects explanations by reward: the best of each question, then the best share of the whole data set.

Ties go to the earlier row, so that the same rewards always select the same rows.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def select_rows(
    rewards: np.ndarray,
    questions: Sequence[Hashable],
    *,
    best_of_question: int | None = None,
    top_fraction: float | None = None,
) -> np.ndarray:
    """Indices of the rows to keep, ascending: first the best of each question, then the best share of those.

    Args:
      rewards: f64[N], finite.
      questions: N keys, equal where rows explain the same question.
      best_of_question: rows to keep per question; all, if it has fewer. None: all.
      top_fraction: share to keep in (0, 1], rounded to the nearest whole number of rows and at least one. None: all.
    Returns:
      i64[K], indices into `rewards`.
    Raises:
      ValueError: a reward that is not finite, unequal lengths, or a number to keep that is out of range.
    """
    order = _best_first(rewards)
    if best_of_question is not None:
        if best_of_question < 1 or len(questions) != len(order):
            raise ValueError(
                f"expected best_of_question >= 1 and {len(order)} questions, got {best_of_question}, {len(questions)}"
            )
        seen: Counter[Hashable] = Counter()
        best = []
        for row in order:
            seen[questions[row]] += 1
            if seen[questions[row]] <= best_of_question:
                best.append(row)
        order = np.array(best, dtype=np.int64)
    if top_fraction is not None:
        if not 0 < top_fraction <= 1:
            raise ValueError(f"expected top_fraction in (0, 1], got {top_fraction}")
        order = order[: max(1, round(top_fraction * len(order)))]
    return np.sort(order)


def ranks(rewards: np.ndarray) -> np.ndarray:
    """Rank of each reward, 1 for the highest, without ties: f64[N] -> i64[N].

    Raises:
      ValueError: a reward that is not finite.
    """
    ranking = np.empty(len(rewards), dtype=np.int64)
    ranking[_best_first(rewards)] = np.arange(1, len(rewards) + 1)
    return ranking


def _best_first(rewards: np.ndarray) -> np.ndarray:
    """Indices i64[N] of the rewards from the highest to the lowest."""
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"expected finite rewards f64[N], got NaN, inf, or shape {values.shape}")
    return np.argsort(-values, kind="stable")
