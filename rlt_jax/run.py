"""What the commands share: run folder, compilation cache, tokenizer and layout, models, rows, compile counting."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.monitoring
import jax.numpy as jnp
import psutil
from jax._src import xla_bridge  # the one way to ask whether JAX has started without starting it

from rlt_jax.checkpoint import Arrays, CheckpointManager, restore_checkpoint
from rlt_jax.configs import DataConfig, SftConfig, TrainConfig
from rlt_jax.data import (
    STUDENT_PROMPT,
    TEACHER_PROMPT,
    Layout,
    TagFormat,
    build_prompts,
    check_same_tokenizer,
    describe_skipped,
    load_rows,
    load_tokenizer,
    read_prompt_file,
    tags_of,
)
from rlt_jax.errors import UserError
from rlt_jax.memory.ledger import GB, Ledger
from rlt_jax.memory.monitor import PeakMonitor, card_reader
from rlt_jax.memory.pinned import LIMIT_VARIABLE, pool_limit_gib
from rlt_jax.models import Model, Params, load_model
from rlt_jax.placement import card, move_to_host, pinned_host
from rlt_jax.planning import ledger_lines, shortfalls
from rlt_jax.report.progress import ProgressDisplay
from rlt_jax.report.timing import PhaseClock
from rlt_jax.report.writer import Writer, open_writer
from rlt_jax.types import Prompt, Row

log = logging.getLogger("rlt_jax")

Resume = Literal["auto", "never", "must"]


def open_run_folder(path: str, *, resume: Resume) -> Path:
    """Make the run folder, or check that it may be continued.

    Raises:
      UserError: it cannot be made or read; `resume="must"` and it holds no checkpoint; `resume="never"` and it holds
        anything but logs.
    """
    folder = Path(path)
    checkpoints = folder / "checkpoints"
    try:
        has_checkpoint = checkpoints.is_dir() and any(child.name.isdigit() for child in checkpoints.iterdir())
        if resume == "must" and not has_checkpoint:
            raise UserError(
                f"--resume must: no checkpoint under {checkpoints}: start without it, or check --output-dir"
            )
        # logs alone are what a start leaves that was refused for its models or data
        if resume == "never" and folder.is_dir() and any(child.name != "logs" for child in folder.iterdir()):
            raise UserError(f"--resume never: {folder} is not empty: choose another --output-dir, or delete it")
        if resume == "auto" and not has_checkpoint and (folder / "metrics.jsonl").exists():
            log.warning("%s holds a run without a checkpoint: starting anew, its metrics are replaced", folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be used ({error.strerror}): choose another folder") from None
    return folder


def continue_run(
    checkpoints: CheckpointManager, *, like: Arrays, fresh: Callable[[], Arrays], seed: int, max_steps: int
) -> tuple[Arrays, int]:
    """(arrays of the newest checkpoint, its step), or (fresh arrays, 0) where there is none yet.

    Args:
      like: shapes and places of the arrays. Fresh ones beside restored ones could take twice the memory.
    Raises:
      UserError: the checkpoint is damaged or not of this run (see `restore_checkpoint`).
    """
    if checkpoints.latest_step() is None:
        return fresh(), 0
    arrays, facts = restore_checkpoint(checkpoints, like, seed=seed, max_steps=max_steps)
    log.info("continuing from step %d", facts["step"])
    if facts["step"] == max_steps:
        log.info("the run is finished: raise --max-steps to go on, or choose another --output-dir for a new one")
    return arrays, facts["step"]


def share_card() -> None:
    """Let JAX return freed memory to the driver, so that others on the same card find it. Before JAX starts.

    JAX's own pool would take three quarters of the card at once, and would never give back what it has grown to.

    Raises:
      UserError: the environment says otherwise, or JAX started otherwise before.
    """
    _set_before_jax({"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_ALLOCATOR": "platform"})


def limit_pinned_memory(num_bytes: int) -> None:
    """Let JAX's pool of pinned host memory hold `num_bytes` and take hardly more from the system. Before JAX starts.

    Raises:
      UserError: JAX started before with too small a pool, or the environment gives it one.
    """
    limit = pool_limit_gib(num_bytes)
    given = os.environ.get(LIMIT_VARIABLE)
    if given is not None and given.isdigit() and int(given) >= limit:
        return
    _set_before_jax({LIMIT_VARIABLE: str(limit)})


def _set_before_jax(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        given = os.environ.get(name)
        if given is not None and given.lower() != value:
            raise UserError(f"{name}={given} in the environment: this run needs {name}={value}: unset it, or set that")
        if given is None and xla_bridge.backends_are_initialized():
            raise UserError(
                f"JAX has started without {name}={value}, which this run needs: set it in the environment, or call "
                "rlt_jax before anything else that computes with JAX"
            )
        os.environ[name] = value


def prepare_memory(*, shared: bool, pinned_bytes: int) -> None:
    """Set JAX's memory up for a run on a card, before JAX starts.

    JAX takes what it needs instead of three quarters of the card. Where others use the card in turn, what is freed
    goes back to the driver; what is pinned fits its pool.

    Args:
      shared: others use the card in turn.
      pinned_bytes: that the run keeps in pinned host memory.
    Raises:
      UserError: as `share_card` and `limit_pinned_memory`.
    """
    if card_reader() is None:
        return
    if shared or pinned_bytes:
        share_card()
    else:  # as it is needed, so that NVML's peaks are the run's and another process finds the rest
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if pinned_bytes:
        limit_pinned_memory(pinned_bytes)


def say_plan(config: TrainConfig, planned: Ledger) -> None:
    """Log what a run with a budget will take of the card, and what of it does not fit."""
    if config.budget_gb is None or card_reader() is None:
        return
    for line in ledger_lines(planned):
        log.info(line)
    host = config.host_gb * GB if config.host_gb is not None else psutil.virtual_memory().available
    for line in shortfalls(planned, card_bytes=config.budget_gb * GB, host_bytes=host):
        log.warning("%s: `python -m rlt_jax.plan` says what to lower", line)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/rlt_jax/xla."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "rlt_jax" / "xla"))
    # all of them: the many small ones together take as long as a large one
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class CompileCounter:
    """Counts the programs JAX compiled (or fetched from the compilation cache) since the process started."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1


