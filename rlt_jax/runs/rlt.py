"""The parts of an RLT run, built once: data, models, optimizer, sampling engine, scorer, gradients.

What changes from step to step (the policy's state, the reference) is an argument of the functions here, and none of
them holds it: the loop in `train.py` owns it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import jax
import numpy as np

from rlt_jax.configs import TrainConfig
from rlt_jax.data import ChatFormat, Lazily
from rlt_jax.device.backoff import BatchSizes, MemoryBackoff
from rlt_jax.device.budget import BudgetWatch, plan_and_measured
from rlt_jax.device.placement import free, move_to_host, on_host
from rlt_jax.finite import check_rows, stage
from rlt_jax.learner.guard import check_update
from rlt_jax.learner.optimizer import Optimizer
from rlt_jax.learner.state import TrainState
from rlt_jax.learner.step import SumGradients, grpo_batches
from rlt_jax.models import UPDATE_PASSES, Model, Params, Work, batches_for, dtype_of, work_of
from rlt_jax.planner.ledger import Ledger
from rlt_jax.planner.run_plan import at_batch_sizes
from rlt_jax.rewards.logprobs import Pass, finite_logprobs, row_name
from rlt_jax.rewards.records import sample_records
from rlt_jax.rewards.scorer import Scored, Scorer, completion_rows, longest_row
from rlt_jax.runs.advantages import advantages_of, even_groups
from rlt_jax.runs.alarms import Alarms
from rlt_jax.runs.batch import Batch, Drawn, Turn, arrays_of_batch, batch_of_arrays, exchanged, turn_of
from rlt_jax.runs.match_rate import MatchWatch
from rlt_jax.runs.reference import load_reference
from rlt_jax.runs.rollouts import Rollouts
from rlt_jax.runs.session import Session
from rlt_jax.runs.setup import (
    chat_sampler,
    frozen_like,
)
from rlt_jax.runs.skipping import Evidence, joined
from rlt_jax.runs.work import Meter
from rlt_jax.sampling.base import Sampler
from rlt_jax.sampling.engine import Engine
from rlt_jax.sampling.factory import sampling_params, train_settings
from rlt_jax.types import Completion, Prompt, Request, Row, SamplingParams, ScoreRow

EARLIER = "earlier/"  # prefix of what an earlier step had computed for its draw, in evidence

log = logging.getLogger("rlt_jax")


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

    def requests(self, turn: Turn) -> tuple[np.ndarray, list[Request]]:
        """The questions of a draw, indices into `prompts`, and a request for the group of completions of each."""
        questions = self.questions(turn.draw - 1)
        return questions, self.requests_of(questions, (turn.draw,))

    def requests_of(self, questions: np.ndarray, key: tuple[int, ...]) -> list[Request]:
        """A request for a group of completions of each question, with seeds that follow from the run's and the key."""
        group = self.config.num_generations
        seeds = np.random.SeedSequence((self.config.seed, *key)).generate_state(len(questions) * group)
        of_groups = seeds.reshape(-1, group).tolist()
        prompts = self.prompts.take(questions)
        return [Request(prompt.teacher_ids, tuple(seeds)) for prompt, seeds in zip(prompts, of_groups)]

    def each_prompt(self, questions: np.ndarray) -> list[Prompt]:
        """The prompts of questions i64[B], of which those of a group are the same."""
        group = self.config.num_generations
        return [prompt for prompt in self.prompts.take(questions[::group]) for _ in range(group)]

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

    def draw(self, session: Session, sampler: Sampler, policy: Params, turn: Turn, earlier: Batch | None) -> Drawn:
        """The completions of a draw. Then the sampler is asleep: the models have the device.

        Args:
          earlier: what an earlier step has left of this draw. None: it is drawn now (see `generate`).
        """
        if earlier is not None:
            sampler.sleep()  # an evaluation may have woken it
            return earlier.drawn
        with session.phase("generate"):
            return self._drawn(session, sampler, policy, *self.requests(turn), name=str(turn.first_step))

    def _drawn(
        self,
        session: Session,
        sampler: Sampler,
        policy: Params,
        questions: np.ndarray,
        requests: Sequence[Request],
        *,
        name: str,
    ) -> Drawn:
        groups = self.generate(sampler, requests, policy, name=name, on_progress=session.show_tokens)
        sampler.sleep()
        of_each = np.repeat(questions, self.config.num_generations)
        return Drawn(of_each, self.each_prompt(of_each), [completion for group in groups for completion in group])

    def replaced(
        self,
        session: Session,
        sampler: Sampler,
        policy: Params,
        reference: Params | None,
        batch: Batch,
        turn: Turn,
    ) -> Batch:
        """The batch with other questions in place of those whose rewards are all equal, if the configuration says so.

        Dynamic sampling (DAPO, arXiv 2503.14476, sec. 3.2), with a bound on the draws: what is left then stays.
        """
        settings, group = self.config.advantages, self.config.num_generations
        used = set(batch.questions.tolist())
        for again in range(1, settings.max_redraws + 1 if settings.zero_spread == "replace" else 1):
            even = even_groups(batch.reward, group)
            spare = np.setdiff1d(np.arange(len(self.prompts)), list(used))
            count = min(int(even.sum()), len(spare))
            if not count:
                break
            key = (turn.draw, again)
            random = np.random.default_rng(np.random.SeedSequence((self.config.seed, *key)))
            questions = random.choice(spare, count, replace=False)
            used |= set(questions.tolist())
            with session.phase("generate"):
                sampler.wake()
                sampler.set_weights(policy, session.done)
                requests, name = self.requests_of(questions, key), f"{turn.first_step}-again{again}"
                drawn = self._drawn(session, sampler, policy, questions, requests, name=name)
            with session.phase("score"):
                more = self.batch(policy, reference, drawn)
                taken = np.flatnonzero(~even_groups(more.reward, group))
                batch = self.advantaged(exchanged(batch, np.flatnonzero(even)[: len(taken)], more, taken, group=group))
        return batch

    # Score.

    def score(
        self, policy: Params, reference: Params | None, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> Scored:
        """Score completions; completion i belongs to prompt i.

        Raises:
          NotFinite: log-probs, rewards or components are NaN or infinite.
        """
        teacher = reference if self.config.reward.use_reference_teacher_model else policy
        rows = self.rows_to_score(prompts, completions)
        with stage("score"):
            return self.backoff.run(
                "score",
                lambda sizes: self.scorer.score(teacher, prompts, rows, tokens=sizes.score),
                least=longest_row(rows),
            )

    def batch(self, policy: Params, reference: Params | None, drawn: Drawn) -> Batch:
        """Score completions, and compute all else that the gradient steps on them read.

        Raises:
          NotFinite: log-probs, rewards, components or advantages are NaN or infinite.
        """
        scored = self.score(policy, reference, drawn.prompts, drawn.completions)
        of_policy = self.policy_logprobs(policy, scored, drawn.completions)
        of_reference = self.reference_logprobs(reference, scored, drawn.completions)
        return self.joined(drawn, scored, of_policy, of_reference)

    def policy_logprobs(self, policy: Params, scored: Scored, completions: Sequence[Completion]) -> Pass | None:
        """The policy's log-probs of the completions before the first gradient step on them; None: nothing reads them.

        Raises:
          NotFinite: some are NaN or infinite.
        """
        if not self.config.reads_old_log_probs:
            return None
        entropies = self.config.loss.top_entropy_quantile < 1
        return self._logprobs(policy, scored, completions, who="policy", entropies=entropies)

    def reference_logprobs(
        self, reference: Params | None, scored: Scored, completions: Sequence[Completion]
    ) -> Pass | None:
        """The reference's log-probs of the completions; None: no KL term.

        Raises:
          NotFinite: some are NaN or infinite.
        """
        if self.config.loss.beta == 0 or reference is None:
            return None
        return self._logprobs(reference, scored, completions, who="reference")

    def _logprobs(
        self, params: Params, scored: Scored, completions: Sequence[Completion], *, who: str, entropies: bool = False
    ) -> Pass:
        """Log-probs of the completions as the loss reads them; 0 on the prompts."""
        ids = [row.teacher_ids for row in scored.rows]
        logprobs = partial(
            finite_logprobs,
            self.model,
            params,
            ids,
            temperature=self.config.policy_temperature,
            chunk=self.config.loss.logprob_chunk,
            who=who,
            name=row_names(scored),
            wanted=completion_places(ids, completions),
            entropies=entropies,
        )
        with stage(who, reward=scored.reward):
            return self.backoff.run("score", lambda sizes: logprobs(tokens=sizes.score), least=longest_of(scored))

    def joined(self, drawn: Drawn, scored: Scored, policy: Pass | None, reference: Pass | None) -> Batch:
        """The batch of what was computed, with its advantages.

        Raises:
          NotFinite: rewards are so large that their mean overflows.
        """
        passes = {"policy": policy, "reference": reference}
        work = {**scored.work, **{name: made.work for name, made in passes.items() if made is not None}}
        zeros = np.zeros(len(drawn.completions), np.float32)
        return self.advantaged(
            Batch(drawn.questions, scored, drawn.completions, policy, reference, zeros, zeros > 0, work)
        )

    def advantaged(self, batch: Batch) -> Batch:
        """A batch with the advantages of its rewards.

        Raises:
          NotFinite: rewards are so large that their mean overflows.
        """
        values, trained = advantages_of(
            self.config,
            batch.scored,
            batch.completions,
            batch.policy,
            batch.reference,
            reward_name=self.scorer.reward_name,
            name=row_names(batch.scored),
        )
        return batch._replace(advantages=values, trained=trained)

    def write_batch(self, turn: Turn, batch: Batch) -> str:
        """Keep a batch that several gradient steps use on disk; returns its key for `read_batch`, "" if one does."""
        return "" if turn.is_last else self.rollouts.keep_batch(str(turn.first_step), arrays_of_batch(batch))

    def read_batch(self, turn: Turn, key: str) -> Batch | None:
        """The batch that a resumed run goes on with; None before a draw, and (logged) if it is not on disk."""
        if turn.is_first or not key or (arrays := self.rollouts.kept_batch(str(turn.first_step), key=key)) is None:
            return None
        return batch_of_arrays(arrays, self.each_prompt, self.rows_to_score)

    def rows_to_score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[ScoreRow]:
        """The rows to score of completions, each of the prompt at its place."""
        return completion_rows(prompts, completions, chat=self.chat, eos_ids=self.eos_ids)

    # Update.

    def gradients(self, policy: Params, batch: Batch) -> tuple[Params, dict, Work]:
        """Gradients of a step's loss and its diagnostics f32[] by name, both still on the device; the work of it.

        Raises:
          NotFinite: the sampler's log-probs, a diagnostic or a gradient is NaN or infinite, or an update could be. The
            gradients have been freed.
        """
        known = {"reward": batch.reward, "advantages": batch.advantages}
        if batch.trained.any():  # else all count, with advantages of 0
            batch = batch.part(np.flatnonzero(batch.trained))
        completions, scored = batch.completions, batch.scored
        if self.config.compares_sampler:
            sampled = [completion.logps for completion in completions]
            with stage("gradients", **known, sampler_logps=np.concatenate(sampled)):
                check_rows(sampled, "the sampler's log-probs", name=row_names(scored))
        ids, config = [row.teacher_ids for row in scored.rows], self.model.config
        wanted = completion_places(ids, completions)

        def sum_at(sizes: BatchSizes) -> tuple[Params, dict, Work]:
            laid_out = batches_for(config, dtype_of(policy), ids, tokens=sizes.update)
            micro_batches = grpo_batches(
                ids, batch.loss_rows(self.config), batches=laid_out, longest=self.config.max_completion_length
            )
            sums = self.sum_gradients(policy, micro_batches, save_activations=sizes.save_activations)
            return *sums, work_of(config, laid_out, list(map(len, ids)), wanted, passes=UPDATE_PASSES)

        gradients, losses, work = self.backoff.run("update", sum_at, least=longest_of(scored))
        with stage("gradients", **known):
            check_update(self.model, policy, gradients, losses, bound=self.optimizer.bound, who="the policy")
        return gradients, losses, work

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

    def facts(self, step: int, key: str) -> dict[str, int | str]:
        """What the checkpoint of a step says besides its arrays.

        Args:
          key: of the batch on disk (`write_batch`).
        """
        return {"questions_drawn": turn_of(self.config, step).draw * self.config.questions_per_draw, "batch": key}

    def evidence(self, turn: Turn, drawn: Drawn, earlier: Batch | None = None) -> Evidence:
        """What a step had, to compute it again.

        Args:
          earlier: what was computed in an earlier step of the draw, with other weights.
        """
        batch = {
            "rows": np.array([prompt.row.number for prompt in drawn.prompts], np.int64),
            "questions": drawn.questions,
            **joined("prompt_ids", [prompt.teacher_ids for prompt in drawn.prompts]),
            **joined("token_ids", [completion.token_ids for completion in drawn.completions]),
            **joined("logps", [completion.logps for completion in drawn.completions]),
            "finished": np.array([completion.finished for completion in drawn.completions]),
        }
        if earlier is not None:
            batch |= {f"{EARLIER}{name}": values for name, values in arrays_of_batch(earlier).items()}
        facts = {"command": "train", "sizes": asdict(self.backoff.sizes), "reward": self.scorer.reward_name}
        return Evidence(batch, {**facts, "reads": sorted(self.scorer.reads), "turn": turn.number})

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


def sampling_of(config: TrainConfig) -> SamplingParams:
    """The sampling parameters of a run."""
    return sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)


def longest_of(scored: Scored) -> int:
    """Tokens of the longest prompt with its completion."""
    return max(len(row.teacher_ids) for row in scored.rows)


def completion_places(ids: Sequence[np.ndarray], completions: Sequence[Completion]) -> list[np.ndarray]:
    """Positions of the completions, at the ends of ids i32[T_i]."""
    lengths = [len(completion.token_ids) for completion in completions]
    return [np.arange(len(row) - length, len(row)) for row, length in zip(ids, lengths, strict=True)]


def row_names(scored: Scored) -> Callable[[int], str]:
    """Names the rows of a step in messages."""
    return row_name([prompt.row.number for prompt in scored.prompts])
