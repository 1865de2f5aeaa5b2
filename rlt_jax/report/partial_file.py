"""Resumable work in chunks: finished chunks are saved in a partial file, which becomes the result at the end.

The partial file, OUT.partial, is JSON Lines: first the settings that decide the result, then one line per chunk. An
incomplete last line, left by a killed process, is dropped and its chunk computed again. From a line on that is damaged
otherwise, the chunks are computed again, too, and what the file held from there is kept in OUT.partial.damaged-1.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from rlt_jax import stops
from rlt_jax.disk import LineFile, cannot_write
from rlt_jax.errors import UserError
from rlt_jax.report.json_text import json_line, json_text, parsed_json
from rlt_jax.report.owner import sole_writer
from rlt_jax.report.step_lines import keep_aside
from rlt_jax.report.whole_file import whole_file

Record = dict[str, Any]

log = logging.getLogger("rlt_jax.report")


class Chunk(NamedTuple):
    """The result of one chunk of work."""

    records: Sequence[Record]  # lines of the result
    counts: Mapping[str, int]  # of events, to be summed over the chunks


def fingerprint(parts: Iterable[object]) -> str:
    """A short hash of the parts' `repr`, for settings that are too long to be saved."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


class PartialFile:
    """The finished chunks. Created by `open_partial`."""

    def __init__(self, file: LineFile, out: Path, done: int) -> None:
        self._file = file
        self._out = out
        self.done = done  # chunks

    def add(self, chunk: Chunk) -> None:
        """Append a chunk; on return it is on disk."""
        with stops.held():
            with _writing(self._out):
                self._file.append(json_line({"records": chunk.records, "counts": chunk.counts}).encode(), synced=True)
            self.done += 1

    def read(self) -> Iterator[Chunk]:
        """Read the chunks one at a time: they may not fit into memory together."""
        with self._file.path.open("rb") as file:
            next(file)
            for line in file:
                yield Chunk(**parsed_json(line))

    def counts(self) -> Counter[str]:
        """The counts, summed over all chunks."""
        total: Counter[str] = Counter()
        for chunk in self.read():
            total.update(chunk.counts)
        return total

    def finish(self) -> None:
        """Write the records of all chunks to OUT in one atomic move, and remove the partial file."""
        with stops.held():
            with whole_file(self._out, "--out") as temporary, temporary.open("wb") as file:
                for chunk in self.read():
                    file.writelines(json_line(record).encode() for record in chunk.records)
            with suppress(OSError):  # the result is there; a next call says that it is
                self._file.path.unlink()


@contextmanager
def open_partial(out: Path, settings: Mapping[str, Any]) -> Iterator[PartialFile]:
    """Start OUT.partial or resume it. If no chunk is finished, neither the file nor new folders are left behind.

    Args:
      out: the file that the chunks become.
      settings: nested dicts of plain values; everything that decides how the work is split
        into chunks and what they contain.
    Raises:
      UserError: OUT exists, cannot be written, is being written by another process, or was started with other settings.
    """
    path = out.with_name(out.name + ".partial")
    done = 0

    def left() -> str:
        if out.exists():
            return f"{out} is complete"
        return f"{done} chunks are saved, the same command resumes" if done else "the same command starts again"

    with stops.reported(left), sole_writer(out, "--out"):
        if out.exists():
            raise UserError(f"--out {out} exists: choose another file, or delete it")
        with _writing(out):
            done = _resume(path, settings := parsed_json(json_text(settings)))
            file = LineFile(path)
        partial = PartialFile(file, out, done)
        with file:
            try:
                with _writing(out):
                    if not path.stat().st_size:
                        file.append(json_line(settings).encode(), synced=True)
                yield partial
            finally:
                done = partial.done
                if done == 0:
                    with suppress(OSError):
                        path.unlink()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(f"--out {out}", error, otherwise="choose another file") from error


def _resume(path: Path, settings: Record) -> int:
    """Truncate the file, if there is one, to its last whole chunk; returns the number of chunks in it."""
    if not path.exists():
        return 0
    lines, end = 0, 0
    with path.open("r+b") as file:
        for line in file:
            record = _parse(line)
            if record is None or (lines and not _is_chunk(record)):
                break
            if not lines and (differences := list(_differences(record, settings))):
                raise UserError(
                    f"{path} was started with other settings: {'; '.join(differences)}: use those to resume, or "
                    "delete the file to start over"
                )
            lines += 1
            end += len(line)
        file.seek(end)
        if any(line.endswith(b"\n") for line in file):  # more than a torn last line
            file.seek(end)
            keep_aside(path, file)
            log.warning("%s: resuming from the %d chunks before the damage", path, max(lines - 1, 0))
        file.truncate(end)
    return max(lines - 1, 0)


def _parse(line: bytes) -> Record | None:
    """The object in a line; None if the line is incomplete or damaged."""
    try:
        record = parsed_json(line.decode("utf-8")) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_chunk(record: Record) -> bool:
    records, counts = record.get("records"), record.get("counts")
    return (
        record.keys() == {"records", "counts"}
        and isinstance(records, list)
        and all(isinstance(line, dict) for line in records)
        and isinstance(counts, dict)
        and all(isinstance(count, int) for count in counts.values())
    )


def _differences(old: Record, new: Record, section: str = "") -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{section}{name}.")
        elif before != now:
            yield f"{section}{name}={before} (now {now})"