@contextmanager
def _phase(name: str, clock: PhaseClock, monitor: PeakMonitor, progress: ProgressDisplay) -> Iterator[None]:
    progress.phase(name)
    with clock.phase(name), monitor.phase(name):
        yield


def phases(
    clock: PhaseClock, monitor: PeakMonitor, progress: ProgressDisplay
) -> Callable[[str], AbstractContextManager[None]]:
    """`phase(name)`: a `with` that times the phase, watches its memory and shows its name."""
    return partial(_phase, clock=clock, monitor=monitor, progress=progress)


def open_run_writer(run_dir: Path, config: TrainConfig | SftConfig, *, resume_step: int) -> Writer:
    """The writer of a run's metrics, to the places that config.log names."""
    return open_writer(
        run_dir,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        wandb_project=config.log.wandb_project,
        config=asdict(config),
        resume_step=resume_step,
    )


def load_layout(
    teacher: str,
    student: str,
    *,
    tags: TagFormat,
    teacher_prompt_file: str | None,
    student_prompt_file: str | None,
) -> Layout:
    """Tokenizer, tags and prompts of a run. The student must share the teacher's tokenizer: token ids go through."""
    tokenizer = load_tokenizer(teacher)
    if student != teacher:
        check_same_tokenizer(tokenizer, load_tokenizer(student))
    return Layout(
        tokenizer,
        tags_of(tags),
        teacher_prompt=read_prompt_file(teacher_prompt_file) if teacher_prompt_file else TEACHER_PROMPT,
        student_prompt=read_prompt_file(student_prompt_file) if student_prompt_file else STUDENT_PROMPT,
        student_prompt_overrides_rows=student_prompt_file is not None,
    )


def load_fitting_model(
    path: str, layout: Layout, *, dtype: Literal["auto", "bfloat16", "float32"]
) -> tuple[Model, Params]:
    """`load_model`, of a model that has an embedding for every token of the run's tokenizer.

    Raises:
      UserError: it has fewer (a lookup outside the table would read another token's row), or cannot be loaded.
    """
    model, params = load_model(path, dtype=dtype)
    if len(layout.tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{path}: expected embeddings for the {len(layout.tokenizer)} tokens of its tokenizer, but config.json has "
            f"vocab_size={model.config.vocab_size}: give the tokenizer that belongs to the model"
        )
    return model, params


