"""The picture of a run: which panels it has, that points stand where they belong, errors."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlt_jax.errors import UserError
from rlt_jax.report.curves import Panel, draw_curves, draw_levels, new_figure, running_mean, style_axes

EVAL_COLOUR = (0xD9, 0x54, 0x1E)
TRAIN_COLOUR = (0x2F, 0x6D, 0xB3)


def write_run(run_dir: Path, records: list[dict]) -> Path:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run_dir


def pixels(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """i64[N, 2] (row, column) of the pixels of exactly this colour, the legend's strip left out."""
    image = np.asarray(Image.open(path).convert("RGB"))
    found = np.argwhere((image == colour).all(axis=-1))
    return found[found[:, 0] > 60]


def test_a_run_is_drawn_with_its_held_out_points(tmp_path):
    records: list[dict] = [{"step": s, "time": 0.0, "reward": s / 10, "kl": None} for s in range(1, 9)]
    records += [{"step": 0, "time": 0.0, "eval/reward": -1.0}, {"step": 8, "time": 0.0, "eval/reward": 0.5}]
    path = draw_curves(write_run(tmp_path, records))
    assert path == tmp_path / "curves.png"
    points = pixels(path, EVAL_COLOUR)
    left, right = points[points[:, 1].argmin()], points[points[:, 1].argmax()]
    assert left[0] > right[0]  # rises: rows count from the top
    line = pixels(path, TRAIN_COLOUR)
    assert line[line[:, 1].argmin(), 0] > line[line[:, 1].argmax(), 0]
    assert line[:, 1].min() > points[:, 1].min()  # training begins at step 1, evaluation at 0


def test_panels_without_values_are_left_out(tmp_path):
    one = [{"step": s, "reward": 0.1 * s} for s in (1, 2)]
    two = [record | {"copy_rate": 0.1, "trace_copy_rate": 0.3} for record in one]
    widths = [Image.open(draw_curves(write_run(tmp_path, records))).width for records in (one, two)]
    assert widths[1] == 2 * widths[0]


def test_all_panels_of_a_long_run(tmp_path):
    names = ["reward", "component/solution_logp/mean", "component/thought_kl/mean", "kl", "copy_rate"]
    names += ["completion_length/min", "completion_length/mean", "completion_length/max", "trace_copy_rate"]
    records = [{"step": s, **{name: float(s + i) for i, name in enumerate(names)}} for s in range(1, 40)]
    image = Image.open(draw_curves(write_run(tmp_path, records)))
    assert image.size == (1845, 907)  # three columns, two rows


def test_one_step_is_enough(tmp_path):
    path = draw_curves(write_run(tmp_path, [{"step": 1, "reward": 1.0}]))
    assert len(pixels(path, TRAIN_COLOUR)) > 10


def test_own_panels(tmp_path):
    run_dir = write_run(tmp_path, [{"step": 1, "mine": 1.0}, {"step": 2, "mine": 2.0}])
    assert draw_curves(run_dir, panels=[Panel("Mine", "apples", "mine")]).stat().st_size > 5000


@pytest.mark.parametrize("records", [None, [], [{"step": 1, "seconds/step": 1.0}], [{"step": 1, "reward": None}]])
def test_a_run_without_metrics_is_a_user_error(tmp_path, records):
    if records is not None:
        write_run(tmp_path, records)
    with pytest.raises(UserError, match=r"expected metrics to draw in .*metrics\.jsonl, found none"):
        draw_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("values", [(-0.03, -0.1, -1.51, -1.55), (-0.001, -0.4, -1.69, -2.16)])
def test_labels_of_levels_do_not_lie_on_each_other(values):
    figure = new_figure(4.1, 2.75)
    axes = figure.add_subplot()
    axes.plot([0, 150], [-0.12, -0.05])
    names = ("the true trace", "the solution itself", "no explanation", "somebody else's trace")
    draw_levels(axes, dict(zip(names, values, strict=True)))
    style_axes(axes, "Solution log-prob", "nats per token")
    figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text() in names}
    assert len(boxes) == 4
    for first, second in itertools.combinations(boxes.values(), 2):
        assert not first.overlaps(second)


def test_running_mean_by_hand():
    values = np.array([1.0, 2.0, 6.0, 4.0])
    assert running_mean(values, 3).tolist() == [1.5, 3.0, 4.0, 5.0]
    assert running_mean(values, 1).tolist() == values.tolist()


def test_pyplot_s_global_state_is_not_touched(tmp_path):
    write_run(tmp_path, [{"step": 1, "reward": 1.0}])
    program = (
        "import sys; from pathlib import Path; from rlt_jax.report.curves import draw_curves\n"
        f"draw_curves(Path({str(tmp_path)!r})); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
