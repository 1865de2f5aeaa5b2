"""The order of a run's questions: seeded, and a pure function of the step, so a resumed run continues it.

Departures from the original:
- Permutations come from NumPy's generator seeded by (seed, permutation number), not from torch's global state.
- Fewer rows than a step needs are an error: the original then yields nothing and ends silently.
"""

from collections.abc import Sequence

import numpy as np

from rlt_jax.errors import UserError


def chunked_order(
    permutations: Sequence[Sequence[int] | np.ndarray], *, batch_size: int, mini_repeat_count: int, repeat_count: int
) -> np.ndarray:
    """One pass of the original's repeating sampler.

    The permutations are joined and split into chunks of `batch_size` (an incomplete last one is dropped). Each chunk
    appears `repeat_count` times, each of its rows `mini_repeat_count` times in a row.

    Returns:
      i64[N] row numbers.
    """
    joined = np.concatenate([np.asarray(permutation, np.int64) for permutation in permutations])
    chunks = joined[: len(joined) // batch_size * batch_size].reshape(-1, batch_size)
    return np.tile(np.repeat(chunks, mini_repeat_count, axis=1), (1, repeat_count)).reshape(-1)


def questions_of_step(
    step: int, *, num_rows: int, questions_per_step: int, seed: int, artificial_epochs: int = 1
) -> np.ndarray:
    """The rows of step `step` (from 0); a pure function of the arguments.

    An epoch is `artificial_epochs` permutations, joined and split into steps; the remainder is dropped.

    Returns:
      i64[questions_per_step] row numbers.
    Raises:
      UserError: an epoch has fewer rows than one step needs.
    """
    available = num_rows * artificial_epochs
    steps_per_epoch = available // questions_per_step
    if steps_per_epoch == 0:
        needed = -(-questions_per_step // max(num_rows, 1))
        raise UserError(
            f"expected at least {questions_per_step} rows for one step, but there are {num_rows} x "
            f"{artificial_epochs} artificial epochs: lower train_batch_size / num_generations to at most {available}, "
            f"set artificial_epochs to {needed} or more, or give more rows"
        )
    epoch, chunk = divmod(step, steps_per_epoch)
    permutations = [
        np.random.default_rng((seed, epoch * artificial_epochs + i)).permutation(num_rows)
        for i in range(artificial_epochs)
    ]
    order = chunked_order(permutations, batch_size=questions_per_step, mini_repeat_count=1, repeat_count=1)
    return order[chunk * questions_per_step : (chunk + 1) * questions_per_step]
