"""Files of a run with one JSON object per line, each with its step: read, and cut back to a step.

Lines are appended in the order of their steps, so a file is cut at its end, however long it is. What is cut out of a
damaged file is kept beside it, as NAME.damaged-1 (-2, ...); only a torn last line, which a killed process or a full
disk leaves, is dropped.
"""

import codecs
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rlt_jax.disk import replace_file, replacing
from rlt_jax.report.json_text import parsed_json

BLOCK = 1 << 20  # bytes read at once
START, END = b'{"step": ', b"}\n"  # of a line as we write it
CONTROL = bytes(set(range(32)) - {ord("\n")})  # bytes that JSON text has nowhere

log = logging.getLogger("rlt_jax.report")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of a file, in order; [] if there is no file. See `iter_lines`."""
    return list(iter_lines(path))


def iter_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the JSON objects of a file one by one; none if there is no file.

    A line that is not such an object (an incomplete last line of a killed run) is left out, with a warning.

    Raises:
      OSError: it cannot be read.
    """
    if not path.exists():
        return
    bad: list[int] = []
    with path.open("rb") as file:  # not text: it may hold other line separators, and bytes that are not UTF-8
        for number, line in enumerate(file, start=1):
            record = parsed_line(line)
            if record is not None:
                yield record
            elif line.strip():
                bad.append(number)
    _warn(path, bad)


def latest_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that a Writer wrote, the last one first, read from its end; none without a file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for _, line in _backwards(file, file.seek(0, os.SEEK_END)):
            if (record := parsed_line(line)) is not None:
                yield record


def parsed_line(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if it is none with a step."""
    try:
        record = parsed_json(line.decode("utf-8"))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits, nested without end
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def keep_until(path: Path, step: int) -> None:
    """Drop a file's lines after `step` (at 0, all lines), a torn last line, and damaged ones, which are kept aside.

    Raises:
      OSError: it cannot be read or written.
    """
    if not path.exists():
        return
    lines = _count_sound(path)
    if step > 0 and lines is None:
        lines = _repair(path)
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if step <= 0:  # a new run writes its own step 0, so nothing of an earlier run stays
            end, dropped, tail = 0, lines or 0, b""
        else:
            end, dropped, tail, bad = _cut(file, size, step)
            if bad:
                keep_aside(path, bad)
            if tail and parsed_line(tail) is None:
                _warn(path, [(lines or 0) + 1])
                tail = b""
        if end == size and not tail:
            return
        if dropped:
            total = lines or 0
            log.info("%s: resuming from step %d, %d of %d lines kept", path, step, total - dropped, total)
        file.truncate(end)
        if tail:  # whole but for its newline
            file.seek(end)
            file.write(tail + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _cut(file: BinaryIO, size: int, step: int) -> tuple[int, int, bytes, list[bytes]]:
    """(where the lines up to `step` end, whole lines behind, a last one up to `step` without newline, damaged ones)."""
    dropped, tail = 0, b""
    bad: list[bytes] = []
    for start, line in _backwards(file, size):
        record = parsed_line(line)
        whole = line.endswith(b"\n")
        if record is not None and record["step"] <= step:
            if whole:
                return start + len(line), dropped, tail, bad[::-1]
            tail = line
        elif whole:
            dropped += 1
            if record is None and line.strip():
                bad.append(line)
        elif record is None:
            tail = line  # torn
    return 0, dropped, tail, bad[::-1]


def _backwards(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """(place, line with its newline) of the lines before `end`, the last one first."""
    position, read, rest = end, BLOCK // 16, b""
    while position > 0:
        size = min(read, position)
        position -= size
        file.seek(position)
        rest = file.read(size) + rest
        lines = _split(rest)
        rest = lines.pop(0)  # its start may lie before
        place = position + len(rest) + sum(map(len, lines))
        for line in reversed(lines):
            place -= len(line)
            yield place, line
        read *= 2  # a line may be huge
    if rest:
        yield 0, rest


def _split(data: bytes) -> list[bytes]:
    """Lines with their newlines; only "\\n" ends one."""
    parts = [part + b"\n" for part in data.split(b"\n")]
    parts[-1] = parts[-1][:-1]
    return parts if parts[-1] else parts[:-1]


def _count_sound(path: Path) -> int | None:
    """The number of whole lines if all look as we write them, which is seen without parsing; None if any does not.

    A last line without a newline does not count.
    """
    count = 0
    parts: list[bytes] = []
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            cut = block.rfind(b"\n") + 1
            if not cut:
                parts.append(block)
                continue
            lines = b"".join([*parts, block[:cut]])
            parts = [block[cut:]]
            newlines = lines.count(b"\n")
            if not (
                lines.startswith(START)
                and lines.endswith(END)
                and newlines == lines.count(END + START) + 1
                and len(lines.translate(None, CONTROL)) == len(lines)
            ):
                return None
            try:
                decoder.decode(lines, final=True)
            except UnicodeDecodeError:
                return None
            count += newlines
    return count


def _repair(path: Path) -> int:
    """Take damaged whole lines out of a file and keep them aside; returns how many lines stay."""
    bad: list[tuple[int, bytes]] = []
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # the last one: `keep_until` sees to it
                break
            if parsed_line(line) is None:
                bad.append((number, line))
            else:
                count += 1
    if not bad:
        return count
    _warn(path, [number for number, _ in bad])
    keep_aside(path, [line for _, line in bad])
    numbers = {number for number, _ in bad}
    with replacing(path) as temporary, path.open("rb") as file, temporary.open("wb") as repaired:
        repaired.writelines(line for number, line in enumerate(file, start=1) if number not in numbers)
    return count


def keep_aside(path: Path, lines: Iterable[bytes]) -> None:
    """Write damaged lines to a new file beside theirs. Raises OSError."""
    aside = free_name(path, "damaged")
    replace_file(aside, b"".join(lines))
    log.warning("%s: what is damaged of it is kept in %s", path, aside.name)


def free_name(path: Path, word: str) -> Path:
    """The first of NAME.WORD-1, NAME.WORD-2, ... that does not exist."""
    names = (path.with_name(f"{path.name}.{word}-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _warn(path: Path, numbers: Sequence[int]) -> None:
    """Warn of lines that are left out."""
    if not numbers:
        return
    if len(numbers) == 1:
        log.warning("%s: line %d is not a JSON object with a step, left out", path, numbers[0])
    else:
        log.warning(
            "%s: %d lines (the first is line %d) are not JSON objects with a step, left out",
            path,
            len(numbers),
            numbers[0],
        )
