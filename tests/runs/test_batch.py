"""Which completions a gradient step uses, and a batch on disk."""

from dataclasses import replace

import numpy as np
import pytest

from rlt_jax.configs import PRESETS, LossConfig
from rlt_jax.models import Work
from rlt_jax.rewards.logprobs import Pass
from rlt_jax.rewards.rlt import Rewards
from rlt_jax.rewards.scorer import Scored
from rlt_jax.runs.batch import Batch, arrays_of_batch, batch_of_arrays, exchanged, rows_of, turn_of
from rlt_jax.types import Completion, ScoreRow

CONFIG = replace(
    PRESETS["tiny"], output_dir="x", train_batch_size=12, num_generations=2, num_iterations=2, num_minibatches=3
)
NONE = np.zeros(0, np.int32)


def test_every_completion_has_its_turn_once_in_each_iteration_and_groups_stay_together():
    for draw in (1, 2):
        turns = [turn_of(CONFIG, (draw - 1) * 6 + number) for number in range(1, 7)]
        assert [turn.draw for turn in turns] == [draw] * 6
        assert [turn.number for turn in turns] == list(range(6))
        assert [turn.is_first for turn in turns] == [True] + [False] * 5
        assert [turn.is_last for turn in turns] == [False] * 5 + [True]
        assert {turn.first_step for turn in turns} == {(draw - 1) * 6 + 1}
        parts = [rows_of(CONFIG, turn) for turn in turns]
        for iteration in (parts[:3], parts[3:]):
            assert sorted(np.concatenate(iteration)) == list(range(12))
        for part in parts:
            assert len(part) == 4
            assert all(part[1::2] == part[::2] + 1) and all(part[::2] % 2 == 0)
    drawn = [tuple(rows_of(CONFIG, turn_of(CONFIG, step))) for step in range(1, 200)]
    assert len(set(drawn)) == 15  # all choices of two of six questions
    assert drawn == [tuple(rows_of(CONFIG, turn_of(CONFIG, step))) for step in range(1, 200)]
    other = replace(CONFIG, seed=7)
    assert drawn != [tuple(rows_of(other, turn_of(other, step))) for step in range(1, 200)]


def test_one_step_a_draw_uses_all_in_their_order():
    config = replace(CONFIG, num_iterations=1, num_minibatches=1)
    for step in (1, 2, 9):
        turn = turn_of(config, step)
        assert (turn.draw, turn.first_step, turn.is_first, turn.is_last) == (step, step, True, True)
        assert rows_of(config, turn).tolist() == list(range(12))


def score_row(prompt: int, completion: int) -> ScoreRow:
    return ScoreRow(np.arange(prompt + completion, dtype=np.int32), NONE, NONE, NONE, NONE, True, "", 0.0, 0.0)


def a_batch(entropies: bool = True, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    lengths, prompts = [3, 0, 5, 2], [4, 4, 6, 6]
    rows = [score_row(p, n) for p, n in zip(prompts, lengths)]

    def values() -> list[np.ndarray]:
        return [np.concatenate([np.zeros(p), rng.normal(size=n)]).astype(np.float32) for p, n in zip(prompts, lengths)]

    completions = [
        Completion(np.arange(n, dtype=np.int32), rng.normal(size=n).astype(np.float32), n != 5, 7) for n in lengths
    ]
    reward = rng.normal(size=4).astype(np.float32)
    rewards = Rewards(reward, {"a": reward * 2, "b": -reward})
    policy = Pass(values(), Work(real=3), values() if entropies else None)
    trained = np.array([True, True, False, True])
    advantages = rng.normal(size=4).astype(np.float32)
    scored, reference = Scored(list("wwzz"), rows, rewards), Pass(values(), Work())
    return Batch(np.array([4, 4, 9, 9]), scored, completions, policy, reference, advantages, trained, {}, 1)


@pytest.mark.parametrize("entropies", [True, False])
def test_a_batch_comes_back_from_its_arrays(entropies):
    batch = a_batch(entropies)
    back = batch_of_arrays(
        arrays_of_batch(batch),
        lambda questions: [f"of {q}" for q in questions],
        lambda prompts, drawn: batch.scored.rows,
    )
    assert back.scored.prompts == ["of 4", "of 4", "of 9", "of 9"] and back.questions.tolist() == [4, 4, 9, 9]
    assert back.replaced == 1
    assert [c.finished for c in back.completions] == [True, True, False, True]
    assert {c.weight_version for c in back.completions} == {7}
    pairs = [*zip(batch.completions, back.completions)]
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.logps, theirs.logps)
    np.testing.assert_array_equal(back.scored.rewards.reward, batch.scored.rewards.reward)
    assert back.scored.rewards.components.keys() == {"a", "b"}
    np.testing.assert_array_equal(back.advantages, batch.advantages)
    np.testing.assert_array_equal(back.trained, batch.trained)
    for ours, theirs in ((batch.policy, back.policy), (batch.reference, back.reference)):
        assert all(map(np.array_equal, ours.logps, theirs.logps))
    assert (back.policy.entropies is None) == (not entropies)
    if entropies:
        assert all(map(np.array_equal, batch.policy.entropies, back.policy.entropies))


