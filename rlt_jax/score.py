"""Rewards and components of existing explanations: `python -m rlt_jax.score --teacher DIR --student DIR --data ...`."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import track

from rlt_jax.configs import ScoreConfig, check_score_config, config_yaml, parse_command
from rlt_jax.data import ExplainedRow, Layout, explained_score_row, load_explained_rows
from rlt_jax.errors import UserError, run_command
from rlt_jax.rewards import Judged, judge_rows, rlt_reward
from rlt_jax.run import load_fitting_model, load_layout, use_compilation_cache
from rlt_jax.scoring import row_logprobs

BATCHES_A_PIECE = 16  # forward passes between two writes: sorting by length inside a piece keeps padding small


def score(config: ScoreConfig) -> Path:
    """Score every row of config.data and write config.out, whole or not at all.

    Each line holds `row` (its number in the data), `reward`, `components` (name -> value), `matched`, `copy_rate`,
    `thought_tokens` and `solution_tokens`.

    Returns:
      The file written.
    Raises:
      UserError: anything in the config, its files, models or data that cannot work.
    """
    check_score_config(config)
    out = Path(config.out)
    if out.exists():
        raise UserError(f"--out {out} exists: choose another file, or delete it")
    use_compilation_cache()
    layout = load_layout(
        config.teacher,
        config.student,
        tags=config.tags,
        teacher_prompt_file=config.teacher_prompt_file,
        student_prompt_file=config.student_prompt_file,
    )
    rows, skipped = load_explained_rows(config.data, layout.tags, on_bad_row=config.on_bad_row)
    teacher, teacher_params = load_fitting_model(config.teacher, layout, dtype=config.dtype)
    student, student_params = load_fitting_model(config.student, layout, dtype=config.dtype)
    logprobs = partial(row_logprobs, batch_size=config.score_batch_size, chunk=config.logprob_chunk)
    teacher_temperature = config.temperature if config.reward.unbias_teacher_log_probs else 1.0
    judge = partial(
        judge_rows,
        teacher_logprobs=partial(logprobs, teacher, teacher_params, temperature=teacher_temperature),
        student_logprobs=partial(
            logprobs, student, student_params, temperature=config.reward.unbias_student_log_probs_temp or 1.0
        ),
        reward_fn=rlt_reward(config.reward),
    )
    unfinished = out.with_name(f".{out.name}.writing-{os.getpid()}")
    rewards: list[float] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as file:
            piece = config.score_batch_size * BATCHES_A_PIECE
            for start in track(range(0, len(rows), piece), "scoring", transient=True):
                for reward, record in score_records(rows[start : start + piece], layout, judge):
                    file.write(json.dumps(record) + "\n")
                    rewards.append(reward)
        unfinished.rename(out)
    except OSError as error:
        raise UserError(f"cannot write --out {out} ({error.strerror}): choose another file") from None
    finally:
        if unfinished.exists():  # not unlink alone: below a file it raises again
            unfinished.unlink()
    print(f"{len(rows)} rows scored, {len(skipped)} skipped, mean reward {np.mean(rewards):.4f}: {out}")
    return out


def score_records(
    explained: Sequence[ExplainedRow], layout: Layout, judge: Callable[..., Judged]
) -> Iterator[tuple[float, dict[str, object]]]:
    """Score some rows at once; yields the reward of each, and all that is written of it."""
    rows = [explained_score_row(row, layout) for row in explained]
    rewards = judge((), rows).rewards
    for i, (row, of) in enumerate(zip(rows, explained)):
        reward = float(rewards.reward[i])
        yield (
            reward,
            {
                "row": of.row.number,
                "reward": reward,
                "components": {name: float(values[i]) for name, values in rewards.components.items()},
                "matched": row.matched,
                "copy_rate": row.copy_rate,
                "thought_tokens": len(row.teacher_thought),
                "solution_tokens": len(row.solution),
            },
        )


def main() -> None:
    config, print_config = parse_command(ScoreConfig, sys.argv[1:], prog="python -m rlt_jax.score", description=__doc__)
    if print_config:
        print(config_yaml(config), end="")
    else:
        score(config)


if __name__ == "__main__":
    run_command(main)
