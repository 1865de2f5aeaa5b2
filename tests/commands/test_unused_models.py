"""Models that nothing reads are not loaded, run or saved; what is computed without them is what it was with them."""

import json
import logging
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax import plan as plan_command
from rlt_jax import replay as replay_command
from rlt_jax import train as train_command
from rlt_jax.configs import parse_train_args
from rlt_jax.models import named_tensors
from rlt_jax.rewards.logprobs import finite_logprobs
from rlt_jax.rewards.rlt import reads
from rlt_jax.runs.batch import Drawn, turn_of
from rlt_jax.runs.open_rlt import open_rlt
from rlt_jax.train import train
from tests.commands.comparing import without_times

pytestmark = pytest.mark.slow

NO_KL = ("--loss.beta", "0")


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def checkpoint(run: Path, step: int) -> dict[str, str]:
    """Checksums of all arrays of a checkpoint, by name."""
    record = json.loads((run / "checkpoints" / str(step) / "manifest.json").read_text())
    return {array["name"]: array["checksum"] for array in record["arrays"]}


def config_of(*flags: object):
    return parse_train_args(list(map(str, flags)))[0]


@pytest.fixture
def run(small, tmp_path):
    """run(name, *flags, reward_fn=...): a run of 2 steps with a checkpoint after each; its folder."""

    def call(name, *flags, reward_fn=None):
        line = [*small, "--max-steps", 2, "--save-steps", 1, "--checkpoint.keep", 9, *flags]
        return train(config_of(*line, "--output-dir", tmp_path / name), reward_fn=reward_fn)

    return call


def test_weights_are_those_of_a_run_that_scores_under_a_reference_of_weight_0(small, tmp_path):
    config = config_of(*small, *NO_KL, "--output-dir", tmp_path / "unused")
    with open_rlt(config, tmp_path) as rlt:
        policy, reference = rlt.params, jax.tree.map(lambda leaf: 0.9 * leaf, rlt.params)
        assert not rlt.uses_reference and rlt.state_like()[1] is None
        sampler = rlt.open_sampler(policy, version=0)
        questions, requests = rlt.requests(turn_of(config, 1))
        completions = [one for group in rlt.generate(sampler, requests, policy, name="1") for one in group]
        of_each = np.repeat(questions, config.num_generations)
        drawn = Drawn(of_each, rlt.each_prompt(of_each), completions)
        scored = rlt.score(policy, None, drawn.prompts, completions)
        assert rlt.reference_logprobs(None, scored, completions) is None
        rows = [row.teacher_ids for row in scored.rows]
        logprobs = partial(finite_logprobs, rlt.model, reference, rows, who="reference", name=str)
        of_reference = logprobs(temperature=config.policy_temperature, tokens=4096, chunk=1024)

        def updated(ref_logps):
            """The policy after the step, and the losses."""
            gradients, losses, _ = rlt.gradients(policy, rlt.joined(drawn, scored, None, ref_logps))
            state, _ = rlt.optimizer.apply(rlt.optimizer.init(jax.tree.map(jnp.copy, policy)), gradients)
            return dict(named_tensors(rlt.model, state.params)), jax.device_get(losses)

        (ours, losses), (theirs, with_kl) = updated(None), updated(of_reference)
        before = dict(named_tensors(rlt.model, policy))
    assert with_kl.keys() - losses.keys() == {"kl"} and losses.items() <= with_kl.items() and with_kl["kl"] > 0.01
    assert any((ours[name] != before[name]).any() for name in ours)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_run_without_reference_resumes_exactly(run, tmp_path):
    whole = run("whole", *NO_KL, "--eval-steps", 1)
    halves = run("halves", *NO_KL, "--eval-steps", 1, "--max-steps", 1)
    assert run("halves", *NO_KL, "--eval-steps", 1) == halves
    assert checkpoint(whole, 2) == checkpoint(halves, 2) and not any(
        name.startswith("[1]") for name in checkpoint(whole, 2)
    )
    assert (whole / "final" / "model.safetensors").read_bytes() == (halves / "final" / "model.safetensors").read_bytes()
    logged = lines(whole)
    assert without_times(logged) == without_times(lines(halves)) and (whole / "curves.png").exists()
    assert not any({"kl", "alarm/kl"} & line.keys() for line in logged)
    assert {"loss", "entropy", "alarm/entropy", "component/thought_kl/mean"} <= logged[1].keys()


