"""Train a teacher with GRPO on the RLT reward (arXiv 2506.08388): `python -m rlt_jax.train --preset tiny`.

Departures from the original:
- A prompt that is too long is skipped and counted: a cut solution makes its reward meaningless.
- The reference is saved in checkpoints: a resumed run is the same run.
- Pads of a row without EOS are not trained on, and a group of equal rewards gets advantages of exactly 0.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.backward import make_fitting_accumulate
from rlt_jax.checkpoint import open_checkpoints, save_checkpoint
from rlt_jax.configs import TrainConfig, check_config, parse_train_args, run_or_print, save_config
from rlt_jax.data import Layout, eos_ids, questions_of_step
from rlt_jax.errors import run_command
from rlt_jax.evaluation import EVAL_FILE, SOLUTION_LOGP, evaluate_policy, read_changes, write_records
from rlt_jax.fitting import Fitted, Sizes, explaining_out_of_memory
from rlt_jax.losses import group_advantages
from rlt_jax.memory.card import read_card
from rlt_jax.memory.ledger import GB, Ledger
from rlt_jax.memory.monitor import PeakMonitor, memory_metrics
from rlt_jax.memory.watch import BudgetWatch, plan_and_measured
from rlt_jax.models import Model, Params, save_model
from rlt_jax.optimizer import open_optimizer
from rlt_jax.placement import free, on_card
from rlt_jax.planning import at_sizes, kept_layers, ledger_lines, plan
from rlt_jax.report.curves import draw_curves
from rlt_jax.report.folder import writing_to
from rlt_jax.report.log import setup_logging
from rlt_jax.report.paired import print_summary
from rlt_jax.report.progress import open_progress
from rlt_jax.report.timing import PhaseClock
from rlt_jax.report.writer import COMPLETIONS_FILE, METRICS_FILE, keep_until
from rlt_jax.rewards import RewardFn, judge_completions, rlt_reward
from rlt_jax.rollout import rollout_metrics, sample_records
from rlt_jax.run import (
    CompileCounter,
    check_room,
    continue_run,
    frozen_like,
    load_fitting_model,
    load_layout,
    load_prompts,
    load_reference,
    open_run_folder,
    open_run_writer,
    phases,
    place_frozen,
    prepare_memory,
    say_plan,
    use_compilation_cache,
)
from rlt_jax.samplers import make_sampler, running_engine, sampling_params, train_settings
from rlt_jax.sampling.engine import Engine
from rlt_jax.scoring import row_logprobs
from rlt_jax.types import Prompt, Request
from rlt_jax.update import Accumulate, grpo_batches, grpo_objective, make_reference_sync, sum_gradients

log = logging.getLogger("rlt_jax")


def train(config: TrainConfig, *, reward_fn: RewardFn | None = None) -> Path:
    """Run GRPO from the config's start, or from the run folder's newest checkpoint, to its last step.

    Args:
      reward_fn: a reward of your own (see `rewards.RewardFn`); None: the RLT reward with config.reward.
    Returns:
      The run folder: config.yaml, metrics.jsonl, eval.jsonl, completions.jsonl, curves.png, logs, checkpoints, final/.
    Raises:
      UserError: anything in the config, its files, models or data that cannot work.
    """
    check_config(config)
    run_dir = open_run_folder(config.output_dir, resume=config.resume)
    setup_logging(run_dir)
    use_compilation_cache()
    layout = load_layout(
        config.teacher,
        config.student,
        tags=config.data.tags,
        teacher_prompt_file=config.data.teacher_prompt_file,
        student_prompt_file=config.data.student_prompt_file,
    )
    prompts, eval_prompts = load_prompts(config, layout)
    questions = partial(
        questions_of_step,
        num_rows=len(prompts),
        questions_per_step=config.questions_per_step,
        seed=config.seed,
        artificial_epochs=config.data.artificial_epochs,
    )
    questions(0)  # too few rows are refused here, before minutes of loading
    card = read_card()
    planned = plan(config, card_bytes=None if card is None else card.total_bytes)
    prepare_memory(shared=config.sampler.kind == "vllm", pinned_bytes=planned.pinned_bytes)
    say_plan(config, planned)
    with (
        explaining_out_of_memory(partial(too_large, planned)),
        running_engine(train_settings(config), log_file=run_dir / "logs" / "vllm.log") as engine,
    ):
        _train(
            config,
            run_dir,
            layout=layout,
            prompts=prompts,
            eval_prompts=eval_prompts,
            questions=questions,
            planned=planned,
            engine=engine,
            reward_fn=reward_fn or rlt_reward(config.reward),
        )
    return run_dir


def _train(
    config: TrainConfig,
    run_dir: Path,
    *,
    layout: Layout,
    prompts: Sequence[Prompt],
    eval_prompts: Sequence[Prompt],
    questions: Callable[[int], np.ndarray],
    planned: Ledger,
    engine: Engine | None,
    reward_fn: RewardFn,
) -> None:
    """Load the models and take all steps. The engine, if any, is asleep and has the card's memory measured already."""
    compiles = CompileCounter()
    model, params = load_fitting_model(config.teacher, layout, dtype=config.dtype)
    check_room(model, [*prompts, *eval_prompts], config)
    student, student_params = load_fitting_model(config.student, layout, dtype=config.dtype)
    student_params = place_frozen(config, student_params)
    ends = eos_ids(layout.tokenizer, config.teacher)

    optimizer = open_optimizer(
        config.optimizer, config.memory, learning_rate=config.learning_rate, max_steps=config.max_steps
    )
    like = optimizer.like(params), frozen_like(config, params)
    checkpoints = open_checkpoints(run_dir / "checkpoints", keep=config.checkpoint.keep, like=like)

    def fresh():
        reference = load_reference(config, model, params)
        return optimizer.init(params), reference

    (state, reference), first_step = continue_run(
        checkpoints, like=like, fresh=fresh, seed=config.seed, max_steps=config.max_steps
    )
    if first_step:
        free(params)
    save_config(config, run_dir / "config.yaml")

    accumulate = grpo_accumulate(config, model, planned)
    sync_reference = make_reference_sync()
    sampler = make_sampler(
        train_settings(config),
        engine,
        model,
        state.params,
        version=first_step,
        eos_ids=ends,
        probe_ids=prompts[0].teacher_ids,
    )
    sampling = sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)
    sizes = Sizes(config.sampler.max_batch, config.score_batch_size, config.per_device_train_batch_size)
    fitted = Fitted(sizes, run_dir, exhausted=partial(too_large, planned))

    def logprobs(model, params, rows, *, temperature, sizes):
        with on_card(params) as visiting:
            return row_logprobs(
                model,
                visiting,
                rows,
                temperature=temperature,
                batch_size=sizes.score,
                chunk=config.loss.logprob_chunk,
            )

    def judge_with(prompts, completions, sizes):
        scorer = reference if config.reward.use_reference_teacher_model else state.params
        at = partial(logprobs, sizes=sizes)
        return judge_completions(
            prompts,
            completions,
            layout=layout,
            eos_ids=ends,
            teacher_logprobs=partial(at, model, scorer, temperature=config.teacher_temperature),
            student_logprobs=partial(at, student, student_params, temperature=config.student_temperature),
            reward_fn=reward_fn,
        )

    def judge(prompts, completions):
        return fitted.run("score", partial(judge_with, prompts, completions))

    def reference_logprobs(rows, sizes):
        return logprobs(model, reference, rows, temperature=config.policy_temperature, sizes=sizes)

    def gradients_of(batches, sizes):
        return sum_gradients(
            accumulate[sizes.keep],
            state.params,
            batches(batch_size=sizes.update),
            dtype=config.memory.accumulators,
        )

    clock, group = PhaseClock(), config.num_generations
    with (
        open_run_writer(run_dir, config, resume_step=first_step) as writer,
        open_progress(config.max_steps, start_step=first_step, show=config.log.progress) as progress,
        PeakMonitor() as monitor,
    ):
        phase = phases(clock, monitor, progress)

        def draw(requests):
            """Completions of all requests; then the sampler sleeps, and has no weights."""
            with phase("generate"):
                drawn = fitted.run(
                    "generate",
                    lambda sizes: sampler.generate(
                        requests,
                        sampling,
                        max_batch=sizes.generate,
                        on_progress=lambda tokens: progress.phase("generate", f"{tokens:,} tokens"),
                    ),
                )
                sampler.sleep()
            return drawn

        def sync(step):
            """The sampler wakes with the policy's weights."""
            with phase("sync"):
                sampler.wake()
                sampler.set_weights(state.params, step)

        def evaluate(step):
            metrics, records = evaluate_policy(draw, eval_prompts, judge, layout, seed=config.seed)
            sync(step)
            write_records(run_dir, step, records)
            writer.write(step, metrics)
            progress.log(step, metrics)

        watch = BudgetWatch(config.budget_gb)
        evaluates = config.eval_steps > 0
        with writing_to(run_dir):
            keep_until(run_dir / EVAL_FILE, first_step)
        if evaluates and first_step == 0:
            evaluate(0)
        for step in range(first_step + 1, config.max_steps + 1):
            clock.reset()
            monitor.reset()
            compiled_before = compiles.count
            asked = [prompts[i] for i in questions(step - 1)]
            seeds = np.random.SeedSequence((config.seed, step)).generate_state(config.train_batch_size)

            requests = [
                Request(prompt.teacher_ids, tuple(map(int, seeds[i * group : (i + 1) * group])))
                for i, prompt in enumerate(asked)
            ]
            completions = [completion for of_prompt in draw(requests) for completion in of_prompt]
            repeated = [prompt for prompt in asked for _ in range(group)]

            with phase("score"):
                judged = judge(repeated, completions)
                ids = [row.teacher_ids for row in judged.rows]
                ref_logps = fitted.run("score", partial(reference_logprobs, ids))
                advantages = np.asarray(group_advantages(jnp.asarray(judged.rewards.reward), group))

            with phase("update"):
                lengths = [len(completion.token_ids) for completion in completions]
                sampler_logps = [completion.logps for completion in completions]
                batches = partial(grpo_batches, ids, lengths, ref_logps, sampler_logps, advantages)
                gradients, losses = fitted.run("update", partial(gradients_of, batches))
                state, grad_norm = optimizer.apply(state, gradients)
                free(gradients)
                if config.ref.sync_ref_model and step % config.ref.ref_model_sync_steps == 0:
                    reference = sync_reference(reference, state.params, config.ref.ref_model_mixup_alpha)
                losses, grad_norm = jax.device_get((losses, grad_norm))
            sync(step)

            for warning in watch(monitor.metrics()):
                log.warning(warning)
            if step == first_step + 1:
                fitting = at_sizes(planned, **asdict(fitted.sizes))
                for line in plan_and_measured(fitting.step_peaks(), monitor.metrics()):
                    log.info(line)
            if step % config.logging_steps == 0 or step == config.max_steps:
                metrics = rollout_metrics(judged, completions, layout, num_generations=group)
                metrics |= {**losses, "grad_norm": grad_norm, "learning_rate": optimizer.learning_rate(step - 1)}
                metrics |= clock.metrics(
                    {
                        "generate": sum(lengths),
                        "score": sum(2 * len(row.teacher_ids) + len(row.student_ids) for row in judged.rows),
                        "update": sum(map(len, ids)),
                    }
                )
                metrics |= sampler.metrics() | memory_metrics() | monitor.metrics()
                metrics["compilations"] = compiles.count - compiled_before
                if metrics["compilations"]:
                    log.info("step %d compiled or fetched %d programs", step, metrics["compilations"])
                writer.write(step, metrics)
                progress.log(step, metrics)
            chosen = sample_records(
                judged, completions, probability=config.log.sample_probability, seed=(config.seed, step)
            )
            writer.samples(step, chosen)
            progress.step(step)
            if evaluates and (step % config.eval_steps == 0 or step == config.max_steps):
                evaluate(step)
            is_due = config.save_steps and step % config.save_steps == 0
            if config.checkpoint.at_end if step == config.max_steps else is_due:
                facts = {"step": step, "seed": config.seed, "questions_drawn": step * config.questions_per_step}
                save_checkpoint(checkpoints, step, (state, reference), facts)

    finish(config, run_dir, model, state.params)


