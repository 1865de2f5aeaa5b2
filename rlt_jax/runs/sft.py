"""The parts of a supervised run, built once: examples, model, optimizer, gradients. The state is an argument."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rlt_jax.configs import Schedule, SftConfig, describe_schedule, schedule_of
from rlt_jax.configs.dtype import decided_dtype
from rlt_jax.data import ChatFormat, Lazily, SftExample, build_sft_examples, eos_ids, questions_of_step
from rlt_jax.device.backoff import BatchSizes, MemoryBackoff
from rlt_jax.device.jax_setup import prepare_memory
from rlt_jax.device.pinned import host_bytes
from rlt_jax.finite import NotFinite, check_rows, stage
from rlt_jax.learner.guard import check_update
from rlt_jax.learner.objective import sft_objective
from rlt_jax.learner.optimizer import Optimizer, open_optimizer
from rlt_jax.learner.step import SumGradients, make_sum_gradients, sft_batches
from rlt_jax.models import UPDATE_PASSES, Model, Params, Work, batches_for, dtype_of, work_of
from rlt_jax.planner.run_plan import model_config_of, model_shape
from rlt_jax.report.counting import counting
from rlt_jax.rewards.logprobs import row_logprobs
from rlt_jax.runs.announce import attention_line, sft_lines
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.exported import files_of_sft
from rlt_jax.runs.resume import Inputs, models_of, run_inputs
from rlt_jax.runs.setup import CompareRows, load_checked_model, load_split_rows, model_positions, warn_of_skipped
from rlt_jax.runs.sft_check import BATCH as CHECK_BATCH
from rlt_jax.runs.sft_check import Question, TextCheck, check_texts, questions_to_check
from rlt_jax.runs.skipping import Evidence, joined
from rlt_jax.runs.work import Meter, StepWork, kernels, open_meter
from rlt_jax.types import Row

log = logging.getLogger("rlt_jax")


@dataclass(frozen=True)
class Sft:
    """The parts of a supervised run. Made by `load_sft`. The state is an argument: the loop in `sft.py` owns it."""

    config: SftConfig  # with the values that were open
    schedule: Schedule
    chat: ChatFormat
    examples: Lazily[Row, SftExample]  # to train on
    numbers: np.ndarray  # i64[N] their rows' numbers in the data
    held_out: Sequence[SftExample]
    questions: Sequence[Question]  # to check the trained model with
    eos_ids: tuple[int, ...]  # that end what the model is taught to write
    about: Mapping[str, str]  # name -> text of the files that say what the exported model is
    model: Model
    params: Params  # as loaded
    optimizer: Optimizer
    sum_gradients: SumGradients
    backoff: MemoryBackoff
    meter: Meter

    @property
    def packed_length(self) -> int | None:
        """Longest sequence that rows share; None: one row each."""
        return self.config.packed_length if self.config.packing else None

    def batch(self, step: int) -> list[SftExample]:
        """The examples of a step."""
        return self.examples.take(self._chosen(step))

    def row_numbers(self, step: int) -> np.ndarray:
        """The numbers in the data of the rows of a step, i64[B]."""
        return self.numbers[self._chosen(step)]

    def _chosen(self, step: int) -> np.ndarray:
        size, seed = self.schedule.batch, self.config.seed
        return questions_of_step(step - 1, num_rows=len(self.examples), questions_per_step=size, seed=seed)

    def gradients(self, params: Params, batch: Sequence[SftExample]) -> tuple[Params, dict[str, jax.Array], StepWork]:
        """Gradients of the step's loss and its diagnostics by name, both still on the device; the step's work.

        Raises:
          NotFinite: a diagnostic or a gradient is NaN or infinite, or an update could be. The gradients have been
            freed.
        """

        config, ids = self.model.config, [example.ids for example in batch]
        wanted = [np.flatnonzero(example.trained) for example in batch]

        def sum_at(sizes: BatchSizes) -> tuple[Params, dict[str, jax.Array], Work]:
            laid_out = batches_for(config, dtype_of(params), ids, tokens=sizes.update, packed_length=self.packed_length)
            micro_batches = sft_batches(batch, batches=laid_out)
            sums = self.sum_gradients(params, micro_batches, save_activations=sizes.save_activations)
            return *sums, work_of(config, laid_out, list(map(len, ids)), wanted, passes=UPDATE_PASSES)

        gradients, losses, work = self.backoff.run("update", sum_at, least=max(map(len, ids)))
        with stage("gradients"):
            check_update(self.model, params, gradients, losses, bound=self.optimizer.bound, who="the model")
        return gradients, losses, {"update": work}

    def evidence(self, step: int, batch: Sequence[SftExample]) -> Evidence:
        """What a step had, to compute it again."""
        return Evidence(
            {"rows": self.row_numbers(step), **joined("ids", [example.ids for example in batch])},
            {"command": "sft", "sizes": asdict(self.backoff.sizes)},
        )

    def check(self, params: Params, *, step: int, on_progress: Callable[[int], None] | None = None) -> TextCheck:
        """Sample texts from the model of a step, and count those that close their tags."""
        return check_texts(
            self.questions,
            self.model,
            params,
            self.chat,
            eos_ids=self.eos_ids,
            backoff=self.backoff,
            seed=self.config.seed,
            step=step,
            on_progress=on_progress,
        )

    def held_out_loss(self, params: Params) -> float:
        """Mean of −log π over all trained tokens of the held-out examples, nats per token."""
        logprobs = partial(
            row_logprobs,
            self.model,
            params,
            [example.ids for example in self.held_out],
            wanted=[np.flatnonzero(example.trained) for example in self.held_out],
            temperature=1.0,
            chunk=self.config.logprob_chunk,
            packed_length=self.packed_length,
        )
        longest = max(len(example.ids) for example in self.held_out)
        logps = self.backoff.run("score", lambda sizes: logprobs(tokens=sizes.score), least=longest)
        trained = [row[example.trained] for row, example in zip(logps, self.held_out)]
        try:
            check_rows(trained, "the model's log-probs", name="held-out example {}".format)
        except NotFinite as fault:  # the metric is null then
            log.warning("the held-out loss is not finite: %s", fault)
        return -float(np.mean(np.concatenate(trained)))


def load_sft(
    config: SftConfig, run_dir: Path, *, exhausted: str, compare_inputs: Callable[[Inputs], None] | None = None
) -> Sft:
    """Read the data, decide what the configuration leaves open, and load the model.

    Args:
      exhausted: advice for a run that does not fit on the device.
      compare_inputs: called with the run's prompts and rows before the long part; may refuse them.
    Raises:
      UserError: unusable data or model, or fewer rows than a step takes.
    """
    chat = chat_format_of(config)

    def compare(rows: Sequence[Row], held_out: Sequence[Row]) -> None:
        if compare_inputs is not None:
            compare_inputs(run_inputs(chat, rows, held_out, models=models_of(config)))

    examples = load_examples(config, chat, compare=compare)
    parameters = model_shape(model_config_of(config.model)).parameters
    count = len(examples.training)
    schedule = schedule_of(config, rows=count, parameters=parameters, source=config.data.path)
    following = describe_schedule(config, schedule, parameters=parameters)
    config, dtype = schedule.apply(config), decided_dtype(config.dtype)
    lines = sft_lines(
        config,
        chat,
        trained=count,
        skipped=examples.skipped,
        held_out=len(examples.held_out),
        steps=schedule.max_steps,
        rows=examples.rows,
    )
    for line in [*lines, *following]:
        log.info(line)
    pinned = 0
    if config.memory.optimizer == "host":
        pinned = host_bytes(parameters, config.memory.moments, master_in_weights=dtype == "float32")
    prepare_memory(shared=False, pinned_bytes=pinned)
    model, params = load_checked_model(config.model, chat.tokenizer, dtype=dtype)
    log.info(attention_line(kernels(dtype, **{config.target: model})))
    layers = model.config.num_hidden_layers
    saved = min(config.saved_attention, layers), min(config.saved_mlp, layers)
    size = config.tokens_of_update
    return Sft(
        config=config,
        schedule=schedule,
        chat=chat,
        examples=examples.training,
        numbers=np.array([row.number for row in examples.rows], np.int64),
        held_out=examples.held_out,
        questions=examples.questions,
        eos_ids=eos_ids(chat.tokenizer, config.model),
        about=files_of_sft(config, chat, examples.rows, steps=schedule.max_steps),
        model=model,
        params=params,
        optimizer=open_optimizer(
            config.optimizer,
            config.memory,
            learning_rate=schedule.learning_rate,
            max_steps=schedule.max_steps,
        ),
        sum_gradients=make_sum_gradients(
            model,
            sft_objective,
            temperature=1.0,
            chunk=config.logprob_chunk,
            dtype=config.memory.gradients,
            saved=lambda batch, tokens: saved,
        ),
        backoff=MemoryBackoff(
            BatchSizes(generate=CHECK_BATCH, score=size, update=size), run_dir, exhausted=lambda: exhausted
        ),
        meter=open_meter(model, params),
    )


class Examples(NamedTuple):
    """What a run trains on, measures and checks."""

    training: Lazily[Row, SftExample]
    held_out: Sequence[SftExample]
    rows: Sequence[Row]  # of the training examples
    skipped: int  # rows of the training split that cannot be used
    questions: Sequence[Question]  # of held-out rows if there are any, else of training rows


def load_examples(config: SftConfig, chat: ChatFormat, *, compare: CompareRows | None = None) -> Examples:
    """The examples of a run; unusable rows are skipped and counted in the log.

    Args:
      compare: called with the rows to train on and those held out, before the work; may refuse them.
    """
    split = load_split_rows(config.data, evaluates=config.eval_steps > 0, with_traces=True)
    if compare is not None:
        compare(split.train, split.held_out)
    training, rows = build_examples(config, chat, split.train, "training")
    held_out: Sequence[SftExample] = ()
    checked = rows
    if split.held_out:
        examples, checked = build_examples(config, chat, split.held_out, "held-out")
        held_out = tuple(examples)  # they are used in every evaluation: they stay tokenised
    questions = questions_to_check(checked, chat, target=config.target, count=config.check_texts)
    return Examples(training, held_out, rows, split.skipped + len(split.train) - len(rows), questions)


def build_examples(
    config: SftConfig, chat: ChatFormat, rows: Sequence[Row], name: str
) -> tuple[Lazily[Row, SftExample], Sequence[Row]]:
    """(examples, their rows); the log counts the other rows under `name`."""
    with counting(f"preparing {name} rows", total=len(rows)) as on_progress:
        built = build_sft_examples(
            rows,
            chat,
            target=config.target,
            max_length=config.max_length,
            positions=model_positions(config.model),
            on_progress=on_progress,
        )
    warn_of_skipped(built.skipped, f"{name} rows")
    skipped = {number for number, _ in built.skipped}
    return built.examples, [row for row in rows if row.number not in skipped]
