"""Alarms: when each begins and ends, and that a resumed run has the alarms of one in a piece."""

import random

import pytest

from rlt_jax.configs import AlarmsConfig
from rlt_jax.runs.alarms import Alarms

HEALTHY = {
    "near_zero_spread_share": 0.625,
    "cut_off_share": 0.6,
    "kl": 0.03,
    "entropy": 0.024,
    "grad_norm": 1.0,
    "sampler_logp_diff": 0.065,
    "sync_logp_diff": 0.1,
}
BEYOND = {
    "zero_spread": {"near_zero_spread_share": 1.0},
    "cut_off": {"cut_off_share": 1.0},
    "kl": {"kl": 1.5},
    "entropy": {"entropy": 1e-4},
    "sampler_mismatch": {"sync_logp_diff": 0.5},
    "grad_spike": {"grad_norm": 25.0},
}
PATIENT = ("zero_spread", "cut_off", "entropy")


def alarms(**changed):
    return Alarms(AlarmsConfig(**changed), max_grad_norm=1.0)


def test_a_healthy_run_has_none():
    """The extremes of the recorded runs of docs/results, and of the preset tiny, whose norms jump most."""
    watch, norms = alarms(), random.Random(0)
    for _ in range(100):
        states, said = watch(HEALTHY | {"grad_norm": norms.choice([0.16, 0.2, 0.26, 0.38, 1.39])})
        assert said == [] and states == {f"alarm/{name}": 0.0 for name in BEYOND}


@pytest.mark.parametrize("name", BEYOND)
def test_each_is_said_when_it_begins_and_when_it_ends(name):
    watch = alarms()
    for _ in range(5):
        watch(HEALTHY)
    told = [watch(HEALTHY | BEYOND[name]) for _ in range(5)]
    first = 2 if name in PATIENT else 0
    assert [states[f"alarm/{name}"] for states, _ in told] == [float(i >= first) for i in range(5)]
    assert [len(said) for _, said in told] == [int(i == first) for i in range(5)]
    assert f"alarm {name}: " in told[first][1][0] and "limit" in told[first][1][0]
    after = [watch(HEALTHY) for _ in range(5)]
    last = first + 1
    assert [states[f"alarm/{name}"] for states, _ in after] == [float(i + 1 < last) for i in range(5)]
    assert [len(said) for _, said in after] == [int(i + 1 == last) for i in range(5)]
    assert after[first][1][0].startswith(f"alarm {name} has ended: ")


@pytest.mark.parametrize("name", PATIENT)
def test_a_value_about_its_limit_does_not_begin_and_end_it_again_and_again(name):
    watch, said = alarms(), []
    for _ in range(3):
        said += watch(HEALTHY | BEYOND[name])[1]
    for _ in range(20):
        for beyond in (False, False, True, True):
            said += watch(HEALTHY | (BEYOND[name] if beyond else {}))[1]
    assert len(said) == 1


@pytest.mark.parametrize("name", BEYOND)
def test_each_can_be_switched_off(name):
    watch = alarms(**{name: None}, patience=1)
    for _ in range(6):
        states, said = watch(HEALTHY | BEYOND[name])
        assert said == [] and f"alarm/{name}" not in states


def test_what_a_step_does_not_measure_has_no_alarm():
    states, _ = alarms()({"kl": 0.1, "grad_norm": None})
    assert states == {"alarm/kl": 0.0}


def test_a_gradient_that_is_not_clipped_is_no_spike():
    """Steps whose rewards are all equal have norms of rounding."""
    watch = alarms()
    for _ in range(10):
        watch(HEALTHY | {"grad_norm": 1e-8})
    assert watch(HEALTHY | {"grad_norm": 0.9})[1] == []
    assert watch(HEALTHY | {"grad_norm": 1.1})[1] != []


@pytest.mark.parametrize("cut", [1, 7, 23, 60, 99])
def test_a_resumed_run_has_the_same_alarms(cut):
    draw = random.Random(1)
    lines = [HEALTHY | {"grad_norm": draw.uniform(0.5, 1.5)} for _ in range(100)]
    for i, line in enumerate(lines):
        for name in draw.sample(sorted(BEYOND), draw.choice([0, 0, 1, 2])):
            line.update(BEYOND[name])
        if 2 < i < 80:  # longer than what is read again
            line.update(BEYOND["zero_spread"])
    whole, resumed = alarms(), alarms()
    told = [whole(line) for line in lines]
    logged = [line | states for line, (states, _) in zip(lines, told, strict=True)]
    resumed.restore(reversed([{"step": 0, "eval/reward": 1.0}, *logged[:cut]]))
    assert [resumed(line) for line in lines[cut:]] == told[cut:]
    assert any(said for _, said in told)
