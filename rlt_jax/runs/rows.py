"""The rows of a command's data, read from the columns that its settings name."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from rlt_jax.configs import DataConfig, RowsConfig, ScoreConfig
from rlt_jax.data import Columns, ExplainedRow, LoadedRows, Tags, load_explained_rows, load_rows
from rlt_jax.data.columns import as_flags, columns_named_by
from rlt_jax.errors import UserError

log = logging.getLogger("rlt_jax")


def as_settings(columns: Mapping[str, str]) -> str:
    """How the file of a study names columns: `data.solution_column: answer`."""
    return ", ".join(f"data.{part}_column: {column}" for part, column in columns.items())


def load_data_rows(
    data: DataConfig | RowsConfig,
    *,
    say: Callable[[str], None] = log.info,
    flag: str = "--data.subset",
    with_traces: bool = False,
    what: Literal["rows", "held-out rows"] = "rows",
    on_progress: Callable[[int], None] = lambda done: None,
) -> LoadedRows:
    """The rows of data.path, data.split and data.subset; arguments and errors as `load_rows`.

    Args:
      with_traces: refuse rows none of which has a reasoning trace; messages about columns name the trace's, too.
      what: the rows are, for the message.
    """
    columns = columns_named_by(data, spelled=partial(as_flags, prefix="data."))
    loaded = load_rows(
        data.path,
        split=data.split,
        subset=data.subset,
        columns=columns,
        parts=("question", "solution", "trace") if with_traces else ("question", "solution"),
        on_bad_row=data.on_bad_row,
        say=say,
        flag=flag,
        on_progress=on_progress,
    )
    if with_traces:
        _check_traces(loaded, data.path, what)
    return loaded


def load_rows_to_score(
    config: ScoreConfig,
    tags: Tags,
    *,
    say: Callable[[str], None] = log.info,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[tuple[ExplainedRow, ...], tuple[tuple[int, str], ...]]:
    """The rows of config.data with their explanations, and (row number, reason) for each other row.

    Raises:
      UserError: as `load_explained_rows`.
    """
    columns = Columns(
        question=config.question_column,
        solution=config.solution_column,
        system=config.system_column,
        explanation=config.explanation_column,
        completion=config.completion_column,
        spelled=partial(as_flags, prefix=""),
    )
    return load_explained_rows(
        config.data,
        tags,
        split=config.split,
        subset=config.subset,
        columns=columns,
        on_bad_row=config.on_bad_row,
        say=say,
        on_progress=on_progress,
    )


def _check_traces(loaded: LoadedRows, source: str, what: str) -> None:
    """Refuse rows none of which has a reasoning trace, and name the column that looks like it."""
    if all(row.reasoning_trace is None for row in loaded.rows):
        hint = f"add {loaded.trace_hint}, which looks right, or " if loaded.trace_hint else ""
        raise UserError(
            f"{source}: expected {what} with a reasoning trace, but none of {len(loaded.rows)} has one: {hint}give "
            "rows with a reasoning_trace"
        )
