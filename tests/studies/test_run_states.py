"""How far the runs of a study are, from small files."""

import json
from dataclasses import replace

import pytest

from rlt_jax.configs import PRESETS
from rlt_jax.studies.run_states import RunState, failure_file, record_failure, run_state, runs_markdown


@pytest.fixture
def make(tmp_path):
    """make(lines, failure): the state of a run of two steps with these lines of metrics."""

    def state(lines: list[dict] | None, failure: str | None = None) -> RunState:
        folder = tmp_path / "arm" / "seed-1"
        folder.parent.mkdir(exist_ok=True)
        if lines is not None:
            folder.mkdir()
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if failure is not None:
            record_failure(folder, failure)
        return run_state(replace(PRESETS["tiny"], max_steps=2, output_dir=str(folder)))

    return state


STEPS = [{"step": 1, "skipped_steps": 0}, {"step": 2, "skipped_steps": 0}]
LAST = {"step": 2, "eval/reward": -1.0, "eval/match_rate": 1.0}
STATES = {
    "not begun": (None, None, RunState("not begun", 0)),
    "failed at once": (None, "exit code 2 (error: no model)", RunState("failed", 0, "exit code 2 (error: no model)")),
    "failed on its way": (STEPS[:1], "exit code 2", RunState("failed", 1, "exit code 2")),
    "stopped": (STEPS[:1], None, RunState("unfinished", 1)),
    "not evaluated": (STEPS, None, RunState("unfinished", 2)),
    "finished": ([*STEPS, LAST], None, RunState("finished", 2)),
    "finished with steps that were skipped": (
        [STEPS[0], {"step": 2, "skipped_steps": 1}, LAST],
        None,
        RunState("finished", 2, "steps skipped, as numbers were NaN or infinite: 1"),
    ),
    "finished without a number": (
        [*STEPS, {**LAST, "eval/reward": None}],
        None,
        RunState("finished", 2, "not finite at the last evaluation, so left out: Reward"),
    ),
    "failed at its export": (
        [*STEPS, LAST],
        "exit code 2 (disk full)",
        RunState("finished", 2, "failed after its evaluation: exit code 2 (disk full)"),
    ),
}


@pytest.mark.parametrize(("lines", "failure", "state"), STATES.values(), ids=STATES.keys())
def test_states(make, lines, failure, state):
    assert make(lines, failure) == state


def test_a_failure_is_forgotten_when_the_run_begins_again(tmp_path):
    record_failure(tmp_path / "seed-1", "exit code 2")
    assert failure_file(tmp_path / "seed-1").read_text() == "exit code 2\n"
    record_failure(tmp_path / "seed-1", None)
    record_failure(tmp_path / "seed-1", None)
    assert list(tmp_path.iterdir()) == []


def test_what_the_report_says_of_runs():
    states = {
        "a": {1: RunState("finished", 4), 2: RunState("failed", 3, "exit code 2 (why)")},
        "b": {1: RunState("not begun", 0), 2: RunState("unfinished", 1), 3: RunState("not begun", 0)},
    }
    assert runs_markdown(states, {"a": 4, "b": 5}).splitlines()[4:] == [
        "- a, seed 2: failed at step 3 of 4: exit code 2 (why)",
        "- b, seed 2: unfinished at step 1 of 5",
        "- b, seeds 1, 3: not begun",
    ]
    assert runs_markdown({"a": {1: RunState("finished", 4)}}, {"a": 4}) == ""
