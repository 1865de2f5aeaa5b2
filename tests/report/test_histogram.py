"""Rewards as a histogram: counts by hand, a picture with both parts."""

import numpy as np
import pytest
from PIL import Image

from rlt_jax.report.histogram import draw_histogram, histogram_text

TRAIN, EVAL = (0x2F, 0x6D, 0xB3), (0xD9, 0x54, 0x1E)


def test_the_text_by_hand():
    values = np.array([-2.0, -1.5, 0.0, 1.0, 1.5, 2.0])
    assert histogram_text(values, bins=4).splitlines() == [
        "-2.000 to -1.000  2  " + "#" * 27,  # 40 * 2 / 3, rounded up
        "-1.000 to  0.000  0",
        " 0.000 to  1.000  1  " + "#" * 14,
        " 1.000 to  2.000  3  " + "#" * 40,
    ]


def test_a_dozen_bins_in_which_a_single_value_is_seen():
    values = np.array([0.0] * 1000 + [12.0])
    lines = histogram_text(values).splitlines()
    assert len(lines) == 12
    assert lines[0].split()[-2:] == ["1000", "#" * 40] and lines[-1].split()[-2:] == ["1", "#"]


@pytest.mark.parametrize("values", [[1.25], [1.25, 1.25]])
def test_equal_rewards(values):
    lines = histogram_text(np.array(values)).splitlines()
    assert sum(line.endswith("#" * 40) for line in lines) == 1 and len(lines) == 12


def test_the_picture_shows_all_and_the_kept(tmp_path):
    rewards = np.random.default_rng(0).normal(size=500)
    for name, kept in (("all.png", None), ("kept.png", np.flatnonzero(rewards > 0))):
        draw_histogram(rewards, tmp_path / name, kept=kept)
    shares = {}
    for name in ("all.png", "kept.png"):
        image = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        shares[name] = [(image == colour).all(axis=-1).sum() for colour in (TRAIN, EVAL)]
    assert shares["all.png"][0] > 10_000 and shares["all.png"][1] == 0
    blue, orange = shares["kept.png"]
    assert orange / (blue + orange) == pytest.approx(np.mean(rewards > 0), abs=0.03)
