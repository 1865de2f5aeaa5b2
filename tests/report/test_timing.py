"""Seconds and tokens per second of phases, by a clock that is told what time it is."""

import pytest

from rlt_jax.report.timing import PhaseClock


class Seconds:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def test_phases_add_up_and_the_step_counts_what_lies_between(seconds):
    clock = PhaseClock(seconds)
    for duration in (2.0, 3.0):
        with clock.phase("generate"):
            seconds.now += duration
        seconds.now += 0.25
    with clock.phase("update"):
        seconds.now += 4.0
    assert clock.metrics({"generate": 1000, "update": 800}) == {
        "seconds/generate": 5.0,
        "seconds/update": 4.0,
        "seconds/step": 9.5,
        "tokens_per_second/generate": 200.0,
        "tokens_per_second/update": 200.0,
    }


def test_a_pause_is_left_out_of_its_phase_alone(seconds):
    clock = PhaseClock(seconds)
    with clock.pause():
        seconds.now += 8.0
    for _ in range(2):
        with clock.phase("update"):
            seconds.now += 1.0
            with clock.pause():
                seconds.now += 5.0
            seconds.now += 2.0
    assert clock.metrics({}) == {"seconds/update": 6.0, "seconds/step": 24.0}


def test_reset_starts_a_new_step(seconds):
    clock = PhaseClock(seconds)
    with clock.phase("generate"):
        seconds.now += 2.0
    clock.reset()
    with clock.phase("score"):
        seconds.now += 1.0
    assert clock.metrics({}) == {"seconds/score": 1.0, "seconds/step": 1.0}


def test_a_phase_that_fails_is_counted_and_closed(seconds):
    clock = PhaseClock(seconds)
    with pytest.raises(KeyError), clock.phase("score"):
        seconds.now += 1.5
        raise KeyError
    with clock.phase("score"):
        seconds.now += 1.0
    assert clock.metrics({})["seconds/score"] == 2.5


def test_phases_do_not_nest(seconds):
    clock = PhaseClock(seconds)
    with (
        pytest.raises(RuntimeError, match="phase 'score' begins inside phase 'eval': phases of a step don't nest"),
        clock.phase("eval"),
        clock.phase("score"),
    ):
        pass


def test_tokens_of_a_phase_that_did_not_run_are_an_error(seconds):
    clock = PhaseClock(seconds)
    with clock.phase("generate"):
        pass
    with pytest.raises(ValueError, match=r"amounts given for phases \['sample'\], but only \['generate'\] ran"):
        clock.metrics({"sample": 3})


def test_the_default_clock_runs():
    clock = PhaseClock()
    with clock.phase("work"):
        sum(range(1000))
    metrics = clock.metrics({})
    assert 0 < metrics["seconds/work"] <= metrics["seconds/step"]


def test_utilisations_are_seconds_at_the_peak_over_seconds(seconds):
    clock = PhaseClock(seconds)
    with clock.phase("update"):
        seconds.now += 4.0
    metrics = clock.metrics({"update": 8}, at_peak={"mfu": {"update": 3.0}, "mfu_full": {"update": 5.0}})
    assert (metrics["mfu/update"], metrics["mfu_full/update"]) == (0.75, 1.25)
    assert metrics["tokens_per_second/update"] == 2.0
    with pytest.raises(ValueError, match=r"amounts given for phases \['score'\], but only \['update'\] ran"):
        clock.metrics({}, at_peak={"mfu": {"score": 1.0}})