def test_a_kl_term_may_end_but_not_begin_on_the_way(run, caplog, main, small, tmp_path, capsys):
    """A reference that the run no longer reads is dropped; one that it never had is not invented."""
    folder = run("ends", "--max-steps", 1)
    assert any(name.startswith("[1]") for name in checkpoint(folder, 1))
    with caplog.at_level(logging.WARNING, logger="rlt_jax"):
        run("ends", *NO_KL, "--ref.ref-model-sync-steps", 8)
    assert "loss.beta 0.04 -> 0" in (folder / "logs" / "training.log").read_text()
    said = (folder / "logs" / "training.log").read_text()
    assert "no effect, as nothing reads a reference: ref.ref_model_sync_steps=8" in said
    assert not any(name.startswith("[1]") for name in checkpoint(folder, 2)) and "kl" not in lines(folder)[-1]
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(train_command, *small, "--max-steps", 3, "--output-dir", folder)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in told
    assert "expected a checkpoint with a reference (loss.beta=0.04), but the run so far had none" in told
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_reference_of_its_own_is_not_looked_for_where_nothing_reads_it(run, tmp_path):
    folder = run("other", *NO_KL, "--reference", tmp_path / "gone", "--max-steps", 1)
    inputs = json.loads((folder / "inputs.json").read_text())
    assert "the teacher's weights" in inputs and not any("reference" in name for name in inputs)


def test_a_reward_on_texts_runs_neither_student_nor_reference(run):
    @reads()
    def shortness(inputs):
        return np.array([-float(len(row.explanation)) for row in inputs.rows])

    folder = run("texts", *NO_KL, reward_fn=shortness)
    logged = lines(folder)
    assert [line["tokens_per_second/score"] for line in logged] == [0.0, 0.0]
    assert all(line["reward"] < 0 for line in logged) and not any("solution_logp" in name for name in logged[0])


def test_a_step_that_was_skipped_is_replayed_without_them(run, main, capsys):
    @reads()
    def unknown(inputs):
        return np.full(len(inputs.rows), np.nan)

    folder = run("skipped", *NO_KL, "--max-steps", 1, reward_fn=unknown)
    capsys.readouterr()
    main(replay_command, folder)  # as in the run, else exit code 1
    assert "unknown returned: nan in explanation 0" in capsys.readouterr().out


def test_a_reward_on_the_students_log_probs_counts_the_students_tokens_alone(run):
    @reads("student")
    def helpful(inputs):
        logprobs = inputs.logprobs
        return (logprobs.solution_logps * logprobs.solution_mask).sum(1)

    def counted(*flags, reward_fn):
        line = lines(run(f"{len(flags)}-{id(reward_fn)}", "--max-steps", 1, *flags, reward_fn=reward_fn))[0]
        return line["tokens_per_second/score"] * line["seconds/score"], line

    def undeclared(inputs):
        return helpful(inputs)

    (all_three, first), (student, second) = counted(reward_fn=undeclared), counted(*NO_KL, reward_fn=helpful)
    assert first["reward"] == second["reward"] and 0.2 < student / all_three < 0.45


def test_the_plan_shows_what_is_not_there(main, small, capsys):
    def planned(*flags) -> dict:
        main(plan_command, *small, "--json", *flags)
        return json.loads(capsys.readouterr().out)

    usual = planned()
    assert {"score teacher", "score reference", "move reference"} <= usual["phases"].keys()
    without = planned(*NO_KL, "--reward.no-include-teacher-think-entropy")
    assert usual["phases"].keys() - without["phases"].keys() == {"score teacher", "score reference", "move reference"}
    size = usual["run"]["weight_bytes"] * usual["parameters"]["teacher"]
    assert usual["checkpoint_bytes"] - without["checkpoint_bytes"] == size
    main(plan_command, *small, *NO_KL)
    assert "(teacher), " in (told := capsys.readouterr().out) and "; there is no reference" in told
