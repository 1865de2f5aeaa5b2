"""TensorBoard's files of a run: scalars, written here and now, so that a disk that is full fails where it is seen.

TensorBoard's own writer writes in a thread, whose failure is a traceback on the console. A resumed run does not write
its steps anew: it cuts the files off behind its checkpoint, and starts another. A TensorBoard that is looking on
learns of it by the event for restarts (`SessionLog.START`, with the first step that no longer counts).

A file is a sequence of records: u64 length (little-endian), u32 checksum of it, an `Event`, u32 checksum of that.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME
from tensorboard.summary.writer.record_writer import RecordWriter

PATTERN = "events.out.tfevents.*"
MOST_LINES = 1000  # that TensorBoard shows of a curve, unless told otherwise
HEADER, FOOTER = 12, 4  # bytes of a record around its event
NOT_SCALARS = ("step", "time")  # of a line

_SCALAR = summary_pb2.SummaryMetadata(
    plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME),
    data_class=summary_pb2.DataClass.DATA_CLASS_SCALAR,
)


class TensorBoardFile:
    """A new file of events in the folder, after those that are there. Raises OSError, as all its methods do."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """`first_step`: what the files before this one hold of it and of later steps no longer counts."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _free_name(folder).open("xb", buffering=0)
        self._records = RecordWriter(self._file)
        now = time.time()
        self._write(event_pb2.Event(wall_time=now, file_version="brain.Event:2"))
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=now, step=first_step, session_log=restart))
        self._described: set[str] = set()  # metrics that the file has described: once is enough

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line of metrics, but for its nulls; it is the system's on return."""
        event = event_pb2.Event(wall_time=line["time"], step=line["step"])
        for name, value in line.items():
            if name not in NOT_SCALARS and isinstance(value, int | float):
                scalar = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[value])
                scalar.tensor_shape.SetInParent()
                event.summary.value.add(tag=name, tensor=scalar, metadata=None if name in self._described else _SCALAR)
                self._described.add(name)
        self._write(event)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: event_pb2.Event) -> None:
        self._records.write(event.SerializeToString())


def open_tensorboard(folder: Path, *, resume_step: int, lines: Iterable[Mapping[str, Any]]) -> TensorBoardFile:
    """Start the file of a run that resumes from a step (0: a new run, whose folder loses the files of earlier ones).

    Args:
      lines: the run's metrics so far. Where there are no files, they are drawn first; of more than `MOST_LINES` lines
        without an evaluation, evenly spread ones.
    Raises:
      OSError: the folder cannot be written.
    """
    if resume_step == 0:
        for old in folder.glob(PATTERN):
            old.unlink()
    for file in folder.glob(PATTERN):
        _cut_after(file, resume_step)
    anew = not any(folder.glob(PATTERN))
    writer = TensorBoardFile(folder, first_step=resume_step + 1 if resume_step else 0)
    if anew and resume_step:
        for line in _thinned(lines, steps=resume_step):
            writer.write(line)
    return writer


def _cut_after(path: Path, step: int) -> None:
    """Cut a file off before the first event of a later step, or one that is torn."""
    with path.open("r+b", buffering=1 << 20) as file:
        size, place = os.fstat(file.fileno()).st_size, 0
        while place + HEADER <= size:
            start = file.read(HEADER + 20)
            end = place + HEADER + int.from_bytes(start[:8], "little") + FOOTER
            if end > size or _step(start[HEADER:]) > step:
                break
            place = file.seek(end)
        if place < size:
            file.truncate(place)


def _step(event: bytes) -> int:
    """The step of a serialized event, from its first bytes: its fields are in order, wall_time (1) and step (2)."""
    place = 9 if event[:1] == b"\x09" else 0
    if event[place : place + 1] != b"\x10":
        return 0
    step = 0
    for i, byte in enumerate(event[place + 1 :]):  # 7 bits each, the lowest first
        step |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            break
    return step


def _thinned(lines: Iterable[Mapping[str, Any]], *, steps: int) -> Iterator[Mapping[str, Any]]:
    """Lines at evenly spread steps, of at most `MOST_LINES` or so, and all evaluations."""
    due, every = 0.0, steps / MOST_LINES
    for line in lines:
        evaluation = any(name.startswith("eval/") for name in line)
        if isinstance(line.get("time"), int | float) and (evaluation or line["step"] >= due):
            yield line
            due = due if evaluation else line["step"] + every


def _free_name(folder: Path) -> Path:
    """A name after all that are there: TensorBoard reads the files of a folder in the order of their names."""
    second = int(time.time())
    for old in folder.glob(PATTERN):
        stamp = old.name.split(".")[3]
        if stamp.isdigit() and int(stamp) < 10**10:
            second = max(second, int(stamp) + 1)
    return folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
