"""Inconsistent values: each is refused with what was expected, what came and what to do."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlt_jax.configs import PRESETS, check_config
from rlt_jax.errors import UserError

BASE = PRESETS["mono85"]

TOP = [
    (
        {"train_batch_size": 100, "num_generations": 24},
        "num_generations=24 does not divide train_batch_size=100: "
        "use --train-batch-size 96 or 120, or --num-generations 20",
    ),
    (
        {"train_batch_size": 8},
        "num_generations=24 does not divide train_batch_size=8: use --train-batch-size 24, or --num-generations 8",
    ),
    (
        {"num_generations": 1},
        "num_generations=1 makes every advantage 0, as rewards are compared inside a group: "
        "use 2 or more completions per question",
    ),
    ({"num_generations": 0}, "num_generations=0: expected a positive whole number"),
    ({"train_batch_size": -96}, "train_batch_size=-96: expected a positive whole number"),
    ({"max_steps": 0}, "max_steps=0: expected a positive whole number"),
    ({"max_prompt_length": 0}, "max_prompt_length=0: expected a positive whole number"),
    ({"max_completion_length": -1}, "max_completion_length=-1: expected a positive whole number"),
    ({"generation_aggregation_steps": 0}, "generation_aggregation_steps=0: expected a positive whole number"),
    ({"score_batch_size": 0}, "score_batch_size=0: expected a positive whole number"),
    ({"logging_steps": 0}, "logging_steps=0: expected a positive whole number"),
    ({"save_steps": -1}, "save_steps=-1: expected a positive whole number, or 0 to save only at the end"),
    ({"eval_steps": -1}, "eval_steps=-1: expected a positive whole number, or 0 for no evaluation"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0: expected a positive whole number"),
    (
        {"per_device_train_batch_size": 97},
        "per_device_train_batch_size=97 is more than train_batch_size=96: "
        "a micro-batch is a part of the batch, use 96 or less",
    ),
    ({"budget_gb": -85.0, "planned_gb": None}, "budget_gb=-85: expected a positive number of GB, or None"),
    ({"planned_gb": 0.0}, "planned_gb=0: expected a positive number of GB, or None"),
    ({"planned_gb": 86.0}, "planned_gb=86 is more than budget_gb=85: plan for less, or raise the budget"),
    (
        {"vllm_gpu_memory_utilization": 0.0},
        "vllm_gpu_memory_utilization=0: expected a share of the budget above 0 and at most 1, such as 0.55",
    ),
    (
        {"vllm_gpu_memory_utilization": 55.0},
        "vllm_gpu_memory_utilization=55: expected a share of the budget above 0 and at most 1, such as 0.55",
    ),
    (
        {"temperature": 0.0},
        "temperature=0: expected a number above 0, as the completions of a group must differ to be compared",
    ),
    ({"temperature": float("nan")}, "temperature=nan: expected a finite number"),
    ({"learning_rate": 0.0}, "learning_rate=0: expected a positive number, such as 1e-6"),
    ({"learning_rate": float("inf")}, "learning_rate=inf: expected a finite number"),
    ({"seed": -1}, "seed=-1: expected a whole number from 0 to 2147483647"),
    ({"teacher": " "}, "teacher is empty: expected a model folder or hub name"),
    ({"reference": ""}, "reference is empty: expected a model folder or hub name, or None for the teacher"),
    ({"output_dir": ""}, "output_dir is empty: expected a folder for the run"),
    # values that a dataclass takes without a word
    ({"max_steps": "300"}, "max_steps='300': expected a whole number"),
    ({"max_steps": True}, "max_steps=True: expected a whole number"),
    ({"dtype": "float16"}, "dtype='float16': expected 'auto', 'bfloat16' or 'float32'"),
    (
        {"teacher": Path("folder")},
        f"teacher={[repr(Path('folder'))]}: expected text",
    ),
    ({"data": None}, "data: expected a section (indented lines `key: value`), came None"),
]

NESTED = [
    (
        "data",
        {"eval_rows": 0},
        "eval_steps=25 but data.eval_rows=0: give the number of held-out rows, "
        "such as --data.eval-rows 32, or --eval-steps 0 for no evaluation",
    ),
    ("data", {"eval_rows": -1}, "data.eval_rows=-1: expected a positive whole number, 0 for none, or None"),
    ("data", {"artificial_epochs": 0}, "data.artificial_epochs=0: expected a positive whole number"),
    ("data", {"path": ""}, "data.path is empty: expected a hub name, folder or file"),
    (
        "data",
        {"eval_split": "train"},
        "data.eval_split=train of bespokelabs/Bespoke-Stratos-17k is what is trained on: name another split, "
        "or leave out data.eval_path and data.eval_split to hold out the last rows",
    ),
    ("data", {"subset": ""}, "data.subset is empty: expected the name of a subset, or None"),
    (
        "data",
        {"path": "units", "eval_subset": "main"},
        "data.eval_subset=main without data.eval_path: held-out rows are of data.subset: leave it out, or add "
        "--data.eval-path units",
    ),
    (
        "data",
        {"path": "units", "subset": "main", "eval_path": "units", "eval_subset": "main"},
        "data.eval_split=train of units is what is trained on: name another split, "
        "or leave out data.eval_path and data.eval_split to hold out the last rows",
    ),
    (
        "data",
        {"path": "rows.jsonl", "eval_path": "rows.jsonl"},
        "data.eval_split=train of rows.jsonl is what is trained on: name another split, "
        "or leave out data.eval_path and data.eval_split to hold out the last rows",
    ),
    (
        "sampler",
        {"kind": "vllm-server"},
        "sampler.kind=vllm-server without sampler.url: give the server's address, such as http://127.0.0.1:8000",
    ),
    (
        "sampler",
        {"kind": "native", "url": "http://127.0.0.1:8000"},
        "sampler.url=http://127.0.0.1:8000 with sampler.kind=native: only vllm-server has a URL: "
        "leave it out, or add --sampler.kind vllm-server",
    ),
    (
        "sampler",
        {"kind": "native", "python": "/usr/bin/python3"},
        "sampler.python=/usr/bin/python3 with sampler.kind=native: only vllm starts an interpreter: "
        "leave it out, or add --sampler.kind vllm",
    ),
    (
        "sampler",
        {"kind": "vllm", "python": " "},
        "sampler.python is empty: expected the path of a Python interpreter, or None",
    ),
    (
        "sampler",
        {"kind": "vllm", "sync_tolerance": 0.0},
        "sampler.sync_tolerance=0: expected a positive number of nats, or None",
    ),
    ("loss", {"importance_cap": 0.0}, "loss.importance_cap=0: expected a positive number, such as 2"),
    ("sampler", {"top_k": -1}, "sampler.top_k=-1: expected a positive whole number, or 0 for off"),
    ("sampler", {"top_p": 0.0}, "sampler.top_p=0: expected a share above 0 and at most 1, where 1 is off"),
    ("sampler", {"top_p": 1.5}, "sampler.top_p=1.5: expected a share above 0 and at most 1, where 1 is off"),
    ("sampler", {"min_p": 1.0}, "sampler.min_p=1: expected a share from 0, which is off, to below 1"),
    ("sampler", {"max_batch": 0}, "sampler.max_batch=0: expected a positive whole number"),
    ("loss", {"beta": -0.04}, "loss.beta=-0.04: expected 0 or a positive number"),
    ("loss", {"logprob_chunk": 0}, "loss.logprob_chunk=0: expected a positive whole number"),
    (
        "reward",
        {"answer_log_prob_coeff": (1.0, 0.01, 0.1)},
        "reward.answer_log_prob_coeff has 3 weights and reward.reduction_log_prob has 2 reductions: "
        "give one weight for all or 2, as in --reward.answer-log-prob-coeff 1 1",
    ),
    (
        "reward",
        {"kl_penalty_reward_coeff": ()},
        "reward.kl_penalty_reward_coeff has 0 weights and reward.reduction_kl has 2 reductions: "
        "give one weight for all or 2, as in --reward.kl-penalty-reward-coeff 1 1",
    ),
    (
        "reward",
        {"reduction_kl": ()},
        "reward.reduction_kl is empty: expected at least one; with a weight of 0 the term is off",
    ),
    (
        "reward",
        {"reduction_kl": ("mean", "mean")},
        "reward.reduction_kl names a reduction twice: give it once, with the sum of the weights",
    ),
    (
        "reward",
        {"reduction_log_prob": ("mean", "average")},
        "reward.reduction_log_prob.1='average': expected 'mean', 'sum', 'min', 'max', 'median', "
        "'first_quartile' or 'last_quartile'",
    ),
    ("reward", {"reduction_kl": "mean"}, "reward.reduction_kl='mean': expected a list"),
    (
        "reward",
        {"answer_log_prob_coeff": (1.0, float("nan"))},
        "reward.answer_log_prob_coeff=nan: expected a finite number",
    ),
    ("reward", {"clip_kl": 0.0}, "reward.clip_kl=0: expected a positive number of nats, or None for no limit"),
    ("reward", {"copy_coeff": -1.0}, "reward.copy_coeff=-1: expected a weight above 0, or 0 for no such term"),
    ("reward", {"length_target_slack": 0}, "reward.length_target_slack=0: expected a positive whole number"),
    (
        "reward",
        {"length_target_coeff": 1.0},
        "reward.length_target_coeff=1 without a range: give --reward.length-target-min or --reward.length-target-max, "
        "tokens",
    ),
    (
        "reward",
        {"length_target_min": 9, "length_target_max": 8},
        "reward.length_target_min=9, reward.length_target_max=8: expected 0 or more tokens, and a maximum that is not "
        "below the minimum, or None",
    ),
    (
        "reward",
        {"overlong_coeff": 1.0},
        "reward.overlong_coeff=1 without reward.overlong_length: give the length at which completions are cut off, the "
        "value of --max-completion-length",
    ),
    (
        "reward",
        {"overlong_length": 64},
        "reward.overlong_buffer=100 is more than reward.overlong_length=64: expected a part of it",
    ),
    (
        "reward",
        {"clip_log_prob": -3.0},
        "reward.clip_log_prob=-3: expected a positive number of nats, or None for no limit",
    ),
    (
        "reward",
        {"not_matched_penalty": 1.0},
        "reward.not_matched_penalty=1 would reward unclosed tags: expected 0 or a negative number",
    ),
    (
        "reward",
        {"unbias_student_log_probs_temp": 0.0},
        "reward.unbias_student_log_probs_temp=0: expected a temperature above 0, or None for 1",
    ),
    ("optimizer", {"adam_beta1": 1.0}, "optimizer.adam_beta1=1: expected a share from 0 to below 1"),
    ("optimizer", {"adam_beta2": -0.1}, "optimizer.adam_beta2=-0.1: expected a share from 0 to below 1"),
    ("optimizer", {"adam_epsilon": 0.0}, "optimizer.adam_epsilon=0: expected a positive number, such as 1e-8"),
    (
        "optimizer",
        {"max_grad_norm": 0.0},
        "optimizer.max_grad_norm=0: expected a positive number, such as 1; a very large one never clips",
    ),
    ("optimizer", {"weight_decay": -1e-4}, "optimizer.weight_decay=-0.0001: expected 0 or a positive number"),
    (
        "optimizer",
        {"warmup_ratio": 3.0},
        "optimizer.warmup_ratio=3: expected a share of max_steps, from 0 to 1",
    ),
    (
        "ref",
        {"ref_model_mixup_alpha": 1.1},
        "ref.ref_model_mixup_alpha=1.1: expected the policy's share, from 0 to 1",
    ),
    ("ref", {"ref_model_sync_steps": 0}, "ref.ref_model_sync_steps=0: expected a positive whole number"),
    (
        "log",
        {"sample_probability": 2.0},
        "log.sample_probability=2: expected a probability from 0 to 1",
    ),
    ("log", {"wandb_project": ""}, "log.wandb_project is empty: expected the name of a project"),
    ("checkpoint", {"keep": 0}, "checkpoint.keep=0: expected a positive whole number"),
    (
        "checkpoint",
        {"keep_best": " "},
        "checkpoint.keep_best is empty: expected a metric of the evaluation, such as eval/reward, or None",
    ),
]


def message_of(config) -> str:
    with pytest.raises(UserError) as refusal:
        check_config(config)
    return str(refusal.value)


@pytest.mark.parametrize(("changes", "message"), TOP, ids=lambda x: ",".join(x) if isinstance(x, dict) else "")
def test_refused_top_level_values(changes, message):
    assert message in message_of(replace(BASE, **changes)).splitlines()


@pytest.mark.parametrize(
    ("section", "changes", "message"), NESTED, ids=lambda x: ",".join(x) if isinstance(x, dict) else x[:9]
)
def test_refused_section_values(section, changes, message):
    sections = {
        "data": BASE.data,
        "sampler": BASE.sampler,
        "loss": BASE.loss,
        "reward": BASE.reward,
        "optimizer": BASE.optimizer,
        "ref": BASE.ref,
        "log": BASE.log,
        "checkpoint": BASE.checkpoint,
    }
    assert message_of(replace(BASE, **{section: replace(sections[section], **changes)})) == message


@pytest.mark.parametrize(
    ("eval_steps", "save_steps", "message"),
    [
        (0, 25, "checkpoint.keep_best=eval/reward without evaluations: add --eval-steps, or leave it out"),
        (
            10,
            25,
            "checkpoint.keep_best=eval/reward needs an evaluation at every checkpoint, but save_steps=25 is no "
            "multiple of eval_steps=10: use --save-steps 30",
        ),
        (10, 30, None),
        (10, 0, None),
    ],
)
def test_the_best_checkpoint_needs_an_evaluation_of_each(eval_steps, save_steps, message):
    config = replace(PRESETS["tiny"], eval_steps=eval_steps, save_steps=save_steps)
    config = replace(config, checkpoint=replace(config.checkpoint, keep_best="eval/reward"))
    if message is None:
        check_config(config)
    else:
        assert message_of(config) == message


def test_all_problems_are_reported_at_once():
    config = replace(BASE, max_steps=0, budget_gb=-1.0, loss=replace(BASE.loss, beta=-1.0))
    assert message_of(config).splitlines() == [
        "max_steps=0: expected a positive whole number",
        "budget_gb=-1: expected a positive number of GB, or None",
        "loss.beta=-1: expected 0 or a positive number",
    ]


@pytest.mark.parametrize(
    "config",
    [
        replace(BASE, vllm_gpu_memory_utilization=1.0, planned_gb=85.0),
        replace(BASE, budget_gb=None),
        replace(BASE, seed=0, save_steps=0),
        replace(BASE, eval_steps=0, data=replace(BASE.data, eval_rows=0)),
        replace(BASE, data=replace(BASE.data, eval_split="test")),
        replace(BASE, data=replace(BASE.data, subset="a", eval_path=BASE.data.path, eval_subset="b")),
        replace(BASE, data=replace(BASE.data, path="a.jsonl", eval_path="b.jsonl")),
        replace(BASE, ref=replace(BASE.ref, ref_model_mixup_alpha=1.0)),
        replace(BASE, optimizer=replace(BASE.optimizer, adam_beta1=0.0, warmup_ratio=1.0)),
        replace(BASE, loss=replace(BASE.loss, beta=0.0)),
        replace(BASE, sampler=replace(BASE.sampler, top_k=20, top_p=0.95, min_p=0.05)),
        replace(BASE, reward=replace(BASE.reward, answer_log_prob_coeff=(1.0,), clip_kl=None, not_matched_penalty=0.0)),
        replace(BASE, reward=replace(BASE.reward, unbias_student_log_probs_temp=None, kl_penalty_reward_coeff=(0.0,))),
        replace(BASE, train_batch_size=100, num_generations=25, per_device_train_batch_size=7),
        replace(BASE, budget_gb=85),  # an int where a float is due is fine
    ],
)
def test_values_at_the_edge_are_accepted(config):
    check_config(config)


NATIVE = replace(BASE, sampler=replace(BASE.sampler, kind="native"))
SERVER = replace(BASE, sampler=replace(BASE.sampler, kind="vllm-server", url="http://127.0.0.1:8000"))
TO_DO = (
    "expected log-probs of the whole distribution, but vLLM gives those after its filters: switch the filters off, or "
    "use --sampler.kind native or --loss.importance-correction none"
)


@pytest.mark.parametrize("correction", ["token", "sequence"])
@pytest.mark.parametrize(
    ("base", "filters", "named"),
    [
        (BASE, {"top_k": 20}, "sampler.top_k=20 and sampler.kind=vllm"),
        (BASE, {"top_p": 0.9, "min_p": 0.1}, "sampler.top_p=0.9 and sampler.min_p=0.1 and sampler.kind=vllm"),
        (SERVER, {"min_p": 0.3}, "sampler.min_p=0.3 and sampler.kind=vllm-server"),
    ],
)
def test_an_importance_correction_is_refused_where_vllm_filters(base, filters, named, correction):
    config = replace(base, sampler=replace(base.sampler, **filters))
    check_config(config)
    assert not config.compares_sampler
    with pytest.raises(UserError) as error:
        check_config(replace(config, loss=replace(base.loss, importance_correction=correction)))
    assert str(error.value) == f"loss.importance_correction={correction} with {named}: {TO_DO}"


def test_an_importance_correction_is_refused_where_policy_and_sampler_have_two_temperatures():
    loss = replace(BASE.loss, unbias_log_probabilities=False)
    config = replace(NATIVE, temperature=0.7, loss=loss)
    check_config(config)
    assert not config.compares_sampler
    with pytest.raises(UserError) as error:
        check_config(replace(config, loss=replace(loss, importance_correction="token")))
    assert str(error.value) == (
        "loss.importance_correction=token with temperature=0.7 and loss.unbias_log_probabilities off: expected "
        "log-probs at one temperature, but the sampler's are at 0.7 and the policy's at 1: switch "
        "loss.unbias_log_probabilities on, or use --temperature 1 or --loss.importance-correction none"
    )
    at_one = replace(config, temperature=1.0, loss=replace(loss, importance_correction="token"))
    check_config(at_one)
    assert at_one.compares_sampler


@pytest.mark.parametrize("base", [NATIVE, BASE, SERVER], ids=["native", "vllm", "vllm-server"])
def test_an_importance_correction_is_accepted_where_log_probs_compare(base):
    filters = {"top_k": 20, "top_p": 0.9, "min_p": 0.1} if base is NATIVE else {}
    config = replace(
        base,
        sampler=replace(base.sampler, **filters),
        loss=replace(base.loss, importance_correction="token"),
    )
    check_config(config)
    assert config.compares_sampler


def test_temperatures_that_vllm_would_raise_are_refused():
    with pytest.raises(UserError) as error:
        check_config(replace(BASE, temperature=0.005))
    assert str(error.value) == (
        "temperature=0.005 with sampler.kind=vllm: vLLM would sample at 0.01, its minimum: raise the temperature, or "
        "use --sampler.kind native"
    )
    check_config(replace(BASE, temperature=0.01))
    check_config(replace(NATIVE, temperature=0.005))
