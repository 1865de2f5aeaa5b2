"""A disk that fills up, a folder that vanishes: one message, nothing destroyed, the same result after a second call."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("full_disk.py")
OWN_DISK = "mount -t tmpfs -o size=40m tmpfs disk"

FULL = "No space left on device"
STOP = {  # command:file:its n-th opening or line:what happens then -> what the message says
    "train:metrics.jsonl+line:3:full": f"error: cannot write disk/run/metrics.jsonl ({FULL}): make room there",
    "train:completions.jsonl+line:2:full": f"error: cannot write disk/run/completions.jsonl ({FULL}): make room there",
    "train:eval.jsonl+line:2:full": f"error: cannot write disk/run/eval.jsonl ({FULL}): make room there",
    "train:changes.changes.jsonl+line:1:full": f"error: cannot write disk/run/changes.jsonl ({FULL}): make room there",
    "train:config.yaml.writing:1:full": f"error: cannot write the configuration to disk/run/config.yaml ({FULL})",
    "train:final.writing:1:full": f"disk/run/final ({FULL}): make room there and repeat the command, which resumes",
    "train:metrics.jsonl+line:4:ro": "error: --output-dir disk/run can no longer be written (read-only file system",
    "train:metrics.jsonl+line:4:moved": "error: --output-dir disk/run is gone: it was moved or removed while the run",
    "train:metrics.jsonl+line:4:gone": "error: --output-dir disk/run is gone: it was moved or removed while the run",
    "sft:check.json.writing:1:full": f"error: cannot write disk/run/check.json ({FULL}): make room there",
    "generate:out.jsonl.partial+line:2:full": f"error: cannot write --out disk/out.jsonl ({FULL}): make room there",
    "generate:out.jsonl.writing:1:full": f"error: cannot write --out disk/out.jsonl ({FULL}): make room there",
    "evaluate:out.summary.json.writing:1:full": f"cannot write the summary disk/out.summary.json ({FULL}): make room",
    "score:out.jsonl.writing:1:full": f"error: cannot write --out disk/out.jsonl ({FULL}): make room there",
}
GO_ON = {  # that for which no run stops
    "train:curves.png.writing:1:full": f"WARNING curves.png was not drawn: cannot write disk/run/curves.png ({FULL})",
    "train:tensorboard/events:1:blip": f"WARNING TensorBoard cannot be written ({FULL}): going on without",
    "train:training.log+line:1:blip": f"WARNING disk/run/logs/training.log cannot be written ({FULL}): going on",
}


IN_SHORT = (
    *("train:metrics.jsonl+line:3:full", "train:final.writing:1:full", "train:metrics.jsonl+line:4:moved"),
    "train:tensorboard/events:1:blip",
)


def cases(table: dict[str, str]) -> list:
    """All of a table; those that `make test` leaves to `make test-faults` are marked."""
    return [case if case in IN_SHORT else pytest.param(case, marks=pytest.mark.faults) for case in table]


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory) -> dict[str, dict]:
    """case -> what happened, for all cases that are tested."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]
    folder = tmp_path_factory.mktemp("own")
    (folder / "disk").mkdir()

    def run(line: str) -> subprocess.CompletedProcess:
        return subprocess.run(["unshare", "-rm", "sh", "-c", line], cwd=folder, capture_output=True, text=True)

    try:
        if run(OWN_DISK).returncode:
            pytest.skip("this machine lets nobody mount a file system of their own")
    except FileNotFoundError:
        pytest.skip("no unshare here")
    done = run(f"{OWN_DISK} && exec {shlex.join([sys.executable, str(SCRIPT), 'disk', *chosen])}")
    assert done.returncode == 0 and done.stderr == "", done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["case"]: each for each in found}


@pytest.mark.parametrize("case", cases(STOP))
def test_it_stops_with_one_message_and_the_second_call_finishes_the_work(outcomes, case):
    outcome = outcomes[case]
    assert outcome["happened"] and outcome["first"]["code"] == 2, outcome
    (message,) = [line for line in outcome["first"]["said"].splitlines() if "error:" in line]
    assert STOP[case] in message and "repeat the command" in message
    assert outcome["first"]["said"].count(FULL) <= 2 and "Traceback" not in outcome["first"]["said"]
    assert outcome["second"]["code"] == 0, outcome["second"]
    assert outcome["same"], outcome["second"]
    assert outcome["hidden"] == []


@pytest.mark.parametrize("case", cases(GO_ON))
def test_it_goes_on_with_one_warning(outcomes, case):
    outcome = outcomes[case]
    assert outcome["happened"] and outcome["first"]["code"] == 0, outcome
    (warning,) = [line for line in outcome["first"]["said"].splitlines() if FULL in line]
    assert warning.startswith(GO_ON[case])
    assert outcome["same"] and "Traceback" not in outcome["first"]["said"]
