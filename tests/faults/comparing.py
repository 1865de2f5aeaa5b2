"""Whether two run folders hold the same run, bit for bit, and nothing that does not belong there."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.commands import comparing as commands

RECORDS = ("metrics.jsonl", "eval.jsonl", "completions.jsonl")  # one JSON object a line
TEMPORARY = re.compile(r"tmp|writing|replaced|partial|(^|/)\.")


def lines(path: Path) -> list[dict]:
    """Records of a file; of a torn or doubled line, too, nothing is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [_record(line) for line in text.split("\n") if line]


def without_times(records: Iterable[dict]) -> list[dict]:
    return commands.without_times(records, also=("engine_restarts",))


def weights(folder: Path) -> dict[str, bytes]:
    """File name -> bytes of the exported weights."""
    return {path.name: path.read_bytes() for path in sorted((folder / "final").glob("*.safetensors"))}


def differences(ours: Path, theirs: Path, *, damaged: Sequence[str] = ()) -> list[str]:
    """What of a run differs from the undisturbed one; [] if nothing does.

    Args:
      damaged: files of records that were damaged on purpose while the run was interrupted, which are not compared.
    """
    found = []
    if not weights(theirs) or weights(ours) != weights(theirs):
        found.append("final/*.safetensors")
    for name in RECORDS:
        a, b = (without_times(lines(folder / name)) for folder in (ours, theirs))
        if name not in damaged and a != b:
            found.append(f"{name}: {_first_difference(a, b)}")
    found += [f"final/{name}" for name in _different_files(ours / "final", theirs / "final")]
    return found


def leftovers(ours: Path, theirs: Path) -> list[str]:
    """Files and folders of a finished run that the undisturbed one has not got, or lacks."""
    found = [
        path.relative_to(ours).as_posix()
        for path in ours.rglob("*")
        if TEMPORARY.search(path.relative_to(ours).as_posix()) and "damaged-" not in path.as_posix()
    ]
    a, b = ({path.name for path in folder.iterdir()} for folder in (ours, theirs))
    found += sorted(name for name in a ^ b if not name.startswith("."))
    for part in ("checkpoints", "rollouts"):
        a, b = ({path.name for path in (folder / part).glob("*")} for folder in (ours, theirs))
        found += sorted(f"{part}/{name}" for name in a ^ b if not name.startswith((".", "damaged-")))
    return sorted(set(found))


def tensorboard_steps(folder: Path, tag: str) -> list[int]:
    """Steps for which TensorBoard would show a value, in the order of its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return [event.step for event in events.Tensors(tag)]


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that have got their name, oldest first."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit())


def _record(line: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {"not JSON": line}


def _first_difference(ours: list[dict], theirs: list[dict]) -> str:
    if len(ours) != len(theirs):
        return f"steps {[r.get('step') for r in ours]}, expected {[r.get('step') for r in theirs]}"
    number, a, b = next((i, a, b) for i, (a, b) in enumerate(zip(ours, theirs), start=1) if a != b)
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return f"line {number}: " + ", ".join(f"{name} {a.get(name)!r}, expected {b.get(name)!r}" for name in names[:3])


def _different_files(ours: Path, theirs: Path) -> list[str]:
    names = {path.name for folder in (ours, theirs) for path in folder.glob("*") if path.suffix != ".safetensors"}
    return sorted(name for name in names if _bytes(ours / name) != _bytes(theirs / name))


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
