"""What surrounds the steps of a run, for training and fine-tuning: folder, log, checkpoints, metrics, progress.

    with open_session(config) as session:
        state = session.resume(params, like=..., fresh=..., max_steps=...)
        for step in session.steps():
            with session.phase("update"):
                state = ...
            if session.logs(step):
                session.log(step, metrics, tokens=...)
            if session.saves(step):
                session.save(step, state)
        session.finish(model, state.params, tokenizer_from=..., eos_ids=..., about=...)

A session knows nothing of what a step computes: arrays are arguments, and none is held.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from rlt_jax import stops
from rlt_jax.checkpoints.saver import Saver
from rlt_jax.checkpoints.store import (
    Arrays,
    Checkpoints,
    check_metric,
    open_checkpoints,
)
from rlt_jax.configs import SftConfig, TrainConfig, command_again
from rlt_jax.configs.resume import Change
from rlt_jax.device.jax_setup import CompileCounter, use_compilation_cache
from rlt_jax.device.monitor import PeakMonitor, memory_metrics
from rlt_jax.device.placement import free
from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite
from rlt_jax.models import Model, Params, save_model
from rlt_jax.report.folder import refuse_links, writing_to
from rlt_jax.report.log import ENGINE_LOG_FILE, log_to_file, setup_logging, start_log_file
from rlt_jax.report.owner import remove_empty, sole_user
from rlt_jax.report.progress import ProgressDisplay, open_progress
from rlt_jax.report.step_lines import keep_until
from rlt_jax.report.timing import PhaseClock, Shares
from rlt_jax.report.writer import Writer, open_writer
from rlt_jax.runs.evaluation import EVAL_FILE, drop_records, is_evaluated, write_records
from rlt_jax.runs.resume import (
    Inputs,
    changed_inputs,
    changed_settings,
    check_command,
    compared_places,
    name_changes,
    read_inputs,
    record_start,
    refuse,
)
from rlt_jax.runs.run_folder import (
    EXPORT,
    FolderWatch,
    check_export,
    check_files,
    check_run_folder,
    recover_export,
    warn_of_room,
)
from rlt_jax.runs.skipping import Evidence, Skips, keep_step, skips_of

log = logging.getLogger("rlt_jax")


class Session:
    """A run from its start to its export. Made by `open_session`."""

    folder: Path  # the run folder
    start_step: int  # the last finished step; 0: none
    done: int  # the last whole step
    max_steps: int
    facts: Mapping[str, Any]  # of the checkpoint from which the run started; {}: none

    _checkpoints: Checkpoints
    _saver: Saver
    _writer: Writer
    _watch: FolderWatch
    _progress: ProgressDisplay
    _monitor: PeakMonitor

    def __init__(
        self,
        config: TrainConfig | SftConfig,
        folder: Path,
        stack: ExitStack,
        uninterrupted: ExitStack,
        *,
        resumes: bool,
    ) -> None:
        self.folder = folder
        self.begun = False  # whether the start was accepted: before, nothing is written
        self._config = config
        self._stack = stack  # closes everything that `resume` opens
        self._uninterrupted = uninterrupted
        self._step = 0  # the one that is taken
        self._finished = False
        self._resumes = resumes  # whether the folder has a checkpoint
        self._inputs: Inputs | None = None
        self._changes: list[Change] = []  # from the run so far
        self._places: tuple[str, ...] = ()  # settings that are no change if the same is found in the other place
        self._skips = Skips()
        self._clock = PhaseClock()
        self._compiles = CompileCounter()
        self._compiled_before = self._compiles.compiled
        self._evaluation: tuple[int, Mapping[str, float]] = (-1, {})  # step and metrics of the last one
        if resumes:
            self._changes = changed_settings(config, folder)
            # another place is no change if the same is found there, which `compare_inputs` sees
            self._places = compared_places(read_inputs(folder, quiet=True))
            self._refuse([change for change in self._changes if change.name not in self._places])

    def compare_inputs(self, inputs: Inputs) -> None:
        """Compare the prompts and rows of a resumed run with those of the run so far, and keep them for the next.

        Raises:
          UserError: some differ (without --accept-changes), or those of the run so far cannot be read.
        """
        self._inputs = inputs
        if not self._resumes or (saved := read_inputs(self.folder)) is None:
            return
        found = changed_inputs(inputs, saved)
        places = [change for change in self._changes if change.name in self._places]
        self._refuse([*places, *found] if found else [])
        moved = [change._replace(steers=not found) for change in places]  # the same texts in another place
        self._changes = [*(change for change in self._changes if change not in places), *moved, *found]

    def _refuse(self, found: Sequence[Change]) -> None:
        refuse(found, self.folder, accept=self._config.accept_changes)

    def settle(self, config: TrainConfig | SftConfig) -> None:
        """Compare and record the values that follow rows and model, too; before `resume`."""
        self._config = config
        if self._resumes:
            decided = [change for change in changed_settings(config, self.folder, quiet=True) if change.steers]
            kept = [change for change in self._changes if not change.steers or change.name in self._places]
            self._changes = [*(change for change in decided if change.name not in self._places), *kept]

    def resume(self, params: Params, *, like: Arrays, fresh: Callable[[Params], Arrays], max_steps: int) -> Arrays:
        """Restore the arrays of the newest checkpoint, or make them with `fresh` if there is none.

        Also opens the run's files for writing, after dropping what they hold of later steps: with that the run has
        begun, and the log file gets what was logged so far.

        Args:
          params: as loaded; freed if a checkpoint replaces them.
          like: shapes and shardings of the arrays. Initial and restored arrays together could take twice the memory.
          fresh: makes the initial arrays from `params`.
          max_steps: steps of the whole run.
        Raises:
          UserError: no checkpoint is whole, or it is not of this run (see `Checkpoints.restore`), or the folder cannot
            be written.
        """
        config = self._config
        self._uninterrupted.enter_context(stops.held())  # a stop waits until it loses nothing (`_interruptible`)
        self.max_steps = max_steps
        keep, keep_best = config.checkpoint.keep, config.checkpoint.keep_best
        self._checkpoints = open_checkpoints(self.folder / "checkpoints", keep=keep, keep_best=keep_best)
        arrays, facts = restore_or_start(
            self._checkpoints, like=like, fresh=lambda: fresh(params), seed=config.seed, max_steps=max_steps
        )
        self.facts, self.start_step, self._skips = facts, facts.get("step", 0), skips_of(facts)
        self.done = self.start_step
        self._saver = Saver(self._checkpoints, self._clock, step=self.start_step)
        if self.start_step:
            free(params)
        finished = 0 < self.start_step == max_steps
        name_changes(self._changes, finished=finished)
        check_files(self.folder)
        writer = open_writer(
            self.folder,
            tensorboard=config.log.tensorboard,
            wandb=config.log.wandb,
            wandb_project=config.log.wandb_project,
            config=asdict(config),
            resume_step=self.start_step,
        )
        self._writer = self._stack.enter_context(writer)
        with writing_to(self.folder):
            keep_until(self.folder / EVAL_FILE, self.start_step)
            if self.owes_evaluation():
                drop_records(self.folder, self.start_step)
            self._watch = self._stack.enter_context(FolderWatch(self.folder))
        start_log_file(self.folder)
        if not finished:
            warn_of_room(config, self.folder, state=like, params=params)
            record_start(config, self._inputs, self._changes, self.folder, step=self.start_step)
        self.begun = True
        if not finished and (accepted := [change for change in self._changes if not change.steers]):
            writer.write(self.start_step, {"accepted_changes": len(accepted)})
        stops.note_saved(self._report())
        self._stack.push(self._saver.left)
        progress = open_progress(max_steps, start_step=self.start_step, show=config.log.progress)
        self._progress = self._stack.enter_context(progress)
        self._monitor = self._stack.enter_context(PeakMonitor())
        return arrays

    def steps(self) -> Iterator[int]:
        """Yield the remaining steps, up to max_steps; times, memory peaks and compilations start from 0 in each."""
        for step in range(self.start_step + 1, self.max_steps + 1):
            with self._interruptible():
                self._step = step
            self._clock.reset()
            self._monitor.reset()
            self._compiled_before = self._compiles.compiled
            yield step

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase of a step, measure its memory and show its name. The phase must end by fetching a value."""
        self._progress.phase(name)
        # the sync ends a step, whose metrics are still to be written
        with (
            self._clock.phase(name),
            self._monitor.phase(name),
            nullcontext() if name == "sync" else self._interruptible(),
        ):
            yield

    def show_tokens(self, tokens: int) -> None:
        """Show how many tokens have been sampled so far."""
        self._progress.phase("generate", f"{tokens:,} tokens")

    # When to do what. The last step is always logged and evaluated.

    def logs(self, step: int) -> bool:
        """Whether to log the metrics of a step."""
        return step % self._config.logging_steps == 0 or step == self.max_steps

    def evaluates(self, step: int) -> bool:
        """Whether to evaluate the model after a step; 0: before the first."""
        every = self._config.eval_steps
        return every > 0 and (step % every == 0 or step == self.max_steps)

    def owes_evaluation(self) -> bool:
        """Whether the step from which the run starts is to be evaluated first: at step 0, or where a stop came."""
        return self.evaluates(self.start_step) and not is_evaluated(self.folder, self.start_step)

    def saves(self, step: int) -> bool:
        """Whether to save a checkpoint after a step: not after one that was skipped, but after the next good one."""
        if step == self.max_steps:
            return self._config.checkpoint.at_end
        every, skips = self._config.save_steps, self._skips
        if every == 0 or skips.last == step:
            return False
        owed = skips.in_a_row if skips.last == step - 1 else 0
        return any(due % every == 0 for due in range(step - owed, step + 1))

    # Steps that are skipped.

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped since the run began."""
        return self._skips.total

    def skip(self, step: int, fault: NotFinite, evidence: Evidence, arrays: Arrays) -> None:
        """Count, log and keep a step that was refused before it changed anything.

        Args:
          evidence: what the step had.
          arrays: the weights that it computed with.
        Raises:
          UserError: too many in a row.
        """
        checks = self._config.checks
        self._skips = skips = self._skips.add(step)
        good = step - skips.in_a_row
        new = skips.in_a_row == 1 or step == self.start_step + 1
        kept = keep_step(self.folder, step, fault, evidence, arrays, state_of=good, new=new, keep=checks.keep_skipped)
        how = f"; `python -m rlt_jax.replay {self.folder} --step {step}` computes it again" if kept else ""
        log.warning("step %d is skipped, nothing is changed: %s%s", step, fault.culprit, how)
        self.log(step, {"skipped_steps": skips.total}, tokens={})
        if skips.in_a_row >= checks.max_skipped_steps:
            self._saver.wait()
            newest = max(self._checkpoints.steps(), default=None)
            last_good = "there is no checkpoint: the same command starts over"
            if newest is not None:
                last_good = (
                    f"the last good checkpoint is of step {newest} ({self.folder / 'checkpoints' / str(newest)}), from "
                    "which the same command resumes"
                )
            raise UserError(
                f"{skips.in_a_row} steps in a row were skipped, up to step {step} (--checks.max-skipped-steps): "
                f"{fault.culprit}{how}; {last_good}: change what the message names first"
            )

    # Output.

    def log(
        self, step: int, metrics: Mapping[str, float], *, tokens: Mapping[str, int], at_peak: Shares | None = None
    ) -> None:
        """Write and show the metrics of a step, with its times, memory and compilations.

        Args:
          tokens, at_peak: as in `PhaseClock.metrics`.
        """
        compiled = self._compiles.since(self._compiled_before)
        if compiled.programs:
            log.info("step %d compiled or fetched %d programs in %.1f s", step, *compiled)
        programs = {"compilations": compiled.programs, "seconds/compile": compiled.seconds}
        times, memory = self._clock.metrics(tokens, at_peak=at_peak), memory_metrics() | self._monitor.metrics()
        self.write(step, {**metrics, **times, **memory, **self._saver.metrics(), **programs})

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write and show the given metrics, and no others."""
        self._writer.write(step, metrics)
        if any(name.startswith("eval/") for name in metrics):
            check_metric(self._config.checkpoint.keep_best, metrics)
            self._evaluation = (step, metrics)
        self._progress.log(step, metrics)

    def write_evaluation(self, step: int, metrics: Mapping[str, float], records: Sequence[Mapping[str, float]]) -> None:
        """Write and show the metrics of an evaluation, and append its records, one per held-out prompt."""
        self._watch.check()
        write_records(self.folder, step, records)
        self.write(step, metrics)

    def write_samples(self, step: int, samples: Iterable[Mapping[str, object]]) -> None:
        """Save sampled completions for reading."""
        self._writer.samples(step, samples)

    def end_step(self, step: int) -> None:
        """Show that a step is done.

        Raises:
          UserError: the run folder is gone, is another one, or cannot be written.
        """
        self._watch.check()
        self._progress.step(step)
        self.done = step

    def peaks(self) -> dict[str, float]:
        """`memory/peak_gpu_gb/PHASE` of the step so far; {} without a GPU."""
        return self._monitor.metrics()

    def save(self, step: int, arrays: Arrays, **facts: int | str) -> None:
        """Start to write a checkpoint of everything that the next step depends on.

        It is read where it lies, while the next step generates and scores: call `wait_for_save` before anything donates
        or frees the arrays. That of the last step is whole on return.
        """
        self._watch.check()
        self._writer.sync()
        evaluated, metrics = self._evaluation
        metric = metrics.get(self._config.checkpoint.keep_best or "") if evaluated == step else None
        facts = {"seed": self._config.seed, **self._skips.facts(step), **facts}
        self._saver.save(step, arrays, {**facts, "inputs": self._inputs}, metric=metric)
        stops.note_saved(self._report())
        if step == self.max_steps:
            self.wait_for_save()

    def wait_for_save(self) -> None:
        """Wait until the checkpoint being written, if any, is whole: before anything donates its arrays.

        Raises:
          UserError: it could not be written, or holds numbers that are not finite.
        """
        self._saver.wait()
        stops.note_saved(self._report())

    def oldest_checkpoint(self) -> int:
        """Step of the oldest of the newest checkpoints, from which the run may be resumed; 0 without one."""
        return min(self._checkpoints.steps()[-self._config.checkpoint.keep :], default=0)

    def finish(
        self, model: Model, params: Params, *, tokenizer_from: str, eos_ids: Sequence[int], about: Mapping[str, str]
    ) -> Path | None:
        """Wait for the last checkpoint, close all files and export the model, unless the configuration disables it.

        Returns the model's folder.

        Args:
          eos_ids, about: as in `save_model`.
        """
        self._watch.check()
        self._saver.wait()
        self._stack.close()
        exported = self.folder / EXPORT if self._config.checkpoint.export else None
        if exported is not None:
            with self._interruptible():
                save_model(exported, model, params, tokenizer_from=tokenizer_from, eos_ids=eos_ids, about=about)
        self._finished = True
        return exported

    # Stops.

    def _interruptible(self) -> AbstractContextManager[None]:
        """A block that a stop may leave at its checks: all that it computes is computed again. Not what follows a last
        step of which there will be no checkpoint."""
        last = self.done == self.max_steps and not self._config.checkpoint.at_end
        return nullcontext() if last else stops.cooperative()

    def save_last(self, arrays: Arrays, **facts: int | str) -> None:
        """Save the last whole step, unless there is none or it is saved; for a run that stops.

        Args:
          arrays: of that step.
        """
        if self.done > self._saver.begun:
            self.save(self.done, arrays, **facts)
        self.wait_for_save()

    def _report(self) -> str:
        """What is safe and what to do, for a run that stops now."""
        if self._finished:
            return "the run is finished, its files are complete"
        config = self._config
        name = "train" if isinstance(config, TrainConfig) else "sft"
        command = command_again(name, sys.argv[1:], resume=config.resume)
        if not self.begun:
            return f"before the run began; start it again with {command}"
        given_up = f"step {self._step} is given up, " if self._step > self.done else ""
        saved = self._saver.step
        kept = f"step {saved} is saved; resume with" if saved else "no step is lost; start again with"
        return f"{given_up}{kept} {command}"


