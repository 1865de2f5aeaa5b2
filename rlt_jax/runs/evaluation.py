"""Evaluation during training: fixed held-out prompts and seeds, so that only the weights differ between evaluations."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np

from rlt_jax.data import ChatFormat
from rlt_jax.disk import LineFile
from rlt_jax.report.folder import writing_to
from rlt_jax.report.json_text import json_line
from rlt_jax.report.paired import PairedChange, paired_change
from rlt_jax.report.step_lines import latest_lines, read_lines
from rlt_jax.report.whole_file import whole_file
from rlt_jax.report.writer import METRICS_FILE
from rlt_jax.rewards.metrics import eval_metrics
from rlt_jax.rewards.records import rollout_metrics
from rlt_jax.rewards.scorer import Scored
from rlt_jax.runs.resume import last_accepted_change
from rlt_jax.types import Completion, Prompt, Request

SOLUTION_LOGP = "solution_logp/mean"  # the component that shows how likely the student finds the solution
EVAL_FILE = "eval.jsonl"


def evaluation_requests(prompts: Sequence[Prompt], *, seed: int) -> list[Request]:
    """One completion per held-out prompt: prompt i is sampled with seed + i at every step."""
    return [Request(prompt.teacher_ids, (seed + i,)) for i, prompt in enumerate(prompts)]


def evaluation_results(
    scored: Scored, completions: Sequence[Completion], chat: ChatFormat
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Mean metrics, named as in training with the prefix "eval/", and one record per prompt for EVAL_FILE."""
    metrics = rollout_metrics(scored, completions, chat, num_generations=1)
    values = {"reward": scored.rewards.reward, **scored.rewards.components}
    records = [
        {"row": prompt.row.number, **{name: float(value[i]) for name, value in values.items()}}
        for i, prompt in enumerate(scored.prompts)
    ]
    return eval_metrics(metrics), records


def write_records(run_dir: Path, step: int, records: Sequence[Mapping[str, float]]) -> None:
    """Append the records of an evaluation to EVAL_FILE: all of them, or none.

    Raises:
      UserError: it cannot be written.
    """
    with writing_to(run_dir), LineFile(run_dir / EVAL_FILE) as file:
        file.append(b"".join(json_line({"step": step, **record}).encode() for record in records), synced=True)


def is_evaluated(run_dir: Path, step: int) -> bool:
    """Whether the evaluation of METRICS_FILE's last step is whole: the line of its metrics is the last that it writes.

    Args:
      step: the last one of which there are lines.
    """
    records = latest_lines(run_dir / METRICS_FILE)
    return any(
        name.startswith("eval/")
        for record in takewhile(lambda record: record["step"] == step, records)
        for name in record
    )


def drop_records(run_dir: Path, step: int) -> None:
    """Drop what EVAL_FILE holds of an evaluation that is to be made again."""
    records = read_lines(run_dir / EVAL_FILE)
    kept = [record for record in records if record["step"] != step]
    if len(kept) < len(records):
        with whole_file(run_dir / EVAL_FILE, "the evaluations") as path:
            path.write_text("".join(map(json_line, kept)), encoding="utf-8")


def read_changes(run_dir: Path, names: Sequence[str], *, first: int, last: int) -> dict[str, PairedChange]:
    """Paired change of each named quantity from the evaluation at step `first` to that at `last`, by prompt.

    Where a resumed run has accepted a change of what is measured, evaluations up to it do not count: the first one
    after it takes the place of that at `first`. Leaves out names that the reward did not report, and prompts where a
    value was not finite; {} unless both steps evaluated two or more prompts in common.
    """
    lines = read_lines(run_dir / EVAL_FILE)
    records = {(line["step"], line["row"]): line for line in lines if isinstance(line.get("row"), int)}
    changed = last_accepted_change(run_dir)
    if changed is not None and first <= changed:
        first = min((step for step, _ in records if step > changed), default=last)
    rows = sorted({row for step, row in records if step == first} & {row for step, row in records if step == last})
    if len(rows) < 2 or first == last:
        return {}
    changes = {}
    for name in names:
        pairs = [(records[first, row].get(name), records[last, row].get(name)) for row in rows]
        known = np.array([pair for pair in pairs if all(isinstance(x, int | float) for x in pair)], dtype=float)
        if len(known) >= 2:
            changes[name] = paired_change(known[:, 0], known[:, 1])
    return changes


def read_values(run_dir: Path, names: Sequence[str], *, step: int) -> dict[str, dict[int, float]]:
    """Each named quantity at the evaluation of a step: name -> row -> value, where it was finite.

    Leaves out names that the reward did not report.
    """
    values: dict[str, dict[int, float]] = {}
    for line in read_lines(run_dir / EVAL_FILE):
        if line["step"] != step or not isinstance(line.get("row"), int):
            continue
        for name in names:
            if isinstance(value := line.get(name), int | float):
                values.setdefault(name, {})[line["row"]] = float(value)
    return values