def test_a_part_of_a_batch_has_the_chosen_rows_in_all_it_holds():
    batch = a_batch()
    part = batch.part(np.array([0, 3]))
    assert part.scored.prompts == ["w", "z"] and part.questions.tolist() == [4, 9] and len(part.scored.rows) == 2
    assert part.reward.tolist() == batch.reward[[0, 3]].tolist()
    assert part.scored.rewards.components["b"].tolist() == (-batch.reward[[0, 3]]).tolist()
    assert part.completions == [batch.completions[0], batch.completions[3]]
    assert part.advantages.tolist() == batch.advantages[[0, 3]].tolist()
    for name in ("policy", "reference"):
        assert getattr(part, name).logps[1] is getattr(batch, name).logps[3]
    assert part.policy.entropies[1] is batch.policy.entropies[3]
    assert batch.part(np.arange(4)) is batch


def test_groups_are_exchanged_with_all_that_belongs_to_them():
    batch, other = a_batch(), a_batch(seed=5)
    both = exchanged(batch, np.array([1]), other, np.array([0]), group=2)
    assert both.questions.tolist() == [4, 4, 4, 4] and both.replaced == 2
    assert both.reward.tolist() == [*batch.reward[:2], *other.reward[:2]]
    assert both.scored.rewards.components["a"].tolist() == [*(batch.reward[:2] * 2), *(other.reward[:2] * 2)]
    assert both.completions == [*batch.completions[:2], *other.completions[:2]]
    assert both.policy.logps[2] is other.policy.logps[0] and both.reference.logps[1] is batch.reference.logps[1]
    assert both.policy.entropies[3] is other.policy.entropies[1]
    assert both.scored.rows[2] is other.scored.rows[0] and both.scored.prompts == ["w", "w", "w", "w"]
    same = exchanged(batch, np.array([], int), other, np.array([], int), group=2)
    assert same.reward.tolist() == batch.reward.tolist() and same.replaced == 1


def test_the_loss_reads_completions_alone_and_old_log_probs_where_there_are_several_steps():
    batch, loss = a_batch(), LossConfig(top_entropy_quantile=0.5)
    once = replace(CONFIG, num_iterations=1, num_minibatches=1, loss=loss)
    rows = batch.loss_rows(once)
    assert rows.old_logps is None
    assert [len(row) for row in rows.ref_logps] == [len(row) for row in rows.keep] == [3, 0, 5, 2]
    np.testing.assert_array_equal(rows.ref_logps[2], batch.reference.logps[2][6:])
    several = batch.loss_rows(replace(CONFIG, loss=loss))
    np.testing.assert_array_equal(several.old_logps[0], batch.policy.logps[0][4:])
    kept = np.concatenate(rows.keep)
    tokens = np.concatenate([row[-n:] if n else row[:0] for row, n in zip(batch.policy.entropies, [3, 0, 5, 2])])
    assert kept.sum() == 5 and tokens[kept].min() > tokens[~kept].max()  # half of the ten tokens of the step
