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

from rlt_jax.backward import make_layerwise_accumulate
from rlt_jax.checkpoint import open_checkpoints, save_checkpoint
from rlt_jax.configs import TrainConfig, check_config, config_yaml, parse_train_args, save_config
from rlt_jax.data import Layout, eos_ids, questions_of_step
from rlt_jax.errors import run_command
from rlt_jax.evaluation import EVAL_FILE, SOLUTION_LOGP, evaluate_policy, read_changes, write_records
from rlt_jax.losses import group_advantages, mix_reference
from rlt_jax.memory.monitor import PeakMonitor, memory_metrics
from rlt_jax.models import Model, Params, save_model
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
    load_fitting_model,
    load_layout,
    load_prompts,
    load_reference,
    open_run_folder,
    open_run_writer,
    phases,
    share_card,
    use_compilation_cache,
)
from rlt_jax.samplers import make_sampler, running_engine
from rlt_jax.sampling.engine import Engine
from rlt_jax.scoring import row_logprobs
from rlt_jax.types import Prompt, Request, SamplingParams
from rlt_jax.update import (
    grpo_batches,
    grpo_objective,
    init_state,
    make_apply,
    make_optimizer,
    sum_gradients,
)

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
    if config.sampler.kind == "vllm":
        share_card()
    if config.budget_gb is not None:
        log.warning(
            "budget_gb and planned_gb are noted, not enforced, in this version: see README.md for what a run needs"
        )

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
    with running_engine(config, run_dir) as engine:
        _train(
            config,
            run_dir,
            layout=layout,
            prompts=prompts,
            eval_prompts=eval_prompts,
            questions=questions,
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
    engine: Engine | None,
    reward_fn: RewardFn,
) -> None:
    """Load the models and take all steps. The engine, if any, is asleep and has the card's memory measured already."""
    compiles = CompileCounter()
    model, params = load_fitting_model(config.teacher, layout, dtype=config.dtype)
    check_room(model, [*prompts, *eval_prompts], config)
    student, student_params = load_fitting_model(config.student, layout, dtype=config.dtype)
    reference = load_reference(config, model)  # arrays of its own: the policy's are donated
    ends = eos_ids(layout.tokenizer, config.teacher)

    optimizer, learning_rate = make_optimizer(
        learning_rate=config.learning_rate, max_steps=config.max_steps, **asdict(config.optimizer)
    )
    state = init_state(params, optimizer)
    del params
    # committed to their device as restored arrays are, or a resumed run would compile everything anew
    state, reference, student_params = jax.device_put((state, reference, student_params), jax.local_devices()[0])
    checkpoints = open_checkpoints(run_dir / "checkpoints", keep=config.checkpoint.keep)
    (state, reference), first_step = continue_run(
        checkpoints, (state, reference), seed=config.seed, max_steps=config.max_steps
    )
    save_config(config, run_dir / "config.yaml")

    policy_temperature = config.temperature if config.loss.unbias_log_probabilities else 1.0
    teacher_temperature = config.temperature if config.reward.unbias_teacher_log_probs else 1.0
    student_temperature = config.reward.unbias_student_log_probs_temp or 1.0
    accumulate = make_layerwise_accumulate(
        model,
        grpo_objective(
            beta=config.loss.beta,
            importance_correction=config.loss.importance_correction,
            importance_cap=config.loss.importance_cap,
        ),
        temperature=policy_temperature,
        chunk=config.loss.logprob_chunk,
        kept_mlp=min(config.loss.kept_mlp, model.config.num_hidden_layers),
        kept_attention=min(config.loss.kept_attention, model.config.num_hidden_layers),
    )
    apply = make_apply(optimizer)
    move_reference = jax.jit(mix_reference, donate_argnums=0)
    sampler = make_sampler(
        config, engine, model, state.params, version=first_step, eos_ids=ends, prompts=[*prompts, *eval_prompts]
    )
    sampling = SamplingParams(
        max_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_k=config.sampler.top_k,
        top_p=config.sampler.top_p,
        min_p=config.sampler.min_p,
    )
    logprobs = partial(row_logprobs, batch_size=config.score_batch_size, chunk=config.loss.logprob_chunk)

    def judge(prompts, completions):
        scorer = reference if config.reward.use_reference_teacher_model else state.params
        return judge_completions(
            prompts,
            completions,
            layout=layout,
            eos_ids=ends,
            teacher_logprobs=partial(logprobs, model, scorer, temperature=teacher_temperature),
            student_logprobs=partial(logprobs, student, student_params, temperature=student_temperature),
            reward_fn=reward_fn,
        )

    clock, group = PhaseClock(), config.num_generations
    with (
        open_run_writer(run_dir, config, resume_step=first_step) as writer,
        open_progress(config.max_steps, start_step=first_step, show=config.log.progress) as progress,
        PeakMonitor() as monitor,
    ):
        phase = phases(clock, monitor, progress)

        def evaluate(step):
            metrics, records = evaluate_policy(sampler, eval_prompts, sampling, judge, layout, seed=config.seed)
            write_records(run_dir, step, records)
            writer.write(step, metrics)
            progress.log(step, metrics)

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

            with phase("generate"):
                requests = [
                    Request(prompt.teacher_ids, tuple(map(int, seeds[i * group : (i + 1) * group])))
                    for i, prompt in enumerate(asked)
                ]
                drawn = sampler.generate(
                    requests, sampling, on_progress=lambda tokens: progress.phase("generate", f"{tokens:,} tokens")
                )
                completions = [completion for of_prompt in drawn for completion in of_prompt]
                repeated = [prompt for prompt in asked for _ in range(group)]
                sampler.sleep()

            with phase("score"):
                judged = judge(repeated, completions)
                ids = [row.teacher_ids for row in judged.rows]
                ref_logps = logprobs(model, reference, ids, temperature=policy_temperature)
                advantages = np.asarray(group_advantages(jnp.asarray(judged.rewards.reward), group))

            with phase("update"):
                lengths = [len(completion.token_ids) for completion in completions]
                batches = grpo_batches(
                    ids,
                    lengths,
                    ref_logps,
                    [completion.logps for completion in completions],
                    advantages,
                    batch_size=config.per_device_train_batch_size,
                )
                gradients, losses = sum_gradients(accumulate, state.params, batches)
                state, grad_norm = apply(state, gradients)
                if config.ref.sync_ref_model and step % config.ref.ref_model_sync_steps == 0:
                    reference = move_reference(reference, state.params, config.ref.ref_model_mixup_alpha)
                losses, grad_norm = jax.device_get((losses, grad_norm))

            with phase("sync"):
                sampler.wake()
                sampler.set_weights(state.params, step)

            if step % config.logging_steps == 0 or step == config.max_steps:
                metrics = rollout_metrics(judged, completions, layout, num_generations=group)
                metrics |= {**losses, "grad_norm": grad_norm, "learning_rate": learning_rate(step - 1)}
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
            if (config.save_steps and step % config.save_steps == 0) or step == config.max_steps:
                facts = {"step": step, "seed": config.seed, "questions_drawn": step * config.questions_per_step}
                save_checkpoint(checkpoints, step, (state, reference), facts)

    finish(config, run_dir, model, state.params)


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
    config, print_config = parse_train_args(sys.argv[1:])
    if print_config:
        print(config_yaml(config), end="")
    else:
        train(config)


if __name__ == "__main__":
    run_command(main)
