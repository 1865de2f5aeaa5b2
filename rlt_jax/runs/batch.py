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
        return np.asarray(self.scored.rewards.reward, np.float32)

    def part(self, rows: Sequence[int] | np.ndarray) -> "Batch":
        """Those with the given indices."""
        if len(rows) == len(self.completions):
            return self

        def of(values: Sequence) -> list:
            return [values[i] for i in rows]

        def of_pass(made: Pass | None) -> Pass | None:
            if made is None:
                return None
            entropies = None if made.entropies is None else of(made.entropies)
            return made._replace(logps=of(made.logps), entropies=entropies)

        scored, chosen = self.scored, np.asarray(rows)
        components = {name: np.asarray(values)[chosen] for name, values in scored.rewards.components.items()}
        rewards = Rewards(np.asarray(scored.rewards.reward)[chosen], components)
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

    def loss_rows(self, config: TrainConfig) -> LossRows:
        """What the loss of a gradient step on all of them reads."""
        lengths = [len(completion.token_ids) for completion in self.completions]

        def tails(values: Sequence[np.ndarray] | None) -> list[np.ndarray] | None:
            return None if values is None else [row[len(row) - n :] for row, n in zip(values, lengths)]

        old = self.policy if config.steps_per_draw > 1 else None
        reference = self.reference if config.loss.kl_in == "loss" else None
        keep = None
        if self.policy is not None and (entropies := tails(self.policy.entropies)) is not None:
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

    def of(values: Sequence, others: Sequence) -> list:
        both = [*values, *others]
        return [both[i] for i in source]

    def array(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.concatenate([values, others])[source]

    def of_pass(made: Pass | None, others: Pass | None) -> Pass | None:
        if made is None or others is None:
            return None
        both = made.entropies is not None and others.entropies is not None
        entropies = of(made.entropies or (), others.entropies or ()) if both else None
        return Pass(of(made.logps, others.logps), made.work + others.work, entropies)

    ours, theirs = batch.scored.rewards, other.scored.rewards
    components = {
        name: array(np.asarray(x), np.asarray(theirs.components[name])) for name, x in ours.components.items()
    }
    rewards = Rewards(array(np.asarray(ours.reward), np.asarray(theirs.reward)), components, ours.terms)
    prompts, rows = of(batch.scored.prompts, other.scored.prompts), of(batch.scored.rows, other.scored.rows)
    return Batch(
        array(batch.questions, other.questions),
        batch.scored._replace(prompts=prompts, rows=rows, rewards=rewards),
        of(batch.completions, other.completions),
        of_pass(batch.policy, other.policy),
        of_pass(batch.reference, other.reference),
        array(batch.advantages, other.advantages),
        array(batch.trained, other.trained),
        {name: work + other.work[name] for name, work in batch.work.items()},
        batch.replaced + len(taken),
    )


def arrays_of_batch(batch: Batch) -> dict[str, np.ndarray]:
    """All of a batch but prompts, rows and what computing it took, as arrays; `batch_of_arrays` turns them back."""
    lengths = [len(completion.token_ids) for completion in batch.completions]

    def tails(values: Sequence[np.ndarray]) -> np.ndarray:
        # of the completions: their prompts have 0
        return np.concatenate([row[len(row) - length :] for row, length in zip(values, lengths)])

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
            arrays[f"{name}/logps"] = tails(made.logps)
            if made.entropies is not None:
                arrays[f"{name}/entropies"] = tails(made.entropies)
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def batch_of_arrays(
    arrays: Mapping[str, np.ndarray],
    prompts_of: Callable[[np.ndarray], Sequence[Prompt]],
    rows_of: Callable[[Sequence[Prompt], Sequence[Completion]], list[ScoreRow]],
) -> Batch:
    """The batch of `arrays_of_batch`.

    Args:
      prompts_of: i64[B] questions -> the prompt of each.
      rows_of: prompts, completions -> their rows.
    """
    completions, prompts = completions_of(arrays), prompts_of(arrays["questions"])
    scored_rows = rows_of(prompts, completions)

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
