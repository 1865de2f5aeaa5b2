"""Terms that join the paper's reward, each with a weight of its own: pure functions of arrays on the host, in numpy.

A term is what its weight multiplies: larger is better, f32[B]. `rewards/rlt.py` adds those whose weight is not 0.
"""

import chex
import numpy as np

from rlt_jax.types import Likelihood


def likelihood(solution_logps: np.ndarray, solution_mask: np.ndarray, *, kind: Likelihood) -> np.ndarray:
    """How likely the student finds the solution (arXiv 2602.03979 compares these), per row with M tokens x_t:

        logp            sum_t log p(x_t)                 nats
        logp_per_token  1/M sum_t log p(x_t)             nats per token
        prob            prod_t p(x_t)                    0 to 1
        prob_per_token  (prod_t p(x_t))^(1/M)            0 to 1, the geometric mean

    Args:
      solution_logps: f32[B, M] nats, the student's log-probs of the solution's tokens.
      solution_mask: bool[B, M], True on those tokens; each row has one.
    Returns:
      f32[B].
    Raises:
      ValueError: a row without tokens.
    """
    chex.assert_rank([solution_logps, solution_mask], 2)
    chex.assert_equal_shape([solution_logps, solution_mask])
    mask = np.asarray(solution_mask, bool)
    tokens = mask.sum(axis=1)
    if not tokens.all():
        raise ValueError(f"row {int(np.argmin(tokens))} has no token of a solution: expected one or more in each")
    total = np.where(mask, solution_logps, 0.0).sum(axis=1, dtype=np.float64)
    logps = total / tokens if kind in ("logp_per_token", "prob_per_token") else total
    return np.asarray(np.exp(logps) if kind in ("prob", "prob_per_token") else logps, np.float32)


def copy_penalty(copy_rates: np.ndarray) -> np.ndarray:
    """r = -c, for the share c of the explanation's tokens that are copied from the solution (`ScoreRow.copy_rate`).

    Args:
      copy_rates: f32[B], 0 to 1.
    """
    return _rates(copy_rates)


def repetition_penalty(repeat_rates: np.ndarray) -> np.ndarray:
    """r = -c, for the share c of the explanation's tokens that it held before (`ScoreRow.repeat_rate`).

    Args:
      repeat_rates: f32[B], 0 to 1.
    """
    return _rates(repeat_rates)


def length_target(tokens: np.ndarray, *, low: int, high: int | None, slack: int) -> np.ndarray:
    """r = -min(d / slack, 1), for the distance d of the length n from the range: low - n below it, n - high above it.

    Args:
      tokens: i32[B], of each explanation's thought.
      low, high: the range in which r is 0, tokens; high None: no upper end.
      slack: how far outside of the range the penalty is full, tokens.
    """
    chex.assert_rank(tokens, 1)
    below = np.maximum(low - tokens, 0)
    above = np.zeros_like(below) if high is None else np.maximum(tokens - high, 0)
    return np.asarray(-np.minimum((below + above) / slack, 1.0), np.float32)


def soft_overlong(tokens: np.ndarray, *, longest: int, buffer: int) -> np.ndarray:
    """The soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13), for a completion of n tokens:

        r = 0                                n <= longest - buffer
            (longest - buffer - n) / buffer  in between
            -1                               n > longest

    Args:
      tokens: i32[B], of each completion, with its tags and EOS.
      longest: tokens; in a run its max_completion_length, at which completions are cut off.
      buffer: over how many tokens the penalty grows.
    """
    chex.assert_rank(tokens, 1)
    return np.asarray(-np.clip((tokens - (longest - buffer)) / buffer, 0.0, 1.0), np.float32)


def _rates(rates: np.ndarray) -> np.ndarray:
    chex.assert_rank(rates, 1)
    return np.asarray(-np.asarray(rates), np.float32)
