"""Builds the parts of an RLT run: reads the data, plans the memory, starts the engine, loads the models."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from rlt_jax.configs import TrainConfig
from rlt_jax.configs.dtype import decided_dtype
from rlt_jax.data import eos_ids, known_ids
from rlt_jax.device.backoff import BatchSizes, MemoryBackoff, explain_out_of_memory
from rlt_jax.device.budget import BudgetWatch
from rlt_jax.device.gpu import read_gpu
from rlt_jax.device.jax_setup import prepare_memory
from rlt_jax.learner.objective import objective_of, reads_entropies
from rlt_jax.learner.optimizer import open_optimizer
from rlt_jax.learner.step import make_reference_sync, make_sum_gradients
from rlt_jax.planner.capacity import saved_layers
from rlt_jax.planner.ledger import Ledger
from rlt_jax.planner.run_plan import ledger_lines, plan
from rlt_jax.report.log import ENGINE_LOG_FILE
from rlt_jax.report.partial_file import fingerprint
from rlt_jax.rewards.by_name import chosen_reward
from rlt_jax.rewards.rlt import RewardFn, read_by
from rlt_jax.rewards.scorer import function_name, make_scorer
from rlt_jax.runs.alarms import Alarms
from rlt_jax.runs.announce import attention_line
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.contradictions import warn_of_row_prompts
from rlt_jax.runs.exported import files_of_training
from rlt_jax.runs.match_rate import MatchWatch
from rlt_jax.runs.reference import check_reference
from rlt_jax.runs.resume import Inputs, models_of, run_inputs
from rlt_jax.runs.rlt import Rlt, sampling_of
from rlt_jax.runs.rollouts import FOLDER as ROLLOUTS_FOLDER
from rlt_jax.runs.rollouts import Rollouts
from rlt_jax.runs.setup import (
    load_checked_model,
    load_prompts,
    log_plan,
    place_frozen,
    question_order,
)
from rlt_jax.runs.work import kernels, open_meter
from rlt_jax.sampling.factory import running_engine, train_settings
from rlt_jax.types import GB, Row

log = logging.getLogger("rlt_jax")

NO_ENGINE = nullcontext(None)


@contextmanager
def open_rlt(
    config: TrainConfig,
    run_dir: Path,
    *,
    reward_fn: RewardFn | None = None,
    compare_inputs: Callable[[Inputs], None] | None = None,
    samples: bool = True,
) -> Iterator[Rlt]:
    """Read the data, plan the memory, start the vLLM engine if there is one, load the models.

    Args:
      compare_inputs: called with the run's prompts and rows before the long part; may refuse them.
      samples: whether a sampler will be opened. If not, no vLLM engine is started.
    Raises:
      UserError: unusable files, models or data, or a device that is too small, on entry or at the step that needs
        more.
    """
    reward_fn = chosen_reward(config.reward, reward_fn)
    chat = chat_format_of(config)
    own = None if reward_fn is None else function_name(reward_fn)
    about = files_of_training(
        config, chat, reward=own
    )  # before the run: what the teacher's folder says may change meanwhile

    def compare(rows: Sequence[Row], held_out: Sequence[Row]) -> None:
        warn_of_row_prompts(chat, (row.system for row in rows))
        if compare_inputs is not None:
            compare_inputs(run_inputs(chat, rows, held_out, models=models_of(config), reward_fn=reward_fn))

    prompts, eval_prompts = load_prompts(config, chat, compare=compare)
    questions = question_order(config, len(prompts))  # too few rows are refused here, before minutes of loading
    reads = config.reward.reads if reward_fn is None else read_by(reward_fn)
    uses_reference = config.uses_reference(reads)
    check_reference(config, run_dir, used=uses_reference, reads=reads)
    gpu = read_gpu()
    size, capability = (None, None) if gpu is None else (gpu.total_bytes, gpu.capability)
    planned = plan(config, gpu_bytes=size, capability=capability, reads=reads)
    prepare_memory(shared=config.sampler.kind == "vllm", pinned_bytes=planned.pinned_bytes)
    log_plan(config, planned)
    advice = partial(out_of_memory_advice, planned)
    with (
        explain_out_of_memory(advice),
        running_engine(train_settings(config), log_file=run_dir / ENGINE_LOG_FILE) if samples else NO_ENGINE as engine,
    ):
        dtype, ends = decided_dtype(config.dtype), eos_ids(chat.tokenizer, config.teacher)
        model, params = load_checked_model(config.teacher, chat.tokenizer, dtype=dtype)
        student, student_params = None, None
        if "student" in reads:
            student, student_params = load_checked_model(config.student, chat.student, dtype=dtype)
            student_params = place_frozen(config, student_params)
        log.info(attention_line(kernels(dtype, teacher=model, student=student)))
        yield Rlt(
            config=config,
            chat=chat,
            eos_ids=ends,
            about=about,
            prompts=prompts,
            eval_prompts=eval_prompts,
            questions=questions,
            model=model,
            params=params,
            uses_reference=uses_reference,
            optimizer=open_optimizer(
                config.optimizer, config.memory, learning_rate=config.learning_rate, max_steps=config.max_steps
            ),
            scorer=make_scorer(
                model,
                student,
                student_params,
                config.reward,
                sampling_temperature=config.temperature,
                chunk=config.loss.logprob_chunk,
                reward_fn=reward_fn,
                teacher_name="reference" if config.reward.use_reference_teacher_model else "policy",
            ),
            sum_gradients=make_sum_gradients(
                model,
                objective_of(config),
                temperature=config.policy_temperature,
                chunk=config.loss.logprob_chunk,
                dtype=config.memory.gradients,
                entropies=reads_entropies(config.loss),
                saved=partial(
                    saved_layers,
                    planned.shape,
                    planned.run,
                    (config.planned_gb or 0) * GB,
                    saved_attention=config.loss.saved_attention,
                    saved_mlp=config.loss.saved_mlp,
                ),
            ),
            sync_reference=make_reference_sync(),
            planned=planned,
            engine=engine,
            rollouts=Rollouts(
                run_dir / ROLLOUTS_FOLDER,
                fingerprint([config.sampler.kind, sampling_of(config), ends, known_ids(chat.tokenizer).tolist()]),
            ),
            backoff=MemoryBackoff(
                BatchSizes(config.sampler.max_batch, config.tokens_of_score, config.tokens_of_update),
                run_dir,
                exhausted=advice,
            ),
            budget=BudgetWatch(config.budget_gb),
            matches=MatchWatch(max_completion_length=config.max_completion_length),
            watch=Alarms(config.alarms, max_grad_norm=config.optimizer.max_grad_norm),
            meter=open_meter(model, params),
        )


def out_of_memory_advice(planned: Ledger) -> str:
    """The plan and what to change, for a run that does not fit on the GPU."""
    advice = (
        "lower --max-completion-length or --max-prompt-length, use --preset mono85_fallback, or run "
        "`python -m rlt_jax.plan` with the flags of this run to see what fits"
    )
    return "\n".join([*ledger_lines(planned), advice])