@contextmanager
def open_session(config: TrainConfig | SftConfig) -> Iterator[Session]:
    """Take the run folder for this process alone, and compare the settings with those of the run in it.

    A start that is refused, before or in `Session.resume`, leaves no new file or folder behind. One that crashes leaves
    its log.

    Raises:
      UserError: another process uses the folder; as `check_run_folder`; the folder holds a run of another command, or
        one with other settings (see `runs/resume.py`), or cannot be written.
    """
    folder = Path(config.output_dir)
    setup_logging(None)
    stops.limit(config.stop_grace)
    refuse_links(folder)
    with (
        stops.reported(lambda: f"before the run began; nothing in {folder} has changed"),
        sole_user(folder, "--output-dir"),
        ExitStack() as stack,
    ):
        new = [part for part in (folder / "checkpoints", folder / "logs") if not part.exists()]
        resumes = check_run_folder(folder, resume=config.resume)
        check_command(config, folder)
        recover_export(folder)
        if config.checkpoint.export:
            check_export(folder)
        use_compilation_cache()
        uninterrupted = ExitStack()
        session = Session(config, folder, stack, uninterrupted, resumes=resumes)
        try:
            with stops.reported(session._report), uninterrupted:
                yield session
        except stops.StopRequested as stop:
            log_to_file(str(stop))
            raise
        except BaseException as error:
            engine_failed = folder / "logs" in new and (folder / ENGINE_LOG_FILE).exists()  # its message names its log
            if not session.begun and (is_crash(error) or engine_failed):
                start_log_file(folder)
            raise
        finally:
            if not session.begun:
                for part in new:
                    remove_empty([part])


def is_crash(error: BaseException) -> bool:
    """Whether a start failed by a bug or for lack of memory; else it was refused or interrupted."""
    if isinstance(error, UserError):
        return isinstance(error.__cause__, jax.errors.JaxRuntimeError)
    return isinstance(error, Exception)


def restore_or_start(
    checkpoints: Checkpoints, *, like: Arrays, fresh: Callable[[], Arrays], seed: int, max_steps: int
) -> tuple[Arrays, Mapping[str, Any]]:
    """(arrays of the newest whole checkpoint, its facts), or (fresh arrays, {}) if there is no checkpoint yet.

    Raises:
      UserError: none is whole, or it is not of this run (see `Checkpoints.restore`).
    """
    if not checkpoints.steps():
        return fresh(), {}
    arrays, facts, _ = checkpoints.restore(like, seed=seed, max_steps=max_steps)
    log.info("resuming from step %d", facts["step"])
    if facts["step"] == max_steps:
        log.info("the run is finished: raise --max-steps to train longer, or choose another --output-dir")
    return arrays, facts
