"""Seconds to resume a run folder whose files hold many steps: `python benchmarks/resume_files.py --steps 100000`.

Makes a folder such as a run of that many steps leaves (about 40 metrics a line, a completion a step, an evaluation of
24 prompts every 1000 steps, TensorBoard's files), and measures what a start does with it before its first step: checks
the files, drops what lies behind the checkpoint, opens them for writing. Then curves.png, which the end draws.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rlt_jax.report.curves import draw_curves
from rlt_jax.report.json_text import json_line
from rlt_jax.report.step_lines import keep_until
from rlt_jax.report.writer import COMPLETIONS_FILE, METRICS_FILE, open_writer
from rlt_jax.runs.evaluation import EVAL_FILE
from rlt_jax.runs.session import check_files

NAMES = (
    *("reward", "reward_std", "zero_spread_share", "loss", "kl", "entropy", "grad_norm", "learning_rate"),
    *("completion_length/min", "completion_length/mean", "completion_length/max", "cut_off_share", "match_rate"),
    *("copy_rate", "repeat_rate", "trace_copy_rate", "compilations", "memory/host_gb", "memory/gpu_gb"),
    *(f"component/{part}/{how}" for part in ("solution_logp", "thought_kl") for how in ("mean", "min", "max")),
    *(f"seconds/{phase}" for phase in ("generate", "score", "update", "sync", "step")),
    *(f"tokens_per_second/{phase}" for phase in ("generate", "score", "update")),
    *("sampler_logp_diff", "sampler_logp_diff_max", "importance_ratio", "importance_ratio_max", "importance_capped"),
    *("component/match", "component/length"),
)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the seconds that a block takes."""
    before = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {time.perf_counter() - before:.2f} s (peak of host memory so far {peak:.2f} GB)", flush=True)


def fill(folder: Path, steps: int, *, text_length: int) -> None:
    """Write the files of a run of so many steps."""
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("abcdefgh ,.\n×"), size=text_length))
    records = 24
    with (folder / METRICS_FILE).open("w") as metrics, (folder / COMPLETIONS_FILE).open("w") as completions:
        for step in range(1, steps + 1):
            values = dict(zip(NAMES, rng.normal(size=len(NAMES)).tolist()))
            metrics.write(json_line({"step": step, "time": 1.8e9 + step, **values}))
            completions.write(json_line({"step": step, "row": step % 1000, "reward": values["reward"], "text": text}))
    with (folder / EVAL_FILE).open("w") as evaluations:
        for step in range(0, steps + 1, 1000):
            evaluations.writelines(json_line({"step": step, "row": i, "reward": 0.5 * i}) for i in range(records))


def measure(folder: Path, step: int) -> None:
    """Open the files as a start from `step` does, and write one more line."""
    with timed("check_files"):
        check_files(folder)

    def opened(tensorboard: bool) -> Callable[[], None]:
        writer = open_writer(
            folder, tensorboard=tensorboard, wandb=False, wandb_project="", config={}, resume_step=step
        )
        writer.write(step + 1, {"reward": 1.0})
        return writer.close

    for tensorboard in (False, True, True):
        with timed(f"open_writer, {'with' if tensorboard else 'without'} TensorBoard"):
            close = opened(tensorboard)
        close()
    with timed("keep_until of eval.jsonl"):
        keep_until(folder / EVAL_FILE, step)
    with timed("curves.png"):
        draw_curves(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--behind", type=int, default=40, help="steps behind the checkpoint from which it resumes")
    parser.add_argument("--text-length", type=int, default=4000, help="characters of a completion")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, arguments.steps, text_length=arguments.text_length)
        sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.0f} MB" for file in sorted(folder.iterdir()))
        print(f"{arguments.steps} steps of {len(NAMES)} metrics: {sizes}", flush=True)
        measure(folder, arguments.steps - arguments.behind)


if __name__ == "__main__":
    main()
