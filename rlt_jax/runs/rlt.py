"""The parts of an RLT run, built once: data, models, optimizer, sampling engine, scorer, gradients.

What changes from step to step (the policy's state, the reference) is an argument of the functions here, and none of
them holds it: the loop in `train.py` owns it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlt_jax.configs import TrainConfig
from rlt_jax.configs.dtype import decided_dtype
from rlt_jax.data import ChatFormat, Lazily, eos_ids, known_ids
from rlt_jax.device.backoff import BatchSizes, MemoryBackoff, explain_out_of_memory
from rlt_jax.device.budget import BudgetWatch, plan_and_measured
from rlt_jax.device.gpu import read_gpu
from rlt_jax.device.jax_setup import prepare_memory
from rlt_jax.device.placement import free, move_to_host, on_host
from rlt_jax.finite import check_rows, stage
from rlt_jax.learner.guard import check_update
from rlt_jax.learner.objective import grpo_objective
from rlt_jax.learner.optimizer import Optimizer, open_optimizer
from rlt_jax.learner.state import TrainState
from rlt_jax.learner.step import SumGradients, grpo_batches, make_reference_sync, make_sum_gradients
from rlt_jax.losses import group_advantages
from rlt_jax.models import UPDATE_PASSES, Model, Params, Work, batches_for, dtype_of, work_of
from rlt_jax.planner.capacity import saved_layers
from rlt_jax.planner.ledger import Ledger
from rlt_jax.planner.run_plan import at_batch_sizes, ledger_lines, plan
from rlt_jax.report.log import ENGINE_LOG_FILE
from rlt_jax.report.partial_file import fingerprint
from rlt_jax.rewards.by_name import chosen_reward
from rlt_jax.rewards.logprobs import Pass, finite_logprobs, row_name
from rlt_jax.rewards.records import sample_records
from rlt_jax.rewards.rlt import RewardFn, read_by
from rlt_jax.rewards.scorer import Scored, Scorer, completion_rows, function_name, longest_row, make_scorer
from rlt_jax.runs.alarms import Alarms
from rlt_jax.runs.announce import attention_line
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.contradictions import warn_of_row_prompts
from rlt_jax.runs.exported import files_of_training
from rlt_jax.runs.match_rate import MatchWatch
from rlt_jax.runs.reference import check_reference, load_reference
from rlt_jax.runs.resume import Inputs, models_of, run_inputs
from rlt_jax.runs.rollouts import FOLDER as ROLLOUTS_FOLDER
from rlt_jax.runs.rollouts import Rollouts
from rlt_jax.runs.setup import (
    chat_sampler,
    frozen_like,
    load_checked_model,
    load_prompts,
    log_plan,
    place_frozen,
    question_order,
)
from rlt_jax.runs.skipping import Evidence, joined
from rlt_jax.runs.work import Meter, StepWork, kernels, open_meter
from rlt_jax.sampling.base import Sampler
from rlt_jax.sampling.engine import Engine
from rlt_jax.sampling.factory import running_engine, sampling_params, train_settings
from rlt_jax.types import GB, Completion, Prompt, Request, Row, SamplingParams

log = logging.getLogger("rlt_jax")

NO_ENGINE = nullcontext(None)


@dataclass(frozen=True)
class Rlt:
    """The parts of an RLT run. Made by `open_rlt`."""

    config: TrainConfig
    chat: ChatFormat
    eos_ids: tuple[int, ...]
    about: Mapping[str, str]  # name -> text of the files that say what the exported teacher is
    prompts: Lazily[Row, Prompt]  # to train on
    eval_prompts: Sequence[Prompt]  # held out
    questions: Callable[[int], np.ndarray]  # step, from 0 -> indices into `prompts`
    model: Model  # of policy and reference
    params: Params  # the policy's, as loaded
    uses_reference: bool  # else there is none, and it is None everywhere
    optimizer: Optimizer
    scorer: Scorer
    sum_gradients: SumGradients
    sync_reference: Callable[[Params, Params, float], Params]
    planned: Ledger
    engine: Engine | None
    rollouts: Rollouts
    backoff: MemoryBackoff
    budget: BudgetWatch
    matches: MatchWatch
    watch: Alarms
    meter: Meter

    # The state of a run: (policy with optimizer, reference).

    def state_like(self) -> tuple[TrainState, Params | None]:
        """Shapes and shardings of state and reference, to restore a checkpoint into."""
        return self.optimizer.like(self.params), self.reference_like()

    def reference_like(self) -> Params | None:
        """Shapes and shardings of the reference."""
        return frozen_like(self.config, self.params) if self.uses_reference else None

    def fresh_state(self, params: Params) -> tuple[TrainState, Params | None]:
        """Initial state and reference of a run; takes over the parameters."""
        reference = load_reference(self.config, self.model, params) if self.uses_reference else None
        return self.optimizer.init(params), reference

    def set_aside(self, state: TrainState, policy: Params | None = None) -> TrainState:
        """The state with its weights where they are while the sampler is awake: on the host with `memory.policy`.

        Args:
          policy: its weights on the device, as in `apply`: a copy that no update took is freed.
        """
        if self.config.memory.policy == "device":
            return state
        if on_host(state.params):
            free(policy)
            return state
        return state._replace(params=move_to_host(state.params))

    # Generate.

    def open_sampler(self, params: Params, *, version: int) -> Sampler:
        """A sampler of the policy with the given parameters."""
        return chat_sampler(
            train_settings(self.config),
            self.engine,
            self.model,
            params,
            self.chat,
            version=version,
            probe_ids=self.prompts[0].teacher_ids,
        )

    def requests(self, step: int) -> tuple[list[Prompt], list[Request]]:
        """The prompts of a step, and a request for each prompt's group of completions; seeds depend on the step."""
        group = self.config.num_generations
        prompts = self.prompts.take(self.questions(step - 1))
        seeds = np.random.SeedSequence((self.config.seed, step)).generate_state(self.config.train_batch_size)
        group_seeds = [tuple(map(int, seeds[i * group : (i + 1) * group])) for i in range(len(prompts))]
        return prompts, [Request(prompt.teacher_ids, seeds) for prompt, seeds in zip(prompts, group_seeds)]

    def generate(
        self,
        sampler: Sampler,
        requests: Sequence[Request],
        policy: Params,
        *,
        name: str,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """Sample the completions of all requests, unless they are on disk; on return they are.

        Args:
          policy: the weights that the sampler has.
          name: as in `Rollouts.drawn_once`.
        """

        def draw() -> list[tuple[Completion, ...]]:
            return self.backoff.run(
                "generate",
                lambda sizes: sampler.generate(
                    requests, sampling_of(self.config), max_batch=sizes.generate, on_progress=on_progress
                ),
            )

        return self.rollouts.drawn_once(name, requests, policy, draw)

    # Score.

    def score(
        self, policy: Params, reference: Params | None, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> Scored:
        """Score completions; completion i belongs to prompt i.

        Raises:
          NotFinite: log-probs, rewards or components are NaN or infinite.
        """
        teacher = reference if self.config.reward.use_reference_teacher_model else policy
        rows = completion_rows(prompts, completions, chat=self.chat, eos_ids=self.eos_ids)
        with stage("score"):
            return self.backoff.run(
                "score",
                lambda sizes: self.scorer.score(teacher, prompts, rows, tokens=sizes.score),
                least=longest_row(rows),
            )

    def reference_logprobs(
        self, reference: Params | None, scored: Scored, completions: Sequence[Completion]
    ) -> Pass | None:
        """The reference's log-probs of the completions, 0 on the prompts; None: no KL term.

        Raises:
          NotFinite: some are NaN or infinite.
        """
        if self.config.loss.beta == 0 or reference is None:
            return None
        ids = [row.teacher_ids for row in scored.rows]
        logprobs = partial(
            finite_logprobs,
            self.model,
            reference,
            ids,
            temperature=self.config.policy_temperature,
            chunk=self.config.loss.logprob_chunk,
            who="reference",
            name=row_names(scored),
            wanted=completion_places(ids, [len(completion.token_ids) for completion in completions]),
        )
        with stage("reference", reward=reward_of(scored)):
            return self.backoff.run("score", lambda sizes: logprobs(tokens=sizes.score), least=longest_of(scored))

    def advantages(self, scored: Scored) -> np.ndarray:
        """Advantages f32[B]: rewards normalised within each group.

        Raises:
          NotFinite: rewards are so large that their mean overflows.
        """
        rewards = reward_of(scored)
        advantages = np.asarray(group_advantages(jnp.asarray(rewards), self.config.num_generations))
        why = f"the advantages (of rewards as large as {np.abs(rewards).max():.3g}, by {self.scorer.reward_name})"
        with stage("advantages", reward=rewards, advantages=advantages):
            check_rows(advantages, why, name=row_names(scored))
        return advantages

    # Update.

    def gradients(
        self,
        policy: Params,
        scored: Scored,
        completions: Sequence[Completion],
        reference: Pass | None,
        advantages: np.ndarray,
    ) -> tuple[Params, dict, StepWork]:
        """Gradients of the step's loss and its diagnostics f32[] by name, both still on the device; the step's work.

        Args:
          reference: of `reference_logprobs`.
        Raises:
          NotFinite: the sampler's log-probs, a diagnostic or a gradient is NaN or infinite, or an update could be. The
            gradients have been freed.
        """
        known = {"reward": reward_of(scored), "advantages": advantages}
        if self.config.compares_sampler:
            sampled = [completion.logps for completion in completions]
            with stage("gradients", **known, sampler_logps=np.concatenate(sampled)):
                check_rows(sampled, "the sampler's log-probs", name=row_names(scored))
        ids = [row.teacher_ids for row in scored.rows]
        config, sampled_lengths = self.model.config, [len(completion.token_ids) for completion in completions]
        wanted = completion_places(ids, sampled_lengths)
        batches = partial(
            grpo_batches,
            ids,
            sampled_lengths,
            None if reference is None else reference.logps,
            [completion.logps for completion in completions],
            advantages,
        )

        def sum_at(sizes: BatchSizes) -> tuple[Params, dict, Work]:
            laid_out = batches_for(config, dtype_of(policy), ids, tokens=sizes.update)
            micro_batches = batches(batches=laid_out, longest=self.config.max_completion_length)
            sums = self.sum_gradients(policy, micro_batches, save_activations=sizes.save_activations)
            return *sums, work_of(config, laid_out, list(map(len, ids)), wanted, passes=UPDATE_PASSES)

        gradients, losses, work = self.backoff.run("update", sum_at, least=longest_of(scored))
        with stage("gradients", **known):
            check_update(self.model, policy, gradients, losses, bound=self.optimizer.bound, who="the policy")
        of_reference = {} if reference is None else {"reference": reference.work}
        return gradients, losses, {**scored.work, **of_reference, "update": work}

    def apply(self, state: TrainState, policy: Params, gradients: Params) -> tuple[TrainState, jax.Array]:
        """The state after an update, its weights on the device, and the gradients' norm f32[] before clipping.

        All arguments are donated or freed. Where the weights were set aside, nobody may read them any more.

        Args:
          policy: the state's weights on the device: its own, or a copy (`device.placement.to_device`).
        """
        if policy is not state.params:
            free(state.params)  # so that the pinned memory is there for the new weights
        state, norm = self.optimizer.apply(state._replace(params=policy), gradients)
        free(gradients)
        return state, norm

    def move_reference(self, step: int, reference: Params | None, policy: Params) -> Params | None:
        """The reference after a step: moved towards the policy if a sync is due, and then the old one is donated."""
        ref = self.config.ref
        if reference is None or not (ref.sync_ref_model and step % ref.ref_model_sync_steps == 0):
            return reference
        return self.sync_reference(reference, policy, ref.ref_model_mixup_alpha)

    # Report.

    def evidence(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Evidence:
        """What a step had, to compute it again."""
        batch = {
            "rows": np.array([prompt.row.number for prompt in prompts], np.int64),
            **joined("prompt_ids", [prompt.teacher_ids for prompt in prompts]),
            **joined("token_ids", [completion.token_ids for completion in completions]),
            **joined("logps", [completion.logps for completion in completions]),
            "finished": np.array([completion.finished for completion in completions]),
        }
        facts = {"command": "train", "sizes": asdict(self.backoff.sizes), "reward": self.scorer.reward_name}
        facts["reads"] = sorted(self.scorer.reads)
        return Evidence(batch, facts)

    def samples(self, step: int, scored: Scored, completions: Sequence[Completion]) -> Iterator[dict[str, object]]:
        """Some of a step's completions with their scores, for completions.jsonl."""
        probability = self.config.log.sample_probability
        return sample_records(scored, completions, probability=probability, seed=(self.config.seed, step))

    def watch_matches(self, scored: Scored, completions: Sequence[Completion], *, step: int) -> None:
        """Warn, once, if hardly any explanation of the first steps closes its tags."""
        matched = [row.matched for row in scored.rows]
        if warning := self.matches(matched, [completion.finished for completion in completions], step=step):
            log.warning(warning)

    def alarms(self, metrics: Mapping[str, float], *, step: int) -> dict[str, float]:
        """`alarm/NAME`, 0 or 1, of a logged step; the log says which alarms begin and end."""
        states, said = self.watch(metrics)
        for words in said:
            log.warning("step %d: %s", step, words)
        return states

    # Memory.

    def watch_memory(self, peaks: dict[str, float], *, compare: bool) -> None:
        """Warn of phases whose memory is close to the budget.

        Args:
          compare: also log planned and measured peaks.
        """
        for warning in self.budget(peaks):
            log.warning(warning)
        if compare:
            planned = at_batch_sizes(self.planned, **asdict(self.backoff.sizes))
            for line in plan_and_measured(planned.step_peaks(), peaks):
                log.info(line)


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
                grpo_objective(config.loss, compare_sampler=config.compares_sampler),
                temperature=config.policy_temperature,
                chunk=config.loss.logprob_chunk,
                dtype=config.memory.gradients,
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


def sampling_of(config: TrainConfig) -> SamplingParams:
    """The sampling parameters of a run."""
    return sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)


def reward_of(scored: Scored) -> np.ndarray:
    """The rewards f32[B]."""
    return np.asarray(scored.rewards.reward, np.float32)


def longest_of(scored: Scored) -> int:
    """Tokens of the longest prompt with its completion."""
    return max(len(row.teacher_ids) for row in scored.rows)


def completion_places(ids: Sequence[np.ndarray], lengths: Sequence[int]) -> list[np.ndarray]:
    """Positions of the completions, of the given lengths, at the ends of ids i32[T_i]."""
    return [np.arange(len(row) - length, len(row)) for row, length in zip(ids, lengths, strict=True)]


def row_names(scored: Scored) -> Callable[[int], str]:
    """Names the rows of a step in messages."""
    return row_name([prompt.row.number for prompt in scored.prompts])


def out_of_memory_advice(planned: Ledger) -> str:
    """The plan and what to change, for a run that does not fit on the GPU."""
    advice = (
        "lower --max-completion-length or --max-prompt-length, use --preset mono85_fallback, or run "
        "`python -m rlt_jax.plan` with the flags of this run to see what fits"
    )
    return "\n".join([*ledger_lines(planned), advice])
