"""Numbers that are not finite, injected all over a run: refused or skipped, named, kept, and computed again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlt_jax import replay as replay_command
from rlt_jax import sft as sft_command
from rlt_jax import train as train_command
from rlt_jax.configs import parse_train_args
from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite
from rlt_jax.runs import open_rlt as open_module
from rlt_jax.runs import sft as sft_module
from rlt_jax.runs.rlt import Rlt
from rlt_jax.runs.skipping import read_step
from rlt_jax.train import train
from tests.commands.comparing import without_times

pytestmark = pytest.mark.slow

UP = "model.layers.1.mlp.up_proj.weight"


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def checkpoint(run: Path, step: int) -> dict[str, str]:
    """Checksums of all arrays of a checkpoint, by name."""
    record = json.loads((run / "checkpoints" / str(step) / "manifest.json").read_text())
    return {array["name"]: array["checksum"] for array in record["arrays"]}


@pytest.fixture
def run(small, tmp_path):
    """run(name, *flags, reward_fn=...): a run of 4 steps, with a checkpoint after each; its folder."""

    def call(name, *flags, reward_fn=None):
        folder = tmp_path / name
        line = [*small, "--max-steps", "4", "--save-steps", "1", "--checkpoint.keep", "9", *flags]
        train(parse_train_args([*map(str, line), "--output-dir", str(folder)])[0], reward_fn=reward_fn)
        return folder

    return call


@pytest.fixture
def refused(main, capsys):
    """refused(module, *flags): the message of a command that ends with exit code 2."""

    def call(module, *flags):
        with pytest.raises(SystemExit) as stop:
            main(module, *flags)
        assert stop.value.code == 2
        told = capsys.readouterr()
        assert "Traceback" not in told.err + told.out
        return told.err

    return call


@pytest.fixture
def replayed(main, capsys):
    """replayed(folder, *flags): (exit code, output) of the replay command."""

    def call(folder, *flags):
        capsys.readouterr()
        code = 0
        try:
            main(replay_command, folder, *flags)
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, told.out + told.err

    return call


def poison(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    tensors[UP] = tensors[UP].copy()
    tensors[UP][2, 3] = np.nan
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("flag", ["--teacher", "--student", "--reference"])
def test_a_poisoned_model_is_refused_before_the_run(flag, refused, small, tiny, tmp_path):
    source = tiny / ("student" if flag == "--student" else "teacher")
    folder = poison(source, tmp_path / "poisoned")
    message = refused(train_command, *small, flag, folder, "--output-dir", tmp_path / "run")
    assert f"{folder}/model.safetensors: expected finite weights, but {UP} has 1 value that is not finite" in message
    assert not (tmp_path / "run").exists()


def length(inputs):
    return np.array([float(len(row.explanation)) for row in inputs.rows])


def at_step(value, step, *, row=None, calls=0):
    """A reward that is the length of the text, but at one step `value`, in one row or in all."""
    count = [calls]

    def lengths(inputs):
        count[0] += 1
        rewards = length(inputs)
        if count[0] == step:
            rewards[slice(None) if row is None else row] = value
            rewards[0] = min(rewards[0], 3.1e38)
        return rewards

    return lengths


@pytest.fixture
def by_construction(run, monkeypatch):
    """A run whose step 2 is skipped before anything of it is computed."""
    score = Rlt.score
    calls = [0]

    def skipping(self, *arguments):
        calls[0] += 1
        if calls[0] == 2:
            raise NotFinite("by construction")
        return score(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Rlt, "score", skipping)
        return run("by_construction", reward_fn=at_step(0.0, 99))


def test_a_step_with_a_nan_reward_is_skipped_and_the_rest_is_the_same_run(run, by_construction, replayed, capsys):
    """And resumed in the middle it is, too."""
    faulty = run("faulty", reward_fn=at_step(np.nan, 2, row=3))
    row = int(read_step(faulty, 2).batch["rows"][3])
    assert f"lengths returned: nan in explanation 3 (row {row} of the data), of 8" in capsys.readouterr().out
    assert [line["skipped_steps"] for line in lines(faulty)] == [0, 1, 1, 1]
    assert without_times(lines(faulty)) == without_times(lines(by_construction))
    for step in (1, 3, 4):
        assert checkpoint(faulty, step) == checkpoint(by_construction, step)
    assert not (faulty / "checkpoints" / "2").exists()
    # nothing had changed: the kept weights are those of step 1
    assert read_step(faulty, None).state.name == "state-1"
    assert lines(faulty)[3]["step"] == 4 and lines(faulty, "completions.jsonl") is not None

    run("resumed", "--max-steps", 3, reward_fn=at_step(np.nan, 2, row=3))
    resumed = run("resumed", reward_fn=at_step(np.nan, 2, row=3, calls=3))
    assert checkpoint(resumed, 4) == checkpoint(faulty, 4)
    assert without_times(lines(resumed)) == without_times(lines(faulty))

    moved = shutil.move(faulty, faulty.parent / "elsewhere")
    code, told = replayed(moved, "--step", 2)
    assert code == 0, told
    assert "NOT FINITE: your reward function at_step.<locals>.lengths returned: nan in" in told
    assert "reproduced: the same fault, its values equal bit for bit" in told


def test_rewards_that_overflow_their_mean_are_skipped(run, replayed):
    folder = run("big", reward_fn=at_step(3.3e38, 2))
    assert [line["skipped_steps"] for line in lines(folder)] == [0, 1, 1, 1]
    step = read_step(folder, None)
    assert step.fault["stage"] == "advantages"
    assert step.fault["culprit"].startswith("the advantages (of rewards as large as 3.3e+38, by your reward function ")
    code, told = replayed(folder)
    assert code == 0, told
    assert "  score       finite: " in told and "  advantages  NOT FINITE: " in told
    weights = load_file(folder / "final" / "model.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in weights.values())


def test_log_probs_of_the_sampler(run, replayed, monkeypatch):
    generate, calls = Rlt.generate, [0]

    def poisoned(self, *arguments, **named):
        calls[0] += 1
        groups = generate(self, *arguments, **named)
        if calls[0] == 3:
            one = groups[1][2]
            logps = one.logps.copy()
            logps[1] = np.nan
            groups[1] = (*groups[1][:2], replace(one, logps=logps), groups[1][3])
        return groups

    monkeypatch.setattr(Rlt, "generate", poisoned)
    folder = run("sampler")
    step = read_step(folder, None)
    row = int(step.batch["rows"][6])
    assert step.step == 3 and step.fault["stage"] == "gradients"
    assert step.fault["culprit"] == f"the sampler's log-probs: nan in explanation 6 (row {row} of the data), of 8"
    code, told = replayed(folder)
    assert code == 0, told
    assert "  gradients   NOT FINITE: the sampler's log-probs: nan in explanation 6" in told


def test_gradients_and_a_fault_that_does_not_come_back(run, replayed, monkeypatch):
    """Log-probs of the reference that are finite, but so far off that their KL is infinite: once, by a bad device."""
    reference_logprobs, calls = Rlt.reference_logprobs, [0]

    def poisoned(self, *arguments):
        calls[0] += 1
        made = reference_logprobs(self, *arguments)
        return made._replace(logps=[row + 200 for row in made.logps]) if calls[0] == 2 else made

    with monkeypatch.context() as patch:
        patch.setattr(Rlt, "reference_logprobs", poisoned)
        folder = run("kl")
    step = read_step(folder, None)
    assert step.fault["culprit"].startswith("the policy's step: ") and "kl is inf" in step.fault["culprit"]
    assert [line["skipped_steps"] for line in lines(folder)] == [0, 1, 1, 1]
    code, told = replayed(folder)
    assert code == 1, told
    assert "NOT REPRODUCED: the run recorded the policy's step: " in told
    assert told.count("  finite: ") == 4
    with monkeypatch.context() as patch:
        calls[0] = 1
        patch.setattr(Rlt, "reference_logprobs", poisoned)
        code, told = replayed(folder)
    assert code == 0, told
    assert "not finite on their own: explanation 0 (row " in told


@pytest.mark.parametrize("where", ["policy", "reference"])
def test_a_weight_that_turns_nan_in_memory_stops_the_run_with_its_name(where, run, replayed, monkeypatch):
    """With a reward of texts alone, which would not show it."""
    fresh_state = Rlt.fresh_state

    def poisoned(self, params):
        state, reference = fresh_state(self, params)
        tree = state.params if where == "policy" else reference
        tree["layers"]["mlp"]["up_proj"]["weight"] = tree["layers"]["mlp"]["up_proj"]["weight"].at[1, 2, 3].set(jnp.nan)
        return state, reference

    with monkeypatch.context() as patch, pytest.raises(UserError) as stop:
        patch.setattr(Rlt, "fresh_state", poisoned)
        run("flipped", reward_fn=length)
    folder = Path(str(stop.value).split("rlt_jax.replay ")[1].split(" --step")[0])
    assert f"the {where}'s log-probs ({UP} has 1 value that is not finite): nan in explanation 0 (row " in str(
        stop.value
    )
    assert str(stop.value).startswith("3 steps in a row were skipped, up to step 3 (--checks.max-skipped-steps): ")
    assert "there is no checkpoint" in str(stop.value) and not (folder / "final").exists()
    assert [line["skipped_steps"] for line in lines(folder)] == [1, 2, 3]
    assert sorted(entry.name for entry in (folder / "skipped").iterdir()) == ["2", "3", "state-0"]
    code, told = replayed(folder)
    assert code == 0, told
    assert f"NOT FINITE: the {where}'s log-probs ({UP} has 1 value that is not finite)" in told


def test_an_exploding_learning_rate_is_blamed_on_the_policy(refused, replayed, small, tmp_path):
    line = [
        *small,
        "--learning-rate",
        "1e30",
        "--max-steps",
        "6",
        "--save-steps",
        "1",
        "--output-dir",
        tmp_path / "run",
    ]
    message = refused(train_command, *line)
    assert "error: 3 steps in a row were skipped, up to step 4" in message
    assert "the policy's log-probs (all its weights are finite, the largest is 1e+30): " in message
    assert f"the last good checkpoint is of step 1 ({tmp_path}/run/checkpoints/1)" in message
    assert "reward function" not in message
    assert replayed(tmp_path / "run")[0] == 0
    assert "learning_rate=1e+39: expected at most" in refused(train_command, *line, "--learning-rate", "1e39")


def test_an_evaluation_without_a_result_does_not_stop_the_run(run, capsys):
    """Calls of the reward: evaluation 0, steps 1 and 2, evaluation 2, steps 3 and 4, evaluation 4."""
    folder = run("evaluated", "--eval-steps", 2, reward_fn=at_step(np.inf, 4, row=5))
    values = [line["eval/reward"] for line in lines(folder) if "eval/reward" in line]
    assert len(values) == 3 and values[1] is None and None not in (values[0], values[2])
    assert {line["step"] for line in lines(folder, "eval.jsonl")} == {0, 4}
    assert "the evaluation of step 2 has no result: your reward function" in capsys.readouterr().out


def test_a_fine_tuning_skips_and_replays(main, refused, replayed, tiny, tmp_path, monkeypatch):
    load = sft_module.load_checked_model

    def flipped(*arguments, **named):
        model, params = load(*arguments, **named)
        params["norm"]["weight"] = params["norm"]["weight"].at[5].set(jnp.inf)
        return model, params

    flags = ["--target", "teacher", "--model", tiny / "teacher", "--data.path", tiny / "train.jsonl"]
    flags += ["--max-steps", 4, "--train-batch-size", 2, "--check-texts", 0, "--output-dir", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(sft_module, "load_checked_model", flipped)
        message = refused(sft_command, *flags, "--checks.max-skipped-steps", 2)
    assert "2 steps in a row were skipped" in message
    assert "the model: model.norm.weight has 1 value that is not finite" in message
    assert [line["skipped_steps"] for line in lines(tmp_path / "run")] == [1, 2]
    code, told = replayed(tmp_path / "run")
    assert code == 0, told
    assert "gradients   NOT FINITE: the model: model.norm.weight has 1 value" in told
    assert "not finite on their own: row " in told


def test_a_nan_gradient_frees_the_sums_and_changes_nothing(run, replayed, monkeypatch):
    """In bfloat16 with the optimizer on the host, whose state is streamed."""
    make, calls, applied = open_module.make_sum_gradients, [0], []

    def made(*arguments, **named):
        sums = make(*arguments, **named)

        def poisoned(params, batches, **kind):
            calls[0] += 1
            gradients, losses = sums(params, batches, **kind)
            if calls[0] == 2:
                gradients["norm"]["weight"] = gradients["norm"]["weight"].at[7].set(jnp.nan)
                applied.append(gradients)
            return gradients, losses

        return poisoned

    monkeypatch.setattr(open_module, "make_sum_gradients", made)
    folder = run("gradient", "--dtype", "bfloat16", "--memory.optimizer", "host")
    culprit = read_step(folder, None).fault["culprit"]
    assert culprit.startswith(
        "the policy's gradient: model.norm.weight has 1 value that is not finite; its weights are "
    )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(applied))
    assert [line["skipped_steps"] for line in lines(folder)] == [0, 1, 1, 1]


def test_a_step_that_was_not_skipped_is_no_replay(run, refused):
    folder = run("healthy")
    assert "there is none: give the folder of a run" in refused(replay_command, folder)
    assert not (folder / "skipped").exists()
