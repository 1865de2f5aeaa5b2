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
from rlt_jax.memory.monitor import PeakMonitor
from rlt_jax.models import Model, Params, load_model
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


def continue_run(checkpoints: CheckpointManager, arrays: Arrays, *, seed: int, max_steps: int) -> tuple[Arrays, int]:
    """(arrays of the newest checkpoint, its step), or (arrays as given, 0) where there is none yet.

    Raises:
      UserError: the checkpoint is damaged or not of this run (see `restore_checkpoint`).
    """
    if checkpoints.latest_step() is None:
        return arrays, 0
    arrays, facts = restore_checkpoint(checkpoints, arrays, seed=seed, max_steps=max_steps)
    log.info("continuing from step %d", facts["step"])
    if facts["step"] == max_steps:
        log.info("the run is finished: raise --max-steps to go on, or choose another --output-dir for a new one")
    return arrays, facts["step"]


def share_card() -> None:
    """Let JAX return freed memory to the driver, so that an engine on the same card finds it. Before JAX starts.

    JAX's own pool would take three quarters of the card at once, and would never give back what it has grown to.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")


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


def load_reference(config: TrainConfig, teacher: Model) -> Params:
    """Parameters of the reference, which the teacher's model computes with and which is mixed with the teacher's.

    Raises:
      UserError: it is of another architecture than the teacher, or cannot be loaded.
    """
    model, params = load_model(config.reference_model, dtype=config.dtype)
    ours, its = asdict(teacher.config), asdict(model.config)
    free = {"max_position_embeddings", "initializer_range", "source"}  # what neither shapes nor computation depend on
    different = [
        f"{name}={its[name]} (teacher: {ours[name]})" for name in ours if name not in free and its[name] != ours[name]
    ]
    if different:
        raise UserError(
            f"--reference {config.reference_model}: expected the teacher's architecture, but it has "
            f"{', '.join(different)}: give a model of the teacher's kind, or leave the flag out for the teacher itself"
        )
    return params


def check_room(model: Model, prompts: Sequence[Prompt], config: TrainConfig) -> None:
    """Refuse completions that would not fit behind the longest prompt, now and not at the step that draws it.

    Raises:
      UserError: prompt and completion may be longer than the model has positions.
    """
    longest, positions = max(len(prompt.teacher_ids) for prompt in prompts), model.config.max_position_embeddings
    if longest + config.max_completion_length > positions:
        raise UserError(
            f"max_completion_length={config.max_completion_length} after the longest prompt of {longest} tokens: "
            f"expected at most the {positions} positions that {config.teacher} was made for: lower "
            f"max_completion_length, or max_prompt_length to skip the longest prompts"
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
