"""What gradient steps read of one draw: completions with rewards, and all that stays as it was before the first step.

A draw is used for `num_iterations` x `num_minibatches` gradient steps. In each iteration every completion has its turn,
in parts of whole groups.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlt_jax.configs import TrainConfig
from rlt_jax.learner.step import LossRows
from rlt_jax.losses import top_entropy_threshold
from rlt_jax.models import Work
from rlt_jax.rewards.logprobs import Pass
from rlt_jax.rewards.rlt import Rewards
from rlt_jax.rewards.scorer import Scored
from rlt_jax.runs.rollouts import arrays_of, completions_of
from rlt_jax.types import Completion, Prompt, ScoreRow


@dataclass(frozen=True)
class Turn:
    """A gradient step, among those that use one draw."""

    draw: int  # number of the draw, from 1
    number: int  # of the gradient step, from 0
    of: int  # gradient steps of a draw

    @property
    def first_step(self) -> int:
        """The first gradient step of the draw, by which its files are named."""
        return (self.draw - 1) * self.of + 1

    @property
    def is_first(self) -> bool:
        """Whether the draw comes before it."""
        return self.number == 0

    @property
    def is_last(self) -> bool:
        """Whether another draw follows."""
        return self.number == self.of - 1


def turn_of(config: TrainConfig, step: int) -> Turn:
    """The turn of a gradient step, from 1."""
    draw, number = divmod(step - 1, config.steps_per_draw)
    return Turn(draw + 1, number, config.steps_per_draw)


def rows_of(config: TrainConfig, turn: Turn) -> np.ndarray:
    """The completions of a turn, indices into those of the draw, i64[B / num_minibatches].

    Which questions form a part is drawn for each iteration.
    """
    iteration, part = divmod(turn.number, config.num_minibatches)
    questions = np.arange(config.questions_per_draw)
    if config.num_minibatches > 1:
        random = np.random.default_rng(np.random.SeedSequence((config.seed, turn.draw, iteration)))
        questions = np.sort(np.split(random.permutation(questions), config.num_minibatches)[part])
    return (questions[:, None] * config.num_generations + np.arange(config.num_generations)).reshape(-1)


class Drawn(NamedTuple):
    """The B completions of a draw, in groups of one question each."""

    questions: np.ndarray  # i64[B] indices into the prompts that are trained on
    prompts: Sequence[Prompt]  # B
    completions: Sequence[Completion]  # B


class Batch(NamedTuple):
    """The completions of a draw, or of a part of it."""

    questions: np.ndarray  # i64[B] as in Drawn
    scored: Scored  # with rewards
    completions: Sequence[Completion]
    policy: Pass | None  # log-probs of the policy before the first gradient step; None: not read
    reference: Pass | None  # None: no KL term
    advantages: np.ndarray  # f32[B]
    trained: np.ndarray  # bool[B] which of them the loss counts
    work: Mapping[str, Work] = {}  # pass ("teacher", "student", "policy", "reference") -> its work, in this process
    replaced: int = 0  # groups of the draw that took the place of others

    @property
    def drawn(self) -> Drawn:
        """Without what was computed."""
        return Drawn(self.questions, self.scored.prompts, self.completions)

    @property
    def reward(self) -> np.ndarray:
        """The rewards f32[B]."""
        return self.scored.reward

    def part(self, rows: Sequence[int] | np.ndarray) -> "Batch":
        """Those with the given indices."""
        chosen = np.asarray(rows)
        if np.array_equal(chosen, np.arange(len(self.completions))):
            return self

        def of(values: Sequence) -> list:
            return [values[i] for i in rows]

        def of_pass(made: Pass | None) -> Pass | None:
            if made is None:
                return None
            entropies = None if made.entropies is None else of(made.entropies)
            return made._replace(logps=of(made.logps), entropies=entropies)

        scored = self.scored
        components = {name: np.asarray(values)[chosen] for name, values in scored.rewards.components.items()}
        rewards = scored.rewards._replace(reward=np.asarray(scored.rewards.reward)[chosen], components=components)
        return Batch(
            self.questions[chosen],
            scored._replace(prompts=of(scored.prompts), rows=of(scored.rows), rewards=rewards),
            of(self.completions),
            of_pass(self.policy),
            of_pass(self.reference),
            self.advantages[chosen],
            self.trained[chosen],
            self.work,
            self.replaced,
        )

    def tails(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of values [T_i] of prompts with completions, those of the completions."""
        lengths = [len(completion.token_ids) for completion in self.completions]
        return [row[len(row) - length :] for row, length in zip(values, lengths, strict=True)]

    def loss_rows(self, config: TrainConfig) -> LossRows:
        """What the loss of a gradient step on all of them reads."""
        tails = self.tails
        old = self.policy if config.steps_per_draw > 1 else None
        reference = self.reference if config.loss.kl_in == "loss" else None
        keep = None
        if self.policy is not None and self.policy.entropies is not None:
            entropies = tails(self.policy.entropies)
            threshold = top_entropy_threshold(entropies, quantile=config.loss.top_entropy_quantile)
            keep = [row >= threshold for row in entropies]
        return LossRows(
            [completion.logps for completion in self.completions],
            self.advantages,
            ref_logps=None if reference is None else tails(reference.logps),
            old_logps=None if old is None else tails(old.logps),
            keep=keep,
        )


