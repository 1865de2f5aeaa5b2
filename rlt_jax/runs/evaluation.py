"""Evaluation while training: fixed held-out prompts and seeds, so that two evaluations differ by the weights alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlt_jax.data import ChatFormat
from rlt_jax.report.paired import PairedChange, paired_change
from rlt_jax.report.writer import read_lines
from rlt_jax.rewards.metrics import eval_metrics
from rlt_jax.rewards.records import rollout_metrics
from rlt_jax.rewards.scorer import Scored
from rlt_jax.types import Completion, Prompt, Request

SOLUTION_LOGP = "solution_logp/mean"  # the component that says whether the student got to know the solution
EVAL_FILE = "eval.jsonl"


def evaluation_requests(prompts: Sequence[Prompt], *, seed: int) -> list[Request]:
    """One completion per held-out prompt: prompt i is drawn with seed + i, whatever the step."""
    return [Request(prompt.teacher_ids, (seed + i,)) for i, prompt in enumerate(prompts)]


def evaluation_results(
    scored: Scored, completions: Sequence[Completion], chat: ChatFormat
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """The means, named as the training metrics with "eval/" in front, and one record per prompt for EVAL_FILE."""
    metrics = rollout_metrics(scored, completions, chat, num_generations=1)
    values = {"reward": scored.rewards.reward, **scored.rewards.components}
    records = [
        {"row": prompt.row.number, **{name: float(value[i]) for name, value in values.items()}}
        for i, prompt in enumerate(scored.prompts)
    ]
    return eval_metrics(metrics), records


def write_records(run_dir: Path, step: int, records: Sequence[Mapping[str, float]]) -> None:
    """Append one evaluation to EVAL_FILE."""
    with (run_dir / EVAL_FILE).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, **record}) + "\n" for record in records)


def read_changes(run_dir: Path, names: Sequence[str], *, first: int, last: int) -> dict[str, PairedChange]:
    """Paired change of each named quantity from the evaluation at step `first` to that at `last`, by prompt.

    Names that the reward did not report, and steps without an evaluation of two prompts or more, give nothing.
    """
    records = {(record["step"], record["row"]): record for record in read_lines(run_dir / EVAL_FILE)}
    rows = sorted({row for step, row in records if step == first} & {row for step, row in records if step == last})
    if len(rows) < 2 or first == last:
        return {}
    return {
        name: paired_change(
            np.array([records[first, row][name] for row in rows]), np.array([records[last, row][name] for row in rows])
        )
        for name in names
        if all(name in records[step, row] for step in (first, last) for row in rows)
    }
