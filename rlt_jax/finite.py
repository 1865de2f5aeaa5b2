"""Numbers that must be finite: the error that names the culprit, and what finds it in arrays.

A number that is NaN or infinite spoils all that is computed with it, and a weight that it reaches is lost for good. So
weights are checked where they are loaded, and every number of a gradient step before the step changes anything.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.errors import UserError

Tree = Any  # nested arrays

MOST_SHOWN = 3  # rows or tensors in one message


class NotFinite(UserError):
    """Numbers that are NaN or infinite, of a model, a batch or a gradient. The message is the culprit.

    In a step of training, the step is skipped (`runs/skipping.py`). Elsewhere it ends the command, like any UserError.
    """

    culprit: str  # which model, which tensor or which log-probs, which row
    stage: str  # of a step: "score", "reference", "advantages", "gradients"; "" elsewhere
    values: Mapping[str, np.ndarray]  # what was computed, for a record; name -> array

    def __init__(self, culprit: str, *, values: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__(culprit)
        self.culprit = culprit
        self.stage = ""
        self.values = {} if values is None else values


@contextmanager
def stage(name: str, **known: np.ndarray) -> Iterator[None]:
    """Name the stage of a step in a NotFinite that leaves the `with`, and add what was known before to its values."""
    try:
        yield
    except NotFinite as fault:
        fault.stage = name
        fault.values = {**known, **fault.values}
        raise


def bad_rows(values: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """The indices of the rows that hold a number which is NaN or infinite.

    Args:
      values: B arrays of any shape, or one array of B rows.
    """
    return [i for i, row in enumerate(values) if not np.isfinite(row).all()]


def check_rows(
    values: Sequence[np.ndarray] | np.ndarray,
    what: str,
    *,
    name: Callable[[int], str],
    record: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Check that all rows are finite.

    Args:
      values: as in `bad_rows`.
      what: they are, such as "the student's log-probs".
      name: the name of a row, such as "row 3 (row 17 of the data)".
      record: values of the error.
    Raises:
      NotFinite: some are not; it says which, and what the first one holds.
    """
    if rows := bad_rows(values):
        first = np.ravel(values[rows[0]])
        found = first[~np.isfinite(first)][0]
        listed = ", ".join(name(i) for i in rows[:MOST_SHOWN])
        more = f" and {len(rows) - MOST_SHOWN} more" if len(rows) > MOST_SHOWN else ""
        raise NotFinite(f"{what}: {found} in {listed}{more}, of {len(values)}", values=record)


def largest(tree: Tree) -> jax.Array:
    """The largest magnitude f32[] in a tree of arrays; NaN if one of them holds a number that is not finite.

    Reads the arrays where they lie. Compiles one small program for a tree, and one for each shape in it.
    """
    # The maximum alone will not do: on a CPU, XLA's drops NaN. A number times 0 is NaN unless the number is finite. As
    # one program the two would take five times as long, because XLA fuses them and uses no vector instructions, and the
    # products of several arrays in one program would be stored.
    return _maximum(tree) + sum(map(_zero_if_finite, jax.tree.leaves(tree)))


@jax.jit
def _maximum(tree: Tree) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]))


@jax.jit
def _zero_if_finite(array: jax.Array) -> jax.Array:
    """0, or NaN if a number is not finite."""
    return jnp.sum(array.astype(jnp.float32) * 0)


def bits(array: np.ndarray) -> bytes:
    """The bytes of an array: equal only for the same bits, also where it holds NaN."""
    return np.ascontiguousarray(array).tobytes()
