"""What `sft` takes where its settings are open: it follows the rows and the model, and repeats itself."""

from dataclasses import replace

import pytest

from rlt_jax.configs import DataConfig, SftConfig, check_sft_config, describe_schedule, schedule_of
from rlt_jax.configs.sft_defaults import learning_rate_for, least_steps
from rlt_jax.errors import UserError

OPEN = SftConfig(model="model", output_dir="run", data=DataConfig(path="rows.jsonl"))
QWEN_7B, SMOL, TINY = 7_615_616_512, 134_515_008, 600_000


def schedule(config=OPEN, *, rows=60, parameters=SMOL):
    return schedule_of(config, rows=rows, parameters=parameters, source="rows.jsonl")


def test_the_papers_rows_and_model_get_the_papers_values():
    paper = schedule(rows=16_710, parameters=QWEN_7B)
    assert (paper.batch, paper.epochs, paper.max_steps, paper.learning_rate) == (16, 10, 10_440, 1e-5)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [
        (60, 16, 67, 201),  # 3 steps an epoch
        (16, 16, 200, 200),
        (10, 10, 200, 200),  # fewer rows than a batch
        (1, 1, 200, 200),
        (319, 16, 11, 209),
        (320, 16, 10, 200),  # from here on the paper's 10
        (1000, 16, 10, 620),
    ],
)
def test_few_rows_get_more_epochs(rows, batch, epochs, steps):
    found = schedule(rows=rows, parameters=TINY)
    assert (found.batch, found.epochs, found.max_steps) == (batch, epochs, steps)


@pytest.mark.parametrize(("parameters", "steps"), [(TINY, 200), (10_000_000, 200), (SMOL, 15), (QWEN_7B, 1)])
def test_a_larger_model_needs_fewer_steps(parameters, steps):
    assert least_steps(parameters) == steps
    assert schedule(rows=60, parameters=parameters).epochs == max(10, -(-steps // 3))


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(600_000, 1e-3), (SMOL, 7.2e-5), (494_032_768, 3.8e-5), (QWEN_7B, 1e-5), (32_000_000_000, 1e-5)],
)
def test_smaller_models_learn_faster(parameters, rate):
    assert learning_rate_for(parameters) == rate


def test_given_values_stay():
    given = replace(OPEN, num_train_epochs=3, train_batch_size=8, learning_rate=5e-4)
    found = schedule(given)
    assert (found.batch, found.epochs, found.max_steps, found.learning_rate) == (8, 3, 21, 5e-4)
    assert describe_schedule(given, found, parameters=SMOL) == []
    found = schedule(replace(OPEN, max_steps=7))
    assert (found.epochs, found.max_steps) == (None, 7)


def test_the_recorded_values_give_the_same_schedule():
    found = schedule(rows=10)
    settled = found.apply(OPEN)
    assert (settled.train_batch_size, settled.num_train_epochs, settled.learning_rate) == (10, 15, 7.2e-5)
    assert schedule(settled, rows=10) == found
    assert found.apply(settled) == settled


def test_the_log_says_what_follows_from_what():
    assert describe_schedule(OPEN, schedule(parameters=TINY), parameters=TINY) == [
        "60 rows: 67 epochs of 3 steps of 16 rows = 201 steps (10 would be only 30 steps); --num-train-epochs or "
        "--max-steps changes that",
        "0.6M parameters: learning rate 0.001 (1e-05 from 7B parameters on, more for smaller models); "
        "--learning-rate changes that",
    ]
    few = replace(OPEN, max_steps=5, learning_rate=1e-5)
    assert describe_schedule(few, schedule(few, rows=10), parameters=SMOL) == [
        "10 rows: all of them in each step; --train-batch-size changes that"
    ]


def test_a_batch_that_was_asked_for_needs_as_many_rows():
    with pytest.raises(
        UserError, match=r"train_batch_size=64: expected at most the 60 usable rows of rows\.jsonl: lower"
    ):
        schedule(replace(OPEN, train_batch_size=64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs=0: expected a positive whole number"),
        ({"train_batch_size": 0}, "train_batch_size=0: expected a positive whole number"),
        ({"learning_rate": 0.0}, "learning_rate=0: expected a positive number, such as 1e-6"),
        ({"check_texts": -1}, "check_texts=-1: expected a positive whole number, or 0 for none"),
        ({"per_device_train_batch_size": 17}, "per_device_train_batch_size=17 is more than train_batch_size=16: .*"),
    ],
)
def test_values_that_make_no_sense(changes, message):
    check_sft_config(OPEN)
    with pytest.raises(UserError, match=f"^{message}"):
        check_sft_config(replace(OPEN, **changes))
