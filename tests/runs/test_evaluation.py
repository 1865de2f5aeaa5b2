"""Evaluation: the same prompts and seeds each time, one record a prompt, changes paired by prompt."""

import json

import numpy as np
import pytest

from rlt_jax.configs import RewardConfig
from rlt_jax.data import ChatFormat, build_prompts, eos_ids, load_tokenizer
from rlt_jax.models import load_model
from rlt_jax.rewards.scorer import completion_rows, make_scorer
from rlt_jax.runs.evaluation import (
    EVAL_FILE,
    drop_records,
    evaluation_requests,
    evaluation_results,
    is_evaluated,
    read_changes,
    read_values,
    write_records,
)
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.types import Row, SamplingParams


@pytest.fixture(scope="module")
def chat(golden):
    return ChatFormat(load_tokenizer(golden / "teacher"))


@pytest.fixture(scope="module")
def prompts(chat):
    rows = [Row(10 + i, f"What is {i} + {i}?", str(2 * i), None if i else "By doubling.", None) for i in range(5)]
    return build_prompts(rows, chat, max_prompt_length=500).prompts


@pytest.fixture(scope="module")
def evaluate(golden, chat):
    """evaluate(prompts, seed=...) of the golden teacher with the golden student."""
    teacher, student = (load_model(golden / name, dtype="float32") for name in ("teacher", "student"))
    ends = eos_ids(chat.tokenizer, golden / "teacher")
    sampler = NativeSampler(*teacher, eos_ids=ends, max_batch=8)
    (model, params), (student_model, student_params) = teacher, student
    reward = RewardConfig(unbias_student_log_probs_temp=None)
    scorer = make_scorer(model, student_model, student_params, reward, sampling_temperature=1.0, chunk=1024)

    def run(prompts, *, seed):
        drawn = sampler.generate(evaluation_requests(prompts, seed=seed), SamplingParams(max_tokens=8))
        completions = [completion for (completion,) in drawn]
        rows = completion_rows(prompts, completions, chat=chat, eos_ids=ends)
        return evaluation_results(scorer.score(params, prompts, rows, tokens=4096), completions, chat)

    return run


@pytest.fixture(scope="module")
def evaluated(evaluate, prompts):
    return evaluate(prompts, seed=3)


def test_a_second_evaluation_of_the_same_weights_is_the_same(evaluate, prompts, evaluated):
    assert evaluate(prompts, seed=3) == evaluated


def test_another_seed_draws_other_completions(evaluate, prompts, evaluated):
    _, records = evaluate(prompts, seed=4)
    assert all(record["reward"] != before["reward"] for record, before in zip(records, evaluated[1], strict=True))


def test_a_prompt_is_drawn_alike_whatever_else_is_evaluated(evaluate, prompts, evaluated):
    _, records = evaluate(prompts[:2], seed=3)
    for record, before in zip(records, evaluated[1]):
        assert record == pytest.approx(before, abs=1e-3)


def test_metrics_are_the_means_of_the_records(evaluated, prompts):
    metrics, records = evaluated
    assert [record["row"] for record in records] == [prompt.row.number for prompt in prompts] == [10, 11, 12, 13, 14]
    for name in ("reward", "solution_logp/mean", "thought_kl/max", "match_reward"):
        metric = "eval/reward" if name == "reward" else f"eval/component/{name}"
        assert metrics[metric] == pytest.approx(np.mean([record[name] for record in records]), rel=1e-5)
    assert all(name.startswith("eval/") for name in metrics)
    assert 1 <= metrics["eval/completion_length/min"] <= metrics["eval/completion_length/max"] <= 8
    assert "eval/reward_std" not in metrics  # one completion a prompt has no spread
    assert metrics["eval/trace_copy_rate"] == 0.0


def write(folder, step, values):
    write_records(folder, step, [{"row": row, "reward": value} for row, value in values.items()])