def grpo_accumulate(config: TrainConfig, model: Model, planned: Ledger) -> dict[bool, Accumulate]:
    """Gradient accumulation of the GRPO loss; by whether layers are kept, as many as the plan has room for."""
    make = partial(
        make_fitting_accumulate,
        model,
        grpo_objective(
            beta=config.loss.beta,
            importance_correction=config.loss.importance_correction,
            importance_cap=config.loss.importance_cap,
        ),
        temperature=config.policy_temperature,
        chunk=config.loss.logprob_chunk,
    )
    most_kept = partial(
        kept_layers,
        planned.shape,
        planned.run,
        (config.planned_gb or 0) * GB,
        kept_attention=config.loss.kept_attention,
        kept_mlp=config.loss.kept_mlp,
    )
    return {True: make(kept=most_kept), False: make(kept=lambda batch, tokens: (0, 0))}


def too_large(planned: Ledger) -> str:
    """What to tell a user whose run does not fit on the card."""
    advice = (
        "lower --max-completion-length or --max-prompt-length, take --preset mono85_fallback, or ask "
        "`python -m rlt_jax.plan` with the flags of this run what fits"
    )
    return "\n".join([*ledger_lines(planned), advice])


def finish(config: TrainConfig, run_dir: Path, model: Model, params: Params) -> None:
    """Export the teacher, draw the curves, and say what changed and where the files are."""
    curves = draw_curves(run_dir)
    files = {"metrics": run_dir / METRICS_FILE, "completions": run_dir / COMPLETIONS_FILE, "curves": curves}
    if config.checkpoint.export:
        save_model(run_dir / "final", model, params, tokenizer_from=config.teacher)
        files["teacher"] = run_dir / "final"
    changes = read_changes(run_dir, ("reward", SOLUTION_LOGP), first=0, last=config.max_steps)
    print_summary(changes, files)


def main() -> None:
    run_or_print(*parse_train_args(sys.argv[1:]), run=train)


if __name__ == "__main__":
    run_command(main)
