"""Does the memory of a run grow? Slopes of its memory metrics over the steps: `python benchmarks/flat_memory.py RUN`.

Theil-Sen slopes (medians of all pairwise slopes) with 95 % intervals, over the steps after the first tenth, in MB per
100 steps. Peaks of the GPU are of the phase with the highest.
"""

import json
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import theilslopes

from rlt_jax.errors import run_command


def main(run: tyro.conf.Positional[Path]) -> None:
    """Print a table.

    Args:
      run: a run folder.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "memory/host_gb" in line]
    lines = lines[len(lines) // 10 :]
    steps = np.array([line["step"] for line in lines], float)
    peaks = [max((v for k, v in line.items() if k.startswith("memory/peak_gpu_gb/")), default=np.nan) for line in lines]
    series = {
        "host, GB": [line["memory/host_gb"] for line in lines],
        "GPU now, GB": [line.get("memory/gpu_gb", np.nan) for line in lines],
        "GPU, step's peak, GB": peaks,
        "seconds/step": [line["seconds/step"] for line in lines],
    }
    print(f"{len(lines)} steps, {steps[0]:.0f} to {steps[-1]:.0f}\n")
    print("| | first | median | last | slope per 100 steps [95 %] |\n|---|---|---|---|---|")
    for name, values in series.items():
        array = np.array(values, float)
        if np.isnan(array).all():
            continue
        slope, _, low, high = theilslopes(array, steps)
        scale, unit = (1e5, "MB") if "GB" in name else (1e5, "ms")
        shown = f"{slope * scale:+.2f} [{low * scale:+.2f}, {high * scale:+.2f}] {unit}"
        print(f"| {name} | {array[0]:.3f} | {np.median(array):.3f} | {array[-1]:.3f} | {shown} |")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
