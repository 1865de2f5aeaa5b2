"""What saving costs a step, and whether a run that is killed and resumed repeats its undisturbed twin bit for bit.

    python benchmarks/kill_and_resume.py --work /tmp/kill --layers 4 -- --memory.moments bfloat16
    python benchmarks/kill_and_resume.py --work /tmp/tiny --layers 0 --prompt 40 -- --preset tiny --save-steps 2

Layers of Qwen2.5-7B's shape with random weights (0: the package's tiny teacher), the preset mono85 with the native
sampler, and the flags after `--`. The first run is left alone. The second one, of the same flags, gets SIGKILL in the
middle of a step and in the middle of a save, then SIGTERM, and is resumed each time. Prints steps with and without a
save beside them, GB/s, and whether exported weights, metrics and evaluations are equal; exit code 1 if they are not.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tyro
from common import TINY, make_model, print_figures, write_rows

from rlt_jax.data import ChatFormat, load_tokenizer
from rlt_jax.errors import run_command

# what differs between runs
TIMED = ("seconds/", "tokens_per_second/", "mfu", "memory/", "checkpoint/", "time", "compilations")


def main(
    flags: tyro.conf.Positional[tuple[str, ...]],
    work: Path = Path("runs/kill_and_resume"),
    layers: int = 4,
    prompt: int = 1024,
    steps: int = 6,
    save_steps: int = 2,
    kill: bool = True,
) -> None:
    """Measure.

    Args:
      flags: of `python -m rlt_jax.train`.
      work: folder for model, data and runs.
      layers: of the model; 0: the tiny teacher.
      prompt: tokens of every prompt.
      steps: of each run.
      save_steps: steps between two checkpoints.
      kill: run the twin, too.
    """
    work.mkdir(parents=True, exist_ok=True)
    model = TINY if layers == 0 else work / f"random-{layers}-layers"
    if not model.is_dir():  # in a process of its own, as JAX keeps what it takes of the GPU
        subprocess.run([sys.executable, __file__, "--make-model", str(model), str(layers)], check=True)
    student = TINY.parent / "student" if layers == 0 else model
    data = work / f"rows-{prompt}.jsonl"
    write_rows(data, ChatFormat(load_tokenizer(str(model))), prompt, 64)
    command = [sys.executable, "-m", "rlt_jax.train", *(() if "--preset" in flags else ("--preset", "mono85"))]
    command += ["--teacher", str(model), "--student", str(student), "--data.path", str(data), "--data.eval-rows", "0"]
    command += ["--eval-steps", "0", "--sampler.kind", "native", "--max-steps", str(steps)]
    command += ["--save-steps", str(save_steps), "--checkpoint.keep", "1", "--logging-steps", "1", *flags]

    started = time.perf_counter()
    alone = run(command, work / "alone")
    figures: dict[str, object] = {"undisturbed run, s": time.perf_counter() - started}
    print(json.dumps(alone["steps"][-1]), flush=True)
    figures |= cost_of_saving(alone["steps"], save_steps)
    figures["checkpoint on disk, GB"] = size_gb(newest_checkpoint(work / "alone"))
    if not kill:
        print_figures(figures)
        return
    shutil.rmtree(work / "alone")  # there may be no room for two

    folder, kills = work / "killed", 0
    shutil.rmtree(folder, ignore_errors=True)
    for name, is_time, number in (
        ("in a step", lambda: steps_done(folder) >= save_steps + 1, signal.SIGKILL),
        ("in a save", lambda: any((folder / "checkpoints").glob(".*writing*")), signal.SIGKILL),
        ("SIGTERM", lambda: steps_done(folder) >= steps - 1, signal.SIGTERM),
    ):
        started = time.perf_counter()
        code = interrupt(command, folder, is_time, number)
        figures[f"{name}: exit code after s"] = f"{code} after {time.perf_counter() - started:.1f}"
        kills += code != 0
    killed = run(command, folder, fresh=False)
    figures["interruptions"] = kills
    equal = {name: alone[name] == killed[name] for name in ("weights", "metrics")}
    figures |= {f"equal {name}": value for name, value in equal.items()}
    print_figures(figures)
    if not all(equal.values()):
        raise SystemExit(1)


def run(command: list[str], folder: Path, *, fresh: bool = True) -> dict:
    """Run to the end; what it leaves, for comparison."""
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if subprocess.run([*command, "--output-dir", str(folder)]).returncode:
        raise SystemExit(1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    same = [{name: value for name, value in line.items() if not name.startswith(TIMED)} for line in lines]
    weights = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / "final").glob("*.safetensors"))
    }
    return {"steps": lines, "metrics": same, "weights": weights}


def interrupt(command: list[str], folder: Path, is_time: Callable[[], bool], number: int) -> int:
    """Start, send the signal half a second after the run has begun and it is time, and wait for the end; the exit
    code."""
    began, metrics = time.time(), folder / "metrics.jsonl"
    with subprocess.Popen([*command, "--output-dir", str(folder)]) as process:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_mtime > began and is_time()):
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(number)
        return process.wait()


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count('"seconds/step"') if file.exists() else 0


def newest_checkpoint(folder: Path) -> Path:
    return max((path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))


def size_gb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


def cost_of_saving(lines: list[dict], save_steps: int) -> dict[str, object]:
    """Seconds of the steps during which a checkpoint was written, and of the others; both without the first."""
    beside = [line["seconds/step"] for line in lines[2:] if (line["step"] - 1) % save_steps == 0]
    alone = [line["seconds/step"] for line in lines[2:] if (line["step"] - 1) % save_steps]
    figures: dict[str, object] = {
        "steps beside a save, s": ", ".join(f"{seconds:.2f}" for seconds in beside),
        "other steps, s": ", ".join(f"{seconds:.2f}" for seconds in alone),
    }
    saves = [line for line in lines if line.get("checkpoint/seconds")]
    if saves:
        figures["held up, s"] = ", ".join(f"{line.get('seconds/save', 0):.2f}" for line in saves)
        figures["save, s"] = ", ".join(f"{line['checkpoint/seconds']:.2f}" for line in saves)
        figures["save, GB"] = saves[-1]["checkpoint/gb"]
        figures["save, GB/s"] = saves[-1]["checkpoint/gb"] / saves[-1]["checkpoint/seconds"]
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make-model"]:
        make_model(Path(sys.argv[2]), layers=int(sys.argv[3]))
    else:
        run_command(lambda: tyro.cli(main))
