"""Arms side by side: changes and intervals by hand and against scipy, the table word by word, the picture."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from rlt_jax.report.comparison import (
    CAPTION,
    Change,
    Evaluations,
    compare,
    comparison_markdown,
    comparison_tables,
    draw_comparison,
    mean_interval,
    read_evaluations,
    write_comparison_csv,
)
from rlt_jax.report.paired import paired_change

LOGP = "component/solution_logp/mean"
BLUE, ORANGE = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)


def run(logp: list[float], *, seed: int = 1, paired: dict | None = None, **others: list[float]) -> Evaluations:
    """A run of four steps, evaluated at 0, 2 and 4."""
    values = {name: dict(zip((0, 2, 4), series)) for name, series in {LOGP: logp, **others}.items()}
    return Evaluations(4, values, paired or {}, seed)


RUNS = {
    "paper": [
        run([-1.0, -0.7, -0.5], copy_rate=[0.0, 0.1, 0.2], trace_copy_rate=[0.25] * 3),
        run([-2.0, -1.0, -0.5], seed=2, copy_rate=[0.1, 0.1, 0.1], trace_copy_rate=[0.25] * 3),
        run([-1.5, -1.0, -0.5], seed=3, copy_rate=[0.0, 0.0, 0.0], trace_copy_rate=[0.25] * 3),
    ],
    "no-kl": [
        run(
            [-1.0, -1.0, -1.25],
            paired={LOGP: paired_change(np.array([-1.0, -0.5, -1.5]), np.array([-1.25, -1.0, -1.5]))},
            **{"completion_length/mean": [10.0, 12.0, 15.0]},
        )
    ],
    "none yet": [],
}
PLANNED = {"paper": 3, "no-kl": 2, "none yet": 2}


def test_changes_over_seeds_by_hand():
    """Changes 0.5, 1.5, 1.0: mean 1, standard deviation 0.5, t(2) = 4.303."""
    change = compare(RUNS, PLANNED)["paper"].changes[LOGP]
    half_width = pytest.approx(4.30265 * 0.5 / 3**0.5, rel=1e-5)
    assert change == Change(first=-1.5, last=-0.5, change=1.0, half_width=half_width, over="seeds")


def test_one_seed_has_an_interval_over_prompts_by_hand():
    """Changes by prompt -0.25, -0.5, 0: mean -0.25, standard error 0.25 / sqrt(3), t(2) = 4.303."""
    arm = compare(RUNS, PLANNED)["no-kl"]
    half_width = pytest.approx(4.30265 * 0.25 / 3**0.5, rel=1e-5)
    assert arm.changes[LOGP] == Change(first=-1.0, last=-1.25, change=-0.25, half_width=half_width, over="prompts")
    assert arm.changes["completion_length/mean"] == Change(10.0, 15.0, 5.0, None, None)  # not recorded by prompt
    assert (arm.finished, arm.planned) == (1, 2)


def test_prompts_are_not_used_where_there_are_seeds():
    paired = {LOGP: paired_change(np.zeros(2), np.ones(2))}
    runs = {"a": [run([0.0, 0.0, 1.0], paired=paired), run([0.0, 0.0, 3.0], paired=paired)]}
    change = compare(runs, {"a": 2})["a"].changes[LOGP]
    assert (change.change, change.over) == (2.0, "seeds")
    assert change.half_width == pytest.approx(12.7062, rel=1e-5)  # t(1) times 1


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_the_interval_is_scipys(values):
    mean, half_width = mean_interval(values)
    assert half_width is not None
    if half_width > 1e-9:  # else scipy returns NaN
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (mean - half_width, mean + half_width) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_a_single_value_has_no_interval():
    assert mean_interval([3.0]) == (3.0, None)


def test_a_metric_without_a_value_at_both_ends_is_left_out():
    broken = Evaluations(4, {LOGP: {0: -1.0, 4: -0.5}, "reward": {0: 1.0, 2: 2.0}}, {}, 1)
    assert list(compare({"a": [broken]}, {"a": 1})["a"].changes) == [LOGP]


def test_the_table_word_by_word():
    text = comparison_markdown(compare(RUNS, PLANNED))
    assert text.splitlines()[:5] == [
        "| arm | seeds | Solution log-prob, nats per token | Reward, nats, weighted | Explanation KL, nats per token "
        "| Completion length, tokens | Copy rate, share | Repeat rate, share | Match rate, share "
        "| Copy rate of the traces |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        "| paper | 3/3 | +1.000 ± 1.242 → -0.500 | – | – | – | +0.067 ± 0.287 → 0.100 | – | – | 0.250 |",
        "| no-kl | 1/2 | -0.250 ± 0.621 → -1.250 | – | – | +5.0 → 15.0 | – | – | – | – |",
        "| none yet | 0/2 | – | – | – | – | – | – | – | – |",
    ]
    assert "Rewards of arms with different coefficients, reductions or terms are not comparable." in text
    assert "\n\n".join(CAPTION) + "\n\n| arm | seeds |" in text
    assert text.splitlines()[-3].startswith("| no-kl − paper | 1 | -0.750 | – | – |")
    assert text.endswith("holds here.\n")


def test_a_study_of_one_arm_has_one_table():
    text = comparison_markdown(compare({"a": RUNS["paper"]}, {"a": 3}))
    assert text.endswith("\n\n".join(CAPTION) + "\n")


def test_differences_are_of_equal_seeds_by_hand():
    """Seeds 2 and 3 are in both: differences 0.5 and 0.1 of the last values, mean 0.3, t(1) = 12.706."""
    others = [run([0.0, 0.0, 9.0], seed=4), run([0.0, 0.0, -0.4], seed=3), run([0.0, 0.0, 0.0], seed=2)]
    arms = compare({"paper": RUNS["paper"], "b": others}, {"paper": 3, "b": 3})
    difference = arms["b"].from_first[LOGP]
    assert (difference.mean, difference.seeds) == (pytest.approx(0.3), 2)
    assert difference.half_width == pytest.approx(12.7062 * 0.4 / 2, rel=1e-5)
    assert "copy_rate" not in arms["b"].from_first  # the other arm has none
    assert arms["paper"].from_first == {}
    assert "| b − paper | 2 | +0.300 ± 2.541 |" in comparison_markdown(arms)


def test_without_a_common_seed_there_is_no_difference():
    arms = compare({"a": [run([0.0, 0.0, 1.0], seed=1)], "b": [run([0.0, 0.0, 1.0], seed=2)]}, {"a": 1, "b": 1})
    assert arms["b"].from_first == {} and "b − a" not in comparison_markdown(arms)


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
    assert logp["from_first"] == ""


def write_metrics(folder, records: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_evaluations_are_read_from_a_run(tmp_path):
    records = [
        {"step": 0, "time": 0.0, "eval/reward": -1.0, "eval/match_rate": 0.5},
        {"step": 1, "time": 0.0, "reward": 9.0},
        {"step": 2, "time": 0.0, "eval/reward": -0.5, "eval/match_rate": None},
        {"step": 3, "time": 0.0, "eval/reward": 4.0},
    ]
    write_metrics(tmp_path, records)
    assert read_evaluations(tmp_path, last=2) == {"reward": {0: -1.0, 2: -0.5}, "match_rate": {0: 0.5}}
    assert read_evaluations(tmp_path, last=4) == {}  # not finished
    assert read_evaluations(tmp_path / "nowhere", last=2) == {}


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
