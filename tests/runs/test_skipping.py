"""What is kept of skipped steps, how long, and how they are counted."""

import json
import shutil
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite
from rlt_jax.runs.skipping import Evidence, Skips, joined, keep_step, read_state, read_step, skips_of, split

EVIDENCE = Evidence(
    {"rows": np.array([3, 17]), **joined("ids", [np.arange(3, dtype=np.int32), np.zeros(0, np.int32)])},
    {"command": "train", "sizes": {"update": 4}},
)
FAULT = NotFinite("the reward: nan in explanation 1", values={"reward": np.float32([1.0, np.nan])})
FAULT.stage = "score"


def state(value=1.0):
    weights = jnp.full((2, 3), value, jnp.bfloat16).at[0, 1].set(jnp.nan)
    return {"w": weights}, {"w": jnp.full((2, 3), -value, jnp.bfloat16)}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text("preset: tiny\n")
    return tmp_path


def kept(run):
    return sorted(entry.name for entry in (run / "skipped").iterdir())


def skip(run, step, *, state_of, new=True, keep=2, value=1.0):
    return keep_step(run, step, FAULT, EVIDENCE, state(value), state_of=state_of, new=new, keep=keep)


def test_everything_comes_back_bit_for_bit(run, tmp_path_factory):
    assert skip(run, 7, state_of=6) == run / "skipped" / "7"
    moved = tmp_path_factory.mktemp("moved") / "run"
    shutil.move(run, moved)
    step = read_step(moved, None)
    assert (step.step, step.fault["stage"], step.fault["culprit"]) == (7, "score", FAULT.culprit)
    assert step.fault["dtype"] == "bfloat16" and step.fault["sizes"] == {"update": 4}
    assert step.values["reward"].tobytes() == FAULT.values["reward"].tobytes()
    assert [row.tolist() for row in split(step.batch, "ids")] == [[0, 1, 2], []]
    read = read_state(step.state, state())
    for tree, expected in zip(read, state()):
        assert np.asarray(tree["w"]).tobytes() == np.asarray(expected["w"]).tobytes()
    assert (moved / "skipped" / "7" / "config.yaml").read_text() == "preset: tiny\n"


def test_steps_in_a_row_share_their_weights_and_old_ones_go(run):
    skip(run, 3, state_of=2)
    skip(run, 4, state_of=2, new=False)
    assert kept(run) == ["3", "4", "state-2"]
    skip(run, 9, state_of=8)
    assert kept(run) == ["4", "9", "state-2", "state-8"]
    skip(run, 10, state_of=8, new=False)
    assert kept(run) == ["10", "9", "state-8"]
    skip(run, 9, state_of=8, value=2.0)  # again, after a restart
    assert kept(run) == ["10", "9", "state-8"]
    assert float(read_state(run / "skipped" / "state-8", state())[1]["w"][0, 0]) == -2.0


def test_nothing_is_kept_where_nothing_is_wanted(run):
    assert skip(run, 3, state_of=2, keep=0) is None and not (run / "skipped").exists()


def test_a_full_disk_is_a_warning(run, monkeypatch, logged):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(3))
    assert skip(run, 3, state_of=2) is None
    assert "step 3: its batch and weights cannot be kept for rlt_jax.replay" in logged.text
    assert kept(run) == []


def test_a_folder_that_cannot_be_written_is_a_warning(run, logged):
    (run / "skipped").write_text("a file")
    assert skip(run, 3, state_of=2) is None
    assert "cannot be kept" in logged.text


def test_what_is_missing_or_damaged_is_named(run):
    with pytest.raises(UserError, match="expected a skipped step to replay, but there is none"):
        read_step(run, None)
    skip(run, 3, state_of=2)
    with pytest.raises(UserError, match="holds the skipped steps 3, but not 4"):
        read_step(run, 4)
    fault = run / "skipped" / "3" / "fault.json"
    fault.write_text(json.dumps({"step": 3}))
    with pytest.raises(UserError, match="expected a whole skipped step, but it cannot be read"):
        read_step(run, 3)
    with pytest.raises(UserError, match="expected the weights of the skipped step, but there is no such folder"):
        read_state(run / "skipped" / "state-1", state())


def test_steps_are_counted_over_a_restart():
    skips = Skips().add(5).add(6)
    assert (skips.total, skips.in_a_row) == (2, 2)
    assert skips.add(8).in_a_row == 1 and skips.add(8).total == 3
    for step, in_a_row in ((6, 2), (7, 0)):
        again = skips_of({"step": step, **skips.facts(step)})
        assert again.total == 2 and again.add(step + 1).in_a_row == in_a_row + 1
    assert skips_of({}) == Skips() and skips_of({"step": 9}).add(10) == Skips(1, 1, 10)