def exchanged(batch: Batch, groups: np.ndarray, other: Batch, taken: np.ndarray, *, group: int) -> Batch:
    """A batch with some of its groups replaced by those of another one; advantages are those that each had.

    Args:
      groups, taken: which are replaced, and by which, as many of both.
      group: completions of a question.
    """
    source = np.arange(len(batch.completions))
    for place, replacement in zip(groups, taken, strict=True):
        inside = np.arange(group)
        source[place * group + inside] = len(source) + replacement * group + inside
    return _both(batch, other).part(source)._replace(replaced=batch.replaced + len(taken))


def _both(batch: Batch, other: Batch) -> Batch:
    """The completions of one, then those of the other; both hold the same kinds of values."""

    def of_pass(made: Pass | None, others: Pass | None) -> Pass | None:
        if made is None or others is None:
            return None
        entropies = None if made.entropies is None else [*made.entropies, *(others.entropies or ())]
        return Pass([*made.logps, *others.logps], made.work + others.work, entropies)

    ours, theirs = batch.scored, other.scored
    components = {
        name: np.concatenate([values, theirs.rewards.components[name]])
        for name, values in ours.rewards.components.items()
    }
    reward = np.concatenate([ours.rewards.reward, theirs.rewards.reward])
    return Batch(
        np.concatenate([batch.questions, other.questions]),
        ours._replace(
            prompts=[*ours.prompts, *theirs.prompts],
            rows=[*ours.rows, *theirs.rows],
            rewards=ours.rewards._replace(reward=reward, components=components),
        ),
        [*batch.completions, *other.completions],
        of_pass(batch.policy, other.policy),
        of_pass(batch.reference, other.reference),
        np.concatenate([batch.advantages, other.advantages]),
        np.concatenate([batch.trained, other.trained]),
        {name: work + other.work[name] for name, work in batch.work.items()},
    )


def arrays_of_batch(batch: Batch) -> dict[str, np.ndarray]:
    """All of a batch but prompts, rows and what computing it took, as arrays; `batch_of_arrays` turns them back."""
    arrays = {
        **arrays_of(batch.completions),
        "questions": batch.questions,
        "replaced": np.array([batch.replaced]),
        "reward": np.asarray(batch.scored.rewards.reward),
        **{f"component/{name}": np.asarray(values) for name, values in batch.scored.rewards.components.items()},
        "advantages": batch.advantages,
        "trained": batch.trained.astype(np.uint8),
    }
    for name, made in (("policy", batch.policy), ("reference", batch.reference)):
        if made is not None:
            arrays[f"{name}/logps"] = np.concatenate(batch.tails(made.logps))  # their prompts have 0
            if made.entropies is not None:
                arrays[f"{name}/entropies"] = np.concatenate(batch.tails(made.entropies))
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def batch_of_arrays(
    arrays: Mapping[str, np.ndarray],
    prompts_of: Callable[[np.ndarray], Sequence[Prompt]],
    rows_to_score: Callable[[Sequence[Prompt], Sequence[Completion]], list[ScoreRow]],
) -> Batch:
    """The batch of `arrays_of_batch`.

    Args:
      prompts_of: i64[B] questions -> the prompt of each.
      rows_to_score: prompts, completions -> their rows.
    """
    completions, prompts = completions_of(arrays), prompts_of(arrays["questions"])
    scored_rows = rows_to_score(prompts, completions)

    def whole(name: str) -> list[np.ndarray] | None:
        if name not in arrays:
            return None
        tails = np.split(arrays[name], np.cumsum(arrays["lengths"])[:-1])
        return [np.pad(tail, (len(row.teacher_ids) - len(tail), 0)) for tail, row in zip(tails, scored_rows)]

    def made(name: str) -> Pass | None:
        logps = whole(f"{name}/logps")
        return None if logps is None else Pass(logps, Work(), whole(f"{name}/entropies"))

    prefix = "component/"
    components = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    return Batch(
        arrays["questions"],
        Scored(prompts, scored_rows, Rewards(arrays["reward"], components)),
        completions,
        made("policy"),
        made("reference"),
        arrays["advantages"],
        arrays["trained"].astype(bool),
        replaced=int(arrays["replaced"][0]),
    )
