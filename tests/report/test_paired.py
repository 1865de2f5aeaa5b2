"""Change on the same prompts: the numbers against scipy, the text that ends a run word by word."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlt_jax.report.paired import PairedChange, format_summary, paired_change, print_summary

FILES = {"metrics": Path("runs/a/metrics.jsonl"), "final model": Path("runs/a/final")}
CHANGES = {
    "reward": PairedChange(-2.5, -1.25, 1.25, 0.125, 10.0, 32),
    "solution log-prob (nats/token)": PairedChange(-1.0, -12.0, -11.0, 0.5, -22.0, 32),
}
TEXT = """\
Held-out prompts, before and after (32 prompts, paired; ± standard error)
  reward                          -2.5000 ->  -1.2500  change  +1.2500 ± 0.1250  (z +10.0)
  solution log-prob (nats/token)  -1.0000 -> -12.0000  change -11.0000 ± 0.5000  (z -22.0)
Files
  metrics      runs/a/metrics.jsonl
  final model  runs/a/final"""


def test_by_hand():
    assert paired_change(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 5.0, 5.0])) == PairedChange(
        mean_before=2.5,
        mean_after=3.5,
        change=1.0,
        standard_error=pytest.approx(math.sqrt(2 / 3) / 2),
        z=pytest.approx(2 / math.sqrt(2 / 3)),
        count=4,
    )


@given(st.integers(2, 40), st.integers(0, 10_000))
def test_z_is_the_paired_t_statistic(count, seed):
    before, after = np.random.default_rng(seed).normal(size=(2, count))
    assert paired_change(before, after).z == pytest.approx(stats.ttest_rel(after, before).statistic, rel=1e-9)


def test_a_change_without_spread():
    same = np.array([1.0, 2.0])
    assert paired_change(same, same).z == 0.0
    assert paired_change(same, same + 1).z == math.inf
    assert paired_change(same, same - 1).z == -math.inf


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (np.ones(1), np.ones(1), r"N >= 2, got shapes \(1,\) and \(1,\)"),
        (np.ones(2), np.ones(3), r"N >= 2, got shapes \(2,\) and \(3,\)"),
        (np.ones((2, 2)), np.ones((2, 2)), r"N >= 2, got shapes \(2, 2\) and \(2, 2\)"),
        (np.array([0.0, np.nan]), np.ones(2), "expected finite values before and after, got NaN or inf"),
    ],
)
def test_what_cannot_be_paired_is_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        paired_change(before, after)


def test_the_text_of_a_run_s_end():
    assert format_summary(CHANGES, FILES) == TEXT


def test_parts_that_are_empty_are_left_out():
    assert format_summary({}, FILES) == TEXT[TEXT.index("Files") :]
    assert format_summary(CHANGES, {}) == TEXT[: TEXT.index("\nFiles")]


def test_a_pipe_gets_the_plain_text(pipe, written):
    print_summary(CHANGES, FILES, console=pipe)
    assert written(pipe) == TEXT + "\n"


def test_a_terminal_gets_a_table(terminal, written):
    print_summary(CHANGES, FILES, console=terminal)
    screen = written(terminal)
    for part in ("-2.5000", "+1.2500 ± 0.1250", "-22.0", "runs/a/metrics.jsonl", "┃"):
        assert part in screen