def test_changes_are_paired_by_row(tmp_path):
    write(tmp_path, 0, {7: 1.0, 8: 2.0, 9: 50.0})
    write(tmp_path, 4, {8: 2.5, 7: 2.0})
    write(tmp_path, 6, {7: -1.0, 8: -1.0})
    changes = read_changes(tmp_path, ("reward", "solution_logp/mean"), first=0, last=4)
    assert changes.keys() == {"reward"}  # nobody reported the other
    change = changes["reward"]
    assert (change.count, change.mean_before, change.mean_after, change.change) == (2, 1.5, 2.25, 0.75)
    assert change.standard_error == pytest.approx(0.25)


def test_a_prompt_without_a_finite_value_is_left_out(tmp_path):
    write(tmp_path, 0, {7: 1.0, 8: 2.0, 9: float("nan")})
    write(tmp_path, 4, {7: 2.0, 8: 2.5, 9: 1.0})
    assert "NaN" not in (tmp_path / EVAL_FILE).read_text()
    change = read_changes(tmp_path, ("reward",), first=0, last=4)["reward"]
    assert (change.count, change.change) == (2, 0.75)
    write(tmp_path, 6, {7: float("inf"), 8: 2.5, 9: 1.0})
    assert read_changes(tmp_path, ("reward",), first=0, last=6) == {}  # one prompt is left


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 5), (3, 4), (0, 6)])
def test_without_two_common_rows_of_two_steps_there_is_no_change(tmp_path, first, last):
    write(tmp_path, 0, {1: 1.0, 2: 1.0})
    write(tmp_path, 4, {1: 1.0, 2: 1.0})
    write(tmp_path, 6, {1: 1.0, 3: 1.0})
    assert read_changes(tmp_path, ("reward",), first=first, last=last) == {}


def test_values_of_a_step_are_by_row(tmp_path):
    write_records(tmp_path, 0, [{"row": 3, "reward": 9.0}])
    records = [{"row": 3, "reward": 1.0, "a/mean": 2}, {"row": 7, "reward": float("nan")}, {"row": 8, "reward": 3.0}]
    write_records(tmp_path, 4, records)
    assert read_values(tmp_path, ("reward", "a/mean", "b"), step=4) == {"reward": {3: 1.0, 8: 3.0}, "a/mean": {3: 2.0}}
    assert read_values(tmp_path / "nowhere", ("reward",), step=4) == {}


def test_a_run_without_evaluations_has_no_changes(tmp_path):
    assert read_changes(tmp_path, ("reward",), first=0, last=4) == {}


def test_a_line_torn_by_a_kill_is_left_out(tmp_path):
    write(tmp_path, 0, {1: 1.0, 2: 1.0})
    write(tmp_path, 4, {1: 3.0, 2: 3.0})
    with (tmp_path / EVAL_FILE).open("a") as file:
        file.write(json.dumps({"step": 6, "row": 1})[:-4])
    assert read_changes(tmp_path, ("reward",), first=0, last=4)["reward"].change == 2.0


def test_an_evaluation_is_whole_once_its_metrics_are_written(tmp_path):
    """Its records come first: a kill between the two leaves them, and they are dropped."""
    assert not is_evaluated(tmp_path, 0)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 1}\n{"step": 1, "eval/reward": 2}\n{"step": 2, "loss": 1}\n')
    assert not is_evaluated(tmp_path, 2)
    write_records(tmp_path, 1, [{"row": 0}])
    kept = (tmp_path / EVAL_FILE).read_bytes()
    write_records(tmp_path, 2, [{"row": 0}])
    drop_records(tmp_path, 2)
    assert (tmp_path / EVAL_FILE).read_bytes() == kept
    with metrics.open("a") as file:
        file.write('{"step": 2, "eval/reward": 2}\n')
    assert is_evaluated(tmp_path, 2) and not is_evaluated(tmp_path, 1)


def test_the_end_of_a_long_file_is_enough(tmp_path):
    lines = [{"step": 1, "eval/reward": 1.0}, *({"step": 2, "text": "x" * 1000} for _ in range(3000))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not is_evaluated(tmp_path, 2)
