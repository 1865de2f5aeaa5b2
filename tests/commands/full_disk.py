"""Commands on a disk that fills up, on a folder that vanishes: run by test_full_disk.py on a file system of its own.

    unshare -rm sh -c 'mount -t tmpfs -o size=40m tmpfs DIR && exec python full_disk.py DIR CASE...'

All cases run in this one process, so that nothing is compiled twice; each calls the command's `main`, as `python -m`
does. Prints a JSON object per case: what happened at the first call, and whether a second one finished the work.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from comparing import without_times  # beside this program

from rlt_jax import disk, evaluate, generate, score, sft, train

TINY = Path(train.__file__).parent / "assets" / "tiny"
SMALL = (
    *("--preset", "tiny", "--train-batch-size", "4", "--num-generations", "2", "--per-device-train-batch-size", "4"),
    *("--score-batch-size", "4", "--max-completion-length", "8", "--data.eval-rows", "2", "--eval-steps", "2"),
    *("--save-steps", "2", "--max-steps", "4", "--log.sample-probability", "1.0", "--learning-rate", "1e-3"),
    *("--checkpoint.keep", "1"),
)
SFT = (
    *("--target", "teacher", "--model", TINY / "teacher", "--data.path", TINY / "train.jsonl", "--max-steps", "2"),
    *("--train-batch-size", "2", "--per-device-train-batch-size", "2", "--save-steps", "1"),
)
GENERATE = (
    *("--teacher", TINY / "teacher", "--rows-per-chunk", "2"),
    *("--max-completion-length", "8", "--on-unfinished", "keep", "--min-usable", "0"),
)
SCORE = ("--teacher", TINY / "teacher", "--student", TINY / "student", "--score-batch-size", "4")
EVALUATE = (
    *("--model", TINY / "student", "--questions-per-chunk", "2", "--max-completion-length", "8"),
    *("--data.answer-column", "solution"),
)


class Moment:
    """Calls `act` once, at the n-th time that a file with this in its name is opened, or gets a line."""

    def __init__(self) -> None:
        self.set("", 0, lambda: None)
        append = disk.LineFile.append

        def watched(file: disk.LineFile, lines: bytes, *, synced: bool = False) -> None:
            self.seen(f"{file.path}+line")
            append(file, lines, synced=synced)

        disk.LineFile.append = watched
        sys.addaudithook(self._opened)

    def set(self, name: str, count: int, act: Callable[[], object]) -> None:
        self.name, self.left, self.act = name, count, act
        self.end: Callable[[], object] | None = None

    def end_with(self, act: Callable[[], object]) -> None:
        """Call `act` at the next opening of another file, or its next line."""
        self.end = act

    def _opened(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            self.seen(os.fsdecode(arguments[0]))

    def seen(self, name: str) -> None:
        if self.end is not None and self.name.removesuffix("+line") not in name:
            end, self.end = self.end, None
            end()
        if self.left and self.name in name:
            self.left -= 1
            if not self.left:
                self.act()


def fill(disk_folder: Path) -> Path:
    """Leave no free byte."""
    filler = disk_folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65536)
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")
    return filler


def mount_read_only(folder: Path) -> None:
    """As a disk with errors becomes for whoever opens files now; those that are open stay so."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def call(module, *flags: object) -> dict:
    """A command: its exit code, what it said, what it warned of."""
    sys.argv = [module.__name__, *map(str, flags)]
    out, code = io.StringIO(), 0
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = out
    try:
        module.main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException as error:  # a traceback, where a user would see it
        code = f"{type(error).__name__}: {error}"
    finally:
        sys.stdout, sys.stderr = before
    return {"code": code, "said": out.getvalue()}


def records(path: Path) -> list[dict] | None:
    if not path.exists():
        return None
    return without_times(json.loads(line) for line in path.read_text().splitlines())


def result(folder: Path) -> dict:
    """What a run computed."""
    weights = folder / "final" / "model.safetensors"
    return {name: records(folder / f"{name}.jsonl") for name in ("metrics", "completions", "eval")} | {
        "weights": weights.read_bytes() if weights.exists() else None
    }


def main(root: Path, cases: list[str]) -> None:
    warnings.simplefilter("ignore")
    moment, run, out, rows = Moment(), root / "run", root / "out.jsonl", Path("rows.jsonl").absolute()
    rows.write_text("".join((TINY / "eval.jsonl").read_text().splitlines(keepends=True)[:4]))
    explained = rows.with_name("explained.jsonl")
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    explained.write_text("".join(json.dumps({**line, "explanation": "So."}) + "\n" for line in lines))
    commands = {
        "train": (train, (*SMALL, "--output-dir", run)),
        "sft": (sft, (*SFT, "--output-dir", run)),
        "generate": (generate, (*GENERATE, "--data.path", rows, "--out", out)),
        "score": (score, (*SCORE, "--data", explained, "--out", out)),
        "evaluate": (evaluate, (*EVALUATE, "--data.path", rows, "--out", out)),
    }
    moved = root / "moved"
    acts: dict[str, Callable[[], object]] = {
        "full": lambda: fill(root),
        "blip": lambda: moment.end_with(fill(root).unlink),
        "ro": lambda: mount_read_only(run),
        "moved": lambda: run.rename(moved),
        "gone": lambda: shutil.rmtree(run),
    }
    undisturbed: dict[str, object] = {}

    def outcome() -> object:
        return out.read_bytes() if out.exists() else result(run)

    def clean() -> None:
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    for case in cases:
        name, what, count, act = case.split(":")
        module, flags = commands[name]
        if name not in undisturbed:
            first = call(module, *flags)
            assert first["code"] == 0, first
            undisturbed[name] = outcome()
            clean()
        if what.startswith("changes"):
            call(module, *flags, "--max-steps", 2)
            flags = (*flags, "--optimizer.max-grad-norm", 77.0)
        moment.set(what.removeprefix("changes."), int(count), acts[act])
        first = call(module, *flags)
        happened = moment.left == 0
        moment.set("", 0, lambda: None)
        left = sorted(path.name for path in root.iterdir())
        if act == "ro":
            subprocess.run(["umount", str(run)], check=True)
        if act == "moved" and moved.exists():
            assert not run.exists(), "a second folder was made"
            moved.rename(run)
        (root / "filler").unlink(missing_ok=True)
        second = {"code": 0, "said": ""} if first["code"] == 0 else call(module, *flags)
        same = what.startswith("changes") or outcome() == undisturbed[name]
        hidden = [str(path.relative_to(root)) for path in root.rglob(".*")]
        print(
            json.dumps(
                {"case": case, "happened": happened, "first": first, "second": second, "same": same, "left": left}
                | {"hidden": hidden}
            ),
            flush=True,
        )
        clean()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