def load_reference(config: TrainConfig, teacher: Model, params: Params) -> Params:
    """Parameters of the reference, which the teacher's model computes with and which is mixed with the teacher's.

    Args:
      params: the teacher's, as loaded; the reference gets arrays of its own, as the policy's are donated.
    Raises:
      UserError: it is of another architecture than the teacher, or cannot be loaded.
    """
    if config.reference_model == config.teacher:
        return place_frozen(config, params, copy=True)
    model, own = load_model(config.reference_model, dtype=config.dtype)
    ours, its = asdict(teacher.config), asdict(model.config)
    free = {"max_position_embeddings", "initializer_range", "source"}  # what neither shapes nor computation depend on
    different = [
        f"{name}={its[name]} (teacher: {ours[name]})" for name in ours if name not in free and its[name] != ours[name]
    ]
    if different:
        raise UserError(
            f"--reference {config.reference}: expected the teacher's architecture, but it has "
            f"{', '.join(different)}: give a model of the teacher's kind, or leave the flag out for the teacher itself"
        )
    return place_frozen(config, own)


def place_frozen(config: TrainConfig, params: Params, *, copy: bool = False) -> Params:
    """A frozen model's parameters where the configuration keeps them.

    Args:
      copy: leave `params` as they are; else they are moved.
    """
    if config.memory.frozen == "card":
        return jax.device_put(jax.tree.map(jnp.copy, params) if copy else params, card())
    return jax.device_put(params, pinned_host()) if copy else move_to_host(params)


def frozen_like(config: TrainConfig, params: Params) -> Params:
    """Shapes and places of a frozen model of the same architecture, for a checkpoint to be restored into."""
    place = card() if config.memory.frozen == "card" else pinned_host()
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), params)


def check_room(model: Model, prompts: Sequence[Prompt], config: TrainConfig) -> None:
    """Refuse completions that would not fit behind the longest prompt, now and not at the step that draws it.

    Raises:
      UserError: prompt and completion may be longer than the model has positions.
    """
    check_positions(
        model,
        max(len(prompt.teacher_ids) for prompt in prompts),
        max_completion_length=config.max_completion_length,
        name=config.teacher,
        hint=", or max_prompt_length to skip the longest prompts",
    )


def check_positions(model: Model, longest: int, *, max_completion_length: int, name: str, hint: str = "") -> None:
    """`check_room` of any prompts, the longest of which has `longest` tokens.

    Args:
      name: of the model, for the message.
      hint: what else there is to do.
    """
    positions = model.config.max_position_embeddings
    if longest + max_completion_length > positions:
        raise UserError(
            f"max_completion_length={max_completion_length} after the longest prompt of {longest} tokens: "
            f"expected at most the {positions} positions that {name} was made for: lower max_completion_length{hint}"
        )


def load_split_rows(data: DataConfig) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """(rows to train on, held-out rows). Without a held-out source the last `eval_rows` of the training split are it.

    Raises:
      UserError: the sources cannot be read, or hold fewer held-out rows than asked for.
    """
    rows = load_rows(data.path, split=data.split, on_bad_row=data.on_bad_row).rows
    if data.eval_rows == 0:
        return rows, ()
    if data.eval_path is None and data.eval_split is None:
        if data.eval_rows >= len(rows):
            raise UserError(
                f"data.eval_rows={data.eval_rows}: expected fewer than the {len(rows)} rows of {data.path}, which they "
                "are taken from: lower it, or give --data.eval-path"
            )
        return rows[: -data.eval_rows], rows[-data.eval_rows :]
    source, split = data.eval_path or data.path, data.eval_split or "train"
    held_out = load_rows(source, split=split, on_bad_row=data.on_bad_row).rows
    if data.eval_rows > len(held_out):
        raise UserError(
            f"data.eval_rows={data.eval_rows}: expected at most the {len(held_out)} usable rows of {source} ({split}): "
            "lower it"
        )
    return rows, held_out[: data.eval_rows]


def load_prompts(config: TrainConfig, layout: Layout) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """(prompts to train on, held-out prompts); rows whose prompt is too long are skipped and counted in the log."""
    rows, held_out = load_split_rows(config.data)

    def built(part: tuple[Row, ...], name: str) -> tuple[Prompt, ...]:
        if not part:
            return ()
        done = build_prompts(
            part, layout, max_prompt_length=config.max_prompt_length, truncate=config.data.truncate_prompts
        )
        if done.skipped:
            log.warning("%d %s rows skipped: %s", len(done.skipped), name, describe_skipped(done.skipped))
        log.info("%d %s prompts", len(done.prompts), name)
        return done.prompts

    return built(rows, "training"), built(held_out, "held-out")
