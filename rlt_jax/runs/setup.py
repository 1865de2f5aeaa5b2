"""Loads and checks what a command needs before it starts: models, samplers, rows, prompts."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from rlt_jax.configs import DataConfig, EvaluateConfig, GenerateConfig, TrainConfig
from rlt_jax.data import (
    ChatFormat,
    Lazily,
    Room,
    build_prompts,
    describe_skipped,
    eos_ids,
    known_ids,
    questions_of_step,
)
from rlt_jax.device.monitor import gpu_memory_reader
from rlt_jax.device.placement import device_memory, move_to_host, pinned_host
from rlt_jax.errors import UserError
from rlt_jax.models import Model, Params, load_model, read_config, resolve_folder
from rlt_jax.planner.ledger import Ledger
from rlt_jax.planner.run_plan import ledger_lines, shortfalls
from rlt_jax.report.counting import counting
from rlt_jax.runs.announce import train_lines
from rlt_jax.runs.rows import load_data_rows
from rlt_jax.sampling.base import Sampler
from rlt_jax.sampling.engine import Engine
from rlt_jax.sampling.factory import SamplerSettings, make_sampler
from rlt_jax.types import GB, Prompt, Row, StoredDtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Texts = TypeVar("Texts", GenerateConfig, EvaluateConfig)
CompareRows = Callable[[Sequence[Row], Sequence[Row]], None]

log = logging.getLogger("rlt_jax")

MOST_HELD_OUT = 128  # rows, where the user gives no number


def log_plan(config: TrainConfig, planned: Ledger) -> None:
    """Log the GPU memory that a run with a budget will use, and warn of what does not fit."""
    if config.budget_gb is None or gpu_memory_reader() is None:
        return
    for line in ledger_lines(planned):
        log.info(line)
    host = config.host_gb * GB if config.host_gb is not None else psutil.virtual_memory().available
    for line in shortfalls(planned, gpu_bytes=config.budget_gb * GB, host_bytes=host):
        log.warning("%s: `python -m rlt_jax.plan` says what to lower", line)


def load_checked_model(path: str, tokenizer: "PreTrainedTokenizerFast", *, dtype: StoredDtype) -> tuple[Model, Params]:
    """Load a model, and check that it has an embedding for every token of its tokenizer.

    Raises:
      UserError: it has fewer (a lookup outside the table would read another token's row), or cannot be loaded.
    """
    model, params = load_model(path, dtype=dtype)
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens > model.config.vocab_size:
        raise UserError(
            f"{path}: expected embeddings for the {tokens} tokens of its tokenizer, but config.json has "
            f"vocab_size={model.config.vocab_size}: give the tokenizer that belongs to the model"
        )
    return model, params


def chat_sampler(
    settings: SamplerSettings,
    engine: Engine | None,
    model: Model,
    params: Params,
    chat: ChatFormat,
    *,
    version: int,
    probe_ids: np.ndarray,
) -> Sampler:
    """A sampler of the model of `settings`, whose tokenizer is the chat's: it ends where a turn ends, and writes only
    tokens that the tokenizer knows. Arguments and errors as `make_sampler`.
    """
    return make_sampler(
        settings,
        engine,
        model,
        params,
        version=version,
        eos_ids=eos_ids(chat.tokenizer, settings.model),
        token_ids=known_ids(chat.tokenizer),
        probe_ids=probe_ids,
    )


def place_frozen(config: TrainConfig, params: Params, *, copy: bool = False) -> Params:
    """Put a frozen model's parameters where the configuration keeps them.

    Args:
      copy: copy `params`; else they are moved.
    """
    if config.memory.frozen == "device":
        return jax.device_put(jax.tree.map(jnp.copy, params) if copy else params, device_memory())
    return jax.device_put(params, pinned_host()) if copy else move_to_host(params)


def frozen_like(config: TrainConfig, params: Params) -> Params:
    """Shapes and shardings of a frozen model of the same architecture, to restore a checkpoint into."""
    sharding = device_memory() if config.memory.frozen == "device" else pinned_host()
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), params)


def model_positions(path: str) -> int:
    """How many tokens a model was made for, from its config.json."""
    return read_config(resolve_folder(path)).max_positions


def room_of(config: TrainConfig | GenerateConfig) -> Room:
    """The lengths that a run's models were made for."""
    teachers = {config.teacher}
    if isinstance(config, TrainConfig):
        teachers.add(config.reference_model)
    return Room(
        completion=config.max_completion_length,
        teacher=min(map(model_positions, teachers)),
        student=None if config.student is None else model_positions(config.student),
    )


def with_room(config: Texts, *, say: Callable[[str], None]) -> Texts:
    """The configuration, whose completions take half of the models' positions where nobody gave a length for them.

    Args:
      say: gets a line if the length is another one.
    """
    if isinstance(config, EvaluateConfig):
        models = [config.model]
    else:
        models = [config.teacher, *([] if config.student is None else [config.student])]
    half = min(map(model_positions, models)) // 2
    if config.max_completion_length != type(config).max_completion_length or config.max_completion_length <= half:
        return config
    say(f"note: max_completion_length={half}: half of the positions of {' and '.join(models)}")
    return replace(config, max_completion_length=half)


@dataclass(frozen=True)
class SplitRows:
    """The rows of a run."""

    train: tuple[Row, ...]  # to train on
    held_out: tuple[Row, ...]  # to evaluate on
    skipped: int  # unusable rows of the training split


def load_split_rows(data: DataConfig, *, evaluates: bool, with_traces: bool = False) -> SplitRows:
    """Rows to train on, and held-out rows. Without a held-out source, the last rows of the training split are.

    If `eval_rows` is None, a run that evaluates holds out up to MOST_HELD_OUT rows: those of the held-out source,
    without one a fifth of data.path's, at least 2.

    Args:
      evaluates: whether the run evaluates at all.
      with_traces: refuse a source without any reasoning trace.
    Raises:
      UserError: the sources cannot be read, or hold fewer held-out rows than asked for.
    """
    with counting("reading rows") as on_progress:
        loaded = load_data_rows(data, with_traces=with_traces, on_progress=on_progress)
    rows, skipped = loaded.rows, len(loaded.skipped)
    if data.eval_rows == 0 or (data.eval_rows is None and not evaluates):
        return SplitRows(rows, (), skipped)
    if data.eval_path is None and data.eval_split is None:
        count = min(max(len(rows) // 5, 2), MOST_HELD_OUT) if data.eval_rows is None else data.eval_rows
        if count >= len(rows):
            raise UserError(
                f"data.eval_rows={data.eval_rows}: expected fewer than the {len(rows)} rows of {data.path}, from which "
                + ("2 or more are taken: give more rows" if data.eval_rows is None else "they are taken: lower it")
                + ", or give --data.eval-path"
            )
        return SplitRows(rows[:-count], rows[-count:], skipped)
    source, split, subset = data.held_out_source
    held_out = load_data_rows(
        replace(data, path=source, split=split, subset=subset),
        flag=data.eval_subset_flag,
        with_traces=with_traces,
        what="held-out rows",
    ).rows
    count = min(len(held_out), MOST_HELD_OUT) if data.eval_rows is None else data.eval_rows
    if count > len(held_out):
        raise UserError(
            f"data.eval_rows={data.eval_rows}: expected at most the {len(held_out)} usable rows of {source} ({split}): "
            "lower it"
        )
    return SplitRows(rows, held_out[:count], skipped)


def warn_of_skipped(skipped: Sequence[tuple[int, str]], what: str) -> None:
    """Log how many rows are skipped, and why; nothing if none are.

    Args:
      skipped: (row number, reason).
      what: which rows they are, for the message.
    """
    if skipped:
        log.warning("%d %s skipped: %s", len(skipped), what, describe_skipped(skipped))


def load_prompts(
    config: TrainConfig, chat: ChatFormat, *, compare: CompareRows | None = None
) -> tuple[Lazily[Row, Prompt], tuple[Prompt, ...]]:
    """(prompts to train on, held-out prompts); rows that cannot be used are skipped and counted in the log.

    Args:
      compare: called with the rows to train on and those held out, before the work; may refuse them.
    Raises:
      UserError: the rows cannot be read, or none can be used.
    """
    split = load_split_rows(config.data, evaluates=config.eval_steps > 0)
    if compare is not None:
        compare(split.train, split.held_out)
    room = room_of(config)

    def build(part: tuple[Row, ...], name: str) -> Lazily[Row, Prompt]:
        with counting(f"preparing {name} rows", total=len(part)) as on_progress:
            built = build_prompts(
                part,
                chat,
                max_prompt_length=config.max_prompt_length,
                truncate=config.data.truncate_prompts,
                room=room,
                on_progress=on_progress,
            )
        warn_of_skipped(built.skipped, f"{name} rows")
        return built.prompts

    prompts = build(split.train, "training")
    # The held-out prompts are used in every evaluation: they stay tokenised.
    held_out = tuple(build(split.held_out, "held-out")) if split.held_out else ()
    lines = train_lines(
        config,
        chat,
        trained=len(prompts),
        skipped=split.skipped + len(split.train) - len(prompts),
        held_out=len(held_out),
        rows=split.train,
    )
    for line in lines:
        log.info(line)
    return prompts, held_out


def question_order(config: TrainConfig, count: int) -> Callable[[int], np.ndarray]:
    """The order of a run's prompts: step, from 0 -> their indices.

    Raises:
      UserError: there are too few for a step.
    """
    order = partial(
        questions_of_step,
        num_rows=count,
        questions_per_step=config.questions_per_draw,
        seed=config.seed,
        artificial_epochs=config.data.artificial_epochs,
    )
    order(0)
    return order
