"""A comparison as shown: the table word by word, the numbers in full, the picture."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from rlt_jax.studies.comparison import compare
from rlt_jax.studies.comparison_report import (
    CAPTION,
    comparison_markdown,
    comparison_tables,
    draw_comparison,
    write_comparison_csv,
)
from tests.studies.arms import LOGP, PLANNED, RUNS

BLUE, ORANGE = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)


def test_the_table_word_by_word():
    text = comparison_markdown(compare(RUNS, PLANNED))
    assert text.splitlines()[:5] == [
        "| arm | seeds | Solution log-prob, nats per token | Reward, nats, weighted | Explanation KL, nats per token "
        "| Completion length, tokens | Copy rate, share | Repeat rate, share | Match rate, share "
        "| Copy rate of the traces | Step, seconds |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        "| paper | 3/3 | +1.000 ± 1.242 → -0.500 | – | – | – | +0.067 ± 0.287 → 0.100 | – | – | 0.250 | 2.00 ± 2.48 |",
        "| no-kl | 1/2 | -0.250 ± 0.621 → -1.250 | – | – | +5.0 → 15.0 | – | – | – | – | – |",
        "| none yet | 0/2 | – | – | – | – | – | – | – | – | – |",
    ]
    assert "Rewards of arms with different coefficients, reductions or terms are not comparable." in text
    assert "\n\n".join(CAPTION) + "\n\n| arm | seeds |" in text
    assert text.splitlines()[-3].startswith("| no-kl − paper | 1 | -0.750 | – | – |")
    assert text.endswith("comparable here either.\n")


def test_a_study_of_one_arm_has_one_table():
    text = comparison_markdown(compare({"a": RUNS["paper"]}, {"a": 3}))
    assert text.endswith("\n\n".join(CAPTION) + "\n")


def test_a_terminal_gets_the_same_cells(terminal, written):
    terminal.width = 240
    terminal.print(*comparison_tables(compare(RUNS, PLANNED)), sep="\n")
    screen = written(terminal)
    for part in (
        "+1.000 ± 1.242 → -0.500",
        "+5.0 → 15.0",
        "none yet",
        "0/2",
        "not comparable",
        "no-kl − paper",
        "-0.750",
    ):
        assert part in screen


def test_the_numbers_in_full(tmp_path):
    write_comparison_csv(compare(RUNS, PLANNED), tmp_path / "comparison.csv")
    records = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert len(records) == 3 * 8
    by_name = {(record["arm"], record["metric"]): record for record in records}
    logp = by_name["paper", f"eval/{LOGP}"]
    assert (logp["unit"], logp["seeds"], logp["planned"], logp["ci_over"]) == ("nats per token", "3", "3", "seeds")
    numbers = [float(logp[name]) for name in ("first", "last", "change", "ci_low", "ci_high")]
    assert numbers == pytest.approx([-1.5, -0.5, 1.0, 1.0 - 1.242069, 1.0 + 1.242069], rel=1e-5)
    length = by_name["no-kl", "eval/completion_length/mean"]
    assert (length["change"], length["ci_low"], length["ci_over"]) == ("5.0", "", "")
    assert by_name["none yet", "eval/reward"]["change"] == ""
    differs = by_name["no-kl", f"eval/{LOGP}"]
    assert (differs["from_first"], differs["from_first_low"], differs["from_first_seeds"]) == ("-0.75", "", "1")
    assert (differs["from_first_questions"], differs["p"], differs["certain"]) == ("0", "", "")
    assert logp["from_first"] == logp["p_holm"] == ""


def test_the_picture_has_a_line_and_a_band_per_arm(tmp_path):
    draw_comparison(RUNS, tmp_path / "all.png")
    image = np.asarray(Image.open(tmp_path / "all.png").convert("RGB")).astype(int)
    panel = image[150:470, 60:600]  # the first one: solution log-prob
    rows = {}
    for colour in (BLUE, ORANGE):
        places = np.argwhere((panel == colour).all(axis=-1))
        left, right = places[places[:, 1].argmin()], places[places[:, 1].argmax()]
        rows[colour] = (left[0], right[0])
    assert rows[BLUE][0] > rows[BLUE][1]  # rises: rows count from the top
    assert rows[ORANGE][0] < rows[ORANGE][1]  # falls
    faint = (panel[..., 2] > panel[..., 0] + 8) & (panel.min(axis=-1) > 200)  # a light blue
    assert faint.sum() > 5_000


def test_a_picture_of_many_arms(tmp_path):
    draw_comparison({f"arm {i}": RUNS["paper"] for i in range(45)}, tmp_path / "many.png")
    assert Image.open(tmp_path / "many.png").height > 1200


def test_levels_are_drawn_beside_the_curves(tmp_path):
    faint = {}
    for name, levels in (("without", None), ("with", {LOGP: {"the true trace": -0.2, "no explanation": -1.4}})):
        draw_comparison(RUNS, tmp_path / name, levels=levels)
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        first_panel = pixels[: pixels.shape[0] // 2, : pixels.shape[1] // 3]
        faint[name] = (first_panel == (0x8A, 0x8A, 0x8A)).all(axis=2).sum(axis=1).max()  # the longest line of dashes
    assert faint["with"] > 5 * faint["without"]
