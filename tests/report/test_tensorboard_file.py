"""TensorBoard's files of resumed runs, read by TensorBoard."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from rlt_jax.report.tensorboard_file import MOST_LINES, open_tensorboard


def line(step: int, **values: float | None) -> dict:
    return {"step": step, "time": 1e9 + step, **values}


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """As the server reads them: name -> [(step, value)]."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    assert set(events.PluginTagToContent("scalars")) == set(events.Tags()["tensors"])
    return {
        tag: [(event.step, round(float(event.tensor_proto.float_val[0]), 3)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def write(folder: Path, *lines: dict, resume_step: int = 0, history=()) -> None:
    file = open_tensorboard(folder, resume_step=resume_step, lines=history)
    for each in lines:
        file.write(each)
    file.close()


def test_nulls_are_left_out(tmp_path):
    write(tmp_path, line(1, a=1.5, b=None), line(2, a=2.5, b=3))
    assert shown(tmp_path) == {"a": [(1, 1.5), (2, 2.5)], "b": [(2, 3.0)]}


def test_a_resumed_run_takes_its_later_steps_back(tmp_path):
    write(tmp_path, *(line(step, a=step) for step in range(1, 301)))
    write(tmp_path, line(201, a=0), line(202, a=0), resume_step=200)
    write(tmp_path, line(202, a=1), resume_step=201)
    assert shown(tmp_path)["a"] == [*((step, float(step)) for step in range(1, 201)), (201, 0.0), (202, 1.0)]
    write(tmp_path, line(1, b=1))
    assert shown(tmp_path) == {"b": [(1, 1.0)]}


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_an_event_that_was_torn_does_not_hide_the_later_ones(tmp_path, cut):
    write(tmp_path, line(1, a=1), line(2, a=2))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    write(tmp_path, line(2, a=3), line(3, a=4), resume_step=1)
    assert shown(tmp_path)["a"] == [(1, 1.0), (2, 3.0), (3, 4.0)]


def test_a_run_without_files_is_drawn_from_its_metrics(tmp_path):
    history = [line(step, a=step) for step in range(1, 3 * MOST_LINES + 1)] + [line(3 * MOST_LINES, **{"eval/a": 7.0})]
    write(tmp_path / "new", line(3 * MOST_LINES + 1, a=0), resume_step=3 * MOST_LINES, history=history)
    drawn = shown(tmp_path / "new")
    assert len(drawn["a"]) <= MOST_LINES + 1 and drawn["a"][0] == (1, 1.0) and drawn["a"][-1] == (3 * MOST_LINES + 1, 0)
    assert drawn["eval/a"] == [(3 * MOST_LINES, 7.0)]
