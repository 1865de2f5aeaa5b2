"""Damage to the files of a run folder, at seeded places."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlt_jax.report.owner import FOLDER_LOCK

Damage = Callable[[Path, np.random.Generator], str | None]
"""(file, random numbers) -> what was done; None if it cannot be done to this file."""


def flip_bit(file: Path, rng: np.random.Generator) -> str | None:
    return _patch(file, rng, 1, lambda data: bytes([data[0] ^ 1 << int(rng.integers(8))]))


def zero_block(file: Path, rng: np.random.Generator) -> str | None:
    """4 KiB that never reached the disk."""
    return _patch(file, rng, 4096, lambda data: bytes(len(data)))


def truncate(file: Path, rng: np.random.Generator) -> str | None:
    length = file.stat().st_size
    if length == 0:
        return None
    cut = int(rng.integers(length))
    os.truncate(file, cut)
    return f"cut at byte {cut} of {length}"


def empty(file: Path, rng: np.random.Generator) -> str | None:
    if file.stat().st_size == 0:
        return None
    os.truncate(file, 0)
    return "emptied"


def delete(file: Path, rng: np.random.Generator) -> str | None:
    file.unlink()
    return "deleted"


def append(file: Path, rng: np.random.Generator) -> str | None:
    with file.open("ab") as out:
        out.write(rng.bytes(int(rng.integers(1, 200))))
    return "bytes appended"


def swap(file: Path, rng: np.random.Generator) -> str | None:
    """The file of this name in the other checkpoint, or else another file of the folder, and this one change places."""
    others = [path for path in _twins(file) if path.read_bytes() != file.read_bytes()]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    aside = file.with_name(file.name + "~")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)
    return f"swapped with {other}"


def folder_instead(file: Path, rng: np.random.Generator) -> str | None:
    file.unlink()
    file.mkdir()
    return "a folder in its place"


def dangling_link(file: Path, rng: np.random.Generator) -> str | None:
    file.unlink()
    file.symlink_to("nowhere")
    return "a link to nothing in its place"


DAMAGES: tuple[Damage, ...] = (
    *(flip_bit, truncate, zero_block, swap, flip_bit, empty, delete, append, folder_instead, dangling_link),
)


def files_of(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """(files of the newest checkpoint, of the older ones, all other files), relative, without the lock."""
    newest = _newest(folder)
    parts: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FOLDER_LOCK):
        part = 0 if newest in path.parents else 1 if newest.parent in path.parents else 2
        parts[part].append(path.relative_to(folder))
    return parts


def damage_folder(folder: Path, rng: np.random.Generator) -> str:
    """Empty or delete one of the folders inside the newest checkpoint, or the whole of it."""
    newest = max(
        (path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )
    folders = [newest, *sorted(path for path in newest.rglob("*") if path.is_dir())]
    chosen = folders[int(rng.integers(len(folders)))]
    shutil.rmtree(chosen)
    if rng.random() < 0.5:
        return f"{chosen.relative_to(folder)} deleted"
    chosen.mkdir()
    return f"{chosen.relative_to(folder)} emptied"


def _newest(folder: Path) -> Path:
    """The newest checkpoint of a run folder."""
    steps = [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name))


def _patch(file: Path, rng: np.random.Generator, length: int, change: Callable[[bytes], bytes]) -> str | None:
    """Change some bytes where they make a difference; a file of zeros alone has no such place."""
    data = bytearray(file.read_bytes())
    for _ in range(20):
        if not data:
            break
        at = int(rng.integers(len(data)))
        old = bytes(data[at : at + length])
        if (new := change(old)) != old:
            data[at : at + length] = new
            file.write_bytes(data)
            return f"{len(new)} bytes changed at {at} of {len(data)}"
    return None


def _twins(file: Path) -> list[Path]:
    parts = list(file.parts)
    if "checkpoints" in parts:
        place = len(parts) - 1 - parts[::-1].index("checkpoints") + 1
        steps = [path for path in Path(*parts[:place]).iterdir() if path.name.isdigit() and path.name != parts[place]]
        found = [path for step in steps if (path := step.joinpath(*parts[place + 1 :])).is_file()]
        if found:
            return found
    return [
        path
        for path in sorted(file.parent.iterdir())
        if path.is_file() and path not in (file, file.with_name(FOLDER_LOCK))
    ]
