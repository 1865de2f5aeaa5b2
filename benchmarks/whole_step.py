"""Run whole training steps at full length through the real command: seconds and memory of GPU and host, by phase.

    python benchmarks/whole_step.py --work /tmp/mono85 -- --train-batch-size 24 --memory.moments bfloat16
    python benchmarks/whole_step.py --work /tmp/tiny --model rlt_jax/assets/tiny/teacher -- --preset tiny --max-steps 2

Makes a folder with random weights of Qwen2.5-7B's shape (no download; with a small tokenizer) and questions whose
prompts have exactly --prompt tokens, then runs `python -m rlt_jax.train --preset mono85` on them with the flags after
`--`. A second run in the same --work folder reuses both. NVML reads the GPU every 10 ms from outside, from the
command's start to its end. Prints the steps as JSON, one per line, and a table at the end.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import tyro
from common import make_model, write_rows

from rlt_jax.data import ChatFormat, load_tokenizer
from rlt_jax.device.monitor import gpu_memory_reader
from rlt_jax.errors import run_command


def main(
    flags: tyro.conf.Positional[tuple[str, ...]],
    work: Path = Path("runs/whole_step"),
    model: str = "7b",
    prompt: int = 6144,
    rows: int = 8,
    name: str = "run",
) -> None:
    """Measure.

    Args:
      flags: of `python -m rlt_jax.train`, in addition to the preset mono85.
      work: folder for model, data and runs; takes 16 GB for 7b.
      model: "7b" for random weights of that shape, or a model folder.
      prompt: tokens of every prompt.
      rows: questions.
      name: of the run folder.
    """
    work.mkdir(parents=True, exist_ok=True)
    folder = Path(model)
    if model == "7b":
        folder = work / "random-7b"
        if not folder.is_dir():
            started = time.perf_counter()
            subprocess.run([sys.executable, __file__, "--make-model", str(folder)], check=True)
            print(json.dumps({"made_model_s": time.perf_counter() - started}), flush=True)
    data = work / f"rows-{prompt}.jsonl"
    if not data.is_file():
        write_rows(data, ChatFormat(load_tokenizer(str(folder))), prompt, rows)
    run = work / name
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "rlt_jax.train", *(() if "--preset" in flags else ("--preset", "mono85"))]
    command += ["--teacher", str(folder)]
    command += ["--student", str(folder), "--data.path", str(data), "--data.eval-rows", "0", "--eval-steps", "0"]
    command += ["--max-prompt-length", str(prompt), "--max-steps", "1", "--output-dir", str(run)]
    command += ["--save-steps", "0", "--checkpoint.no-at-end", "--checkpoint.no-export", *flags]
    print(" ".join(command[1:]), flush=True)
    peaks = {"gpu": 0.0, "host": 0.0}
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(ended, peaks))
    started = time.perf_counter()
    watcher.start()
    try:
        subprocess.run(command, check=True)
    finally:
        ended.set()
        watcher.join()
    whole = {"whole_run_s": time.perf_counter() - started, "gpu_peak_gb": peaks["gpu"], "host_peak_gb": peaks["host"]}
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "seconds/step" in step]
    for step in steps:
        print(json.dumps({key: value for key, value in step.items() if not key.startswith("component/")}), flush=True)
    print(json.dumps(whole))
    phases = [key.removeprefix("seconds/") for key in steps[-1] if key.startswith("seconds/")]
    print("\n| phase | first step, s | last step, s | GPU, last step, GB (NVML) |\n|---|---|---|---|")
    for phase in phases:
        peak = steps[-1].get(f"memory/peak_gpu_gb/{phase}", float("nan"))
        first, last = steps[0][f"seconds/{phase}"], steps[-1][f"seconds/{phase}"]
        print(f"| {phase} | {first:.2f} | {last:.2f} | {peak:.2f} |")
    print(f"| whole run | {whole['whole_run_s']:.1f} | | {peaks['gpu']:.2f}; host {peaks['host']:.1f} |")


def watch(ended: threading.Event, peaks: dict[str, float]) -> None:
    """Record the peak use of GPU and host, GB, until the event is set."""
    read = gpu_memory_reader() or (lambda: float("nan"))
    before = psutil.virtual_memory().used
    while not ended.wait(0.01):
        peaks["gpu"] = max(peaks["gpu"], read())
        peaks["host"] = max(peaks["host"], (psutil.virtual_memory().used - before) / 1e9)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make-model"]:
        make_model(Path(sys.argv[2]))
    else:
        run_command(lambda: tyro.cli(main))
