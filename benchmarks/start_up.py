"""Time and memory of starting a run on many rows, or on a very long one, through the real commands.

    python benchmarks/start_up.py --rows 200000
    python benchmarks/start_up.py --rows 2048 --long-row-mb 10

Makes rows like those of the tiny models (each question differs), starts `rlt_jax.train --preset tiny` and `rlt_jax.sft`
on them, and stops each after its first step. Counted from the start of Python: seconds until the rows are ready and
until the first step is done, CPU seconds of the process until then, and its peak memory. The table at the end has one
line per command; what the command printed comes before it.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import psutil
import tyro

ASSETS = Path(__file__).resolve().parents[1] / "rlt_jax" / "assets" / "tiny"
COMMANDS = {
    "train": ["--preset", "tiny"],
    "sft": ["--model", str(ASSETS / "teacher"), "--target", "teacher", "--max-steps", "9"],
}


def main(rows: int = 200_000, long_row_mb: float = 0.0, commands: tuple[str, ...] = tuple(COMMANDS)) -> None:
    """Measure.

    Args:
      rows: how many.
      long_row_mb: length of the question of one more row, which is skipped; 0: no such row.
      commands: which to start.
    """
    print(
        "| command | rows ready, s | first step done, s | CPU, s | peak memory, GB |\n|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "rows.jsonl"
        write_rows(data, rows, long_row_mb)
        for command in commands:
            flags = [*COMMANDS[command], "--data.path", str(data), "--output-dir", str(Path(work) / command)]
            ready, done, cpu, peak = measure(command, flags)
            print(f"| {command} | {ready:.1f} | {done:.1f} | {cpu:.1f} | {peak:.2f} |", flush=True)


def write_rows(data: Path, count: int, long_row_mb: float) -> None:
    """`count` rows of the tiny data set, each question with a number of its own, and perhaps a long one among them."""
    source = [json.loads(line) for line in (ASSETS / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    with data.open("w", encoding="utf-8") as file:
        for number, row in enumerate(islice(cycle(source), count)):
            if number == count // 2 and long_row_mb:
                question = "What is 1" + "+1" * int(long_row_mb * 5e5) + "?"
                file.write(json.dumps({**row, "question": question}) + "\n")
            file.write(json.dumps({**row, "question": f"{row['question'][:-1]}+{number // len(source)}?"}) + "\n")


def measure(command: str, flags: list[str]) -> tuple[float, float, float, float]:
    """Seconds until the rows are ready and until the first step is done, CPU seconds and peak memory in GB until then.

    What the command prints goes to stderr, with the seconds at which it came.
    """
    started, ready = time.perf_counter(), float("nan")
    with subprocess.Popen(
        [sys.executable, "-m", f"rlt_jax.{command}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            seconds = time.perf_counter() - started
            print(f"{seconds:7.1f} {line}", end="", file=sys.stderr, flush=True)
            if "training the teacher" in line or " training examples" in line:
                ready = seconds
            if re.match(r"step +1/", line):
                times = psutil.Process(process.pid).cpu_times()
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                process.kill()
                (peak,) = (part for part in status.splitlines() if part.startswith("VmHWM:"))
                return ready, seconds, times.user + times.system, int(peak.split()[1]) * 1024 / 1e9
    raise SystemExit(f"{command} ended with exit code {process.returncode} before its first step")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
