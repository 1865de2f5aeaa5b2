"""What kind of change a setting's change is."""

import dataclasses
from dataclasses import replace

import pytest

from rlt_jax.configs import PRESETS, DataConfig, RewardConfig, SftConfig
from rlt_jax.configs.resume import changed_fields, changes, deciding_settings, leaves

TINY = PRESETS["tiny"]
SFT = SftConfig(model="a", output_dir="b", data=DataConfig(path="c"))


def steering(config) -> set[str]:
    """The fields of which a change is named, but not refused."""
    other = {name: object() for name, _ in leaves(deciding_settings(config))}

    def changed(section, prefix=""):
        values = {}
        for field in dataclasses.fields(section):
            value, name = getattr(section, field.name), f"{prefix}{field.name}"
            if dataclasses.is_dataclass(value):
                values[field.name] = changed(value, f"{name}.")
            elif name in other:
                values[field.name] = other[name]
        return replace(section, **values)

    return {change.name for change in changes(changed(config), config) if change.steers}


def test_a_change_names_both_values():
    now = replace(TINY, learning_rate=1e-5, loss=replace(TINY.loss, beta=0.1), max_completion_length=99)
    now = replace(now, reward=replace(TINY.reward, kl_penalty_reward_coeff=(1.0,)))
    assert [str(change) for change in changes(now, TINY)] == [
        "max_completion_length 64 -> 99",
        "learning_rate 0.0001 -> 1e-05",
        "loss.beta 0.04 -> 0.1",
        "reward.kl_penalty_reward_coeff 3.0 0.03 -> 1.0",
    ]
    assert [change.steers for change in changes(now, TINY)] == [False, True, True, False]
    assert changed_fields(now, TINY) == [change.name for change in changes(now, TINY)]


def test_options_of_a_function_may_come_and_go():
    before = replace(TINY, reward=RewardConfig(fn="a.py:f", options={"weight": 1, "span": {"low": 2}}))
    now = replace(TINY, reward=RewardConfig(fn="a.py:f", options={"weight": 2, "high": [1, 2]}))
    assert [str(change) for change in changes(now, before)] == [
        "reward.options.weight 1 -> 2",
        "reward.options.high None -> 1 2",
        "reward.options.span.low 2 -> None",
    ]
    assert changes(before, before) == []


def test_what_does_not_change_results_is_no_change():
    now = replace(TINY, output_dir="elsewhere", score_batch_size=1, resume="must", accept_changes=True, save_steps=1)
    now = replace(now, memory=replace(TINY.memory, frozen="host"), loss=replace(TINY.loss, logprob_chunk=1))
    assert changes(now, TINY) == []


RUN = {
    *("preset", "max_steps", "train_batch_size", "num_generations", "generation_aggregation_steps", "learning_rate"),
    *("logging_steps", "eval_steps", "data.on_bad_row", "data.artificial_epochs"),
    *("num_iterations", "num_minibatches"),
    *("ref.sync_ref_model", "ref.ref_model_sync_steps", "ref.ref_model_mixup_alpha"),
}
COMPUTED = {"logprob_chunk", "saved_mlp", "saved_attention"}  # of the loss: how, not what
RUN |= {f"loss.{field.name}" for field in dataclasses.fields(TINY.loss) if field.name not in COMPUTED}
RUN |= {f"advantages.{field.name}" for field in dataclasses.fields(TINY.advantages)}
OPTIMIZER = {f"optimizer.{field.name}" for field in dataclasses.fields(TINY.optimizer)}
SUPERVISED = {
    *("max_steps", "num_train_epochs", "train_batch_size", "packing", "packed_length", "learning_rate"),
    *("logging_steps", "eval_steps", "data.on_bad_row", "data.artificial_epochs"),
}


@pytest.mark.parametrize(("config", "expected"), [(TINY, RUN | OPTIMIZER), (SFT, SUPERVISED | OPTIMIZER)])
def test_what_steers_a_run_and_no_more(config, expected):
    """A new setting decides what is measured, until it is looked at and marked; then it belongs here."""
    assert steering(config) == expected
