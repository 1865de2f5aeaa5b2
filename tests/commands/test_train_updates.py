"""Several gradient steps on the completions of one draw: what each uses, and a run that is resumed between them."""

from pathlib import Path

import numpy as np
import pytest

from rlt_jax.configs import parse_train_args
from rlt_jax.rewards.rlt import RewardInputs
from rlt_jax.train import train
from tests.commands.test_train import assert_same_run, lines, training_lines

pytestmark = pytest.mark.slow

SEVERAL = ("--num-iterations", "2", "--num-minibatches", "2", "--log.sample-probability", "1", "--save-steps", "1")
DRAWS = ("--loss.top-entropy-quantile", "0.8", "--loss.kind", "dapo", "--loss.epsilon-low", "0.02")


@pytest.fixture(scope="module")
def start(small):
    def run(folder: Path, steps: int, *flags: object) -> Path:
        line = [*small, *SEVERAL, *DRAWS, "--max-steps", steps, "--output-dir", folder, *flags]
        return train(parse_train_args(list(map(str, line)))[0])

    return run


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """Two draws of 8 completions, each for 4 steps of 4 completions."""
    return start(tmp_path_factory.mktemp("updates") / "whole", 8)


def test_a_draw_is_used_for_each_of_its_steps(whole):
    logged, samples = training_lines(whole), lines(whole / "completions.jsonl")
    assert (
        " 8 steps of 2 questions x 4 completions, each draw for 4 steps; " in (whole / "logs/training.log").read_text()
    )
    assert [line["step"] for line in logged] == list(range(1, 9))
    assert {sample["step"] for sample in samples} == {1, 5} and len(samples) == 16
    assert {sample["weight_version"] for sample in samples} == {0, 4}  # what is drawn, is drawn by the newest weights
    for draw in (logged[:4], logged[4:]):
        assert len({line["reward"] for line in draw}) == 1
        assert ["seconds/generate" in line for line in draw] == [True, False, False, False]
        assert ["tokens/score_policy_real" in line for line in draw] == [True, False, False, False]
        # the first part is new to the policy, which no step has changed yet; the second iteration is off-policy
        assert draw[0]["ratio"] == pytest.approx(1, abs=1e-5) and draw[0]["clip"] == 0
        assert abs(draw[3]["ratio"] - 1) > 1e-4
        halves = [line["tokens/update_real"] for line in draw]
        assert halves[0] + halves[1] == halves[2] + halves[3]  # every completion once in an iteration
    assert max(line["clip"] for line in logged) > 0


def test_a_run_that_stops_between_the_steps_of_a_draw_goes_on_exactly(start, whole, tmp_path, caplog):
    halves = start(tmp_path / "halves", 6)
    assert sorted(file.name for file in (halves / "rollouts").iterdir()) == ["5-batch.safetensors", "5.safetensors"]
    start(halves, 8)
    assert "5-batch.safetensors: using the completions" in (halves / "logs" / "training.log").read_text()
    assert_same_run(halves, whole, 8)


def test_a_draw_whose_file_is_damaged_is_drawn_again(start, tmp_path):
    """By the weights that the run has now: no other run's rewards and log-probs are taken for its own."""
    halves = start(tmp_path / "halves", 2)
    file = halves / "rollouts" / "1-batch.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    start(halves, 4)
    log = (halves / "logs" / "training.log").read_text()
    assert "1-batch.safetensors cannot be used (its checksum is another one): drawing its completions again" in log
    third = [sample for sample in lines(halves / "completions.jsonl") if sample["step"] == 3]
    assert len(third) == 8 and {sample["weight_version"] for sample in third} == {2}
    assert np.isfinite([line["loss"] for line in training_lines(halves)]).all()


def even_where_short(inputs: RewardInputs) -> np.ndarray:
    """Equal rewards for every other question, so that some groups teach nothing."""
    numbers = np.array([prompt.row.number for prompt in inputs.prompts])
    lengths = np.array([len(row.teacher_thought) for row in inputs.rows], np.float32)
    return np.where(numbers % 2 == 0, np.float32(1), lengths + np.arange(len(lengths)) % 4 / 8).astype(np.float32)


def test_groups_that_teach_nothing_are_replaced_and_a_resumed_run_does_the_same(small, tmp_path):
    def run(name: str, steps: int, *flags: object) -> Path:
        line = [*small, "--advantages.zero-spread", "replace", "--advantages.max-redraws", "3", "--save-steps", "1"]
        line += ["--log.sample-probability", "1", "--max-steps", steps, "--output-dir", tmp_path / name, *flags]
        return train(parse_train_args(list(map(str, line)))[0], reward_fn=even_where_short)

    several = ("--num-iterations", "2")
    whole = run("whole", 6, *several)
    logged, samples = training_lines(whole), lines(whole / "completions.jsonl")
    replaced = [line["replaced_groups"] for line in logged]
    assert sum(replaced) > 0 and all(line["zero_spread_share"] == 0 for line in logged)
    assert all(sample["row"] % 2 == 1 for sample in samples) and len(samples) == 24
    for step in {sample["step"] for sample in samples}:  # no question twice
        assert len({sample["row"] for sample in samples if sample["step"] == step}) == 2
    run("halves", 3, *several)
    assert_same_run(run("halves", 6, *several), whole, 6)


def test_what_teaches_nothing_after_the_last_redraw_stays(small, tmp_path):
    line = [*small, "--advantages.zero-spread", "replace", "--max-steps", "1", "--output-dir", tmp_path]
    line += ["--checkpoint.no-at-end", "--checkpoint.no-export", "--save-steps", "0"]  # and the draws with it
    config, _ = parse_train_args(list(map(str, line)))
    train(config, reward_fn=lambda inputs: np.ones(len(inputs.rows), np.float32))
    (logged,) = training_lines(tmp_path)
    assert logged["zero_spread_share"] == 1 and logged["replaced_groups"] == 0
    assert sorted(file.name for file in (tmp_path / "rollouts").iterdir()) == [
        "1-again1.safetensors",
        "1-again2.safetensors",
        "1.safetensors",
    ]
