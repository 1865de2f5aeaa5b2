"""The progress display: plain lines in a pipe, a bar in a terminal, the time left."""

import logging

import pytest

from rlt_jax.report.log import setup_logging
from rlt_jax.report.progress import open_progress


class Seconds:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pipe_gets_one_plain_line_for_each_logged_step(pipe, written):
    clock = Seconds()
    with open_progress(200, console=pipe, now=clock) as progress:
        for step in (1, 2):
            progress.phase("generate", "3/8")
            clock.now += 30.0
            progress.step(step)
        metrics = {"reward": -1.23456, "tokens_per_second/generate": 12345.6, "seconds/step": 30.0, "kl": 0.1}
        progress.log(2, metrics)
        progress.log(2, metrics | {"memory/peak_gpu_gb/update": 76.29, "memory/peak_gpu_gb/score": 37.4})
        progress.log(2, {"eval/reward": -1.0})
    assert written(pipe) == (
        "step   2/200  reward -1.235  12,346 tokens/s  30.0 s/step  ETA 1:39:00\n"
        "step   2/200  reward -1.235  12,346 tokens/s  76.3 GB  30.0 s/step  ETA 1:39:00\n"
        "step   2/200  eval reward -1.000  ETA 1:39:00\n"
    )


def test_time_left_counts_the_steps_of_this_process_and_forgets_the_slow_first_one(pipe):
    clock = Seconds()
    progress = open_progress(100, start_step=40, console=pipe, now=clock)
    assert progress.seconds_left() is None
    clock.now += 500.0  # compiles
    progress.step(41)
    assert progress.seconds_left() == pytest.approx(59 * 500.0)
    for step in range(42, 62):
        clock.now += 2.0
        progress.step(step)
    assert progress.seconds_left() == pytest.approx(39 * 2.0)


def test_a_terminal_gets_a_bar_with_phase_numbers_and_time_left(terminal, written):
    clock = Seconds()
    with open_progress(10, console=terminal, now=clock) as progress:
        progress.phase("generate", "3/8")
        clock.now += 4.0
        progress.step(5)
        progress.log(5, {"reward": 0.25, "tokens_per_second/generate": 100.0})
    screen = written(terminal)
    assert "\x1b[" in screen
    last = screen.rsplit("generate 3/8", 1)[1]
    for part in ("5/10", "reward 0.250", "100 tokens/s", "ETA 0:00:04"):
        assert part in last


def test_log_lines_and_bar_share_a_terminal(tmp_path, terminal, written):
    log = setup_logging(tmp_path, console=terminal)
    with open_progress(10, console=terminal) as progress:
        progress.step(1)
        log.info("saved a checkpoint")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.NOTSET)
    assert "saved a checkpoint" in written(terminal)
