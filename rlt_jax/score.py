"""Score existing explanations: `python -m rlt_jax.score --teacher DIR --student DIR --data ...`."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from rlt_jax import stops
from rlt_jax.configs import ScoreConfig, check_score_config, parse_command, run_or_print
from rlt_jax.data import ExplainedRow, Room, describe_skipped, explained_score_rows, with_prompts
from rlt_jax.device.jax_setup import prepare_memory, use_compilation_cache
from rlt_jax.errors import UserError, command
from rlt_jax.models import Params, Work, dtype_of
from rlt_jax.report.counting import counting
from rlt_jax.report.histogram import draw_histogram, histogram_text
from rlt_jax.report.json_text import json_line, json_text
from rlt_jax.report.owner import sole_writer
from rlt_jax.report.progress import track
from rlt_jax.report.whole_file import whole_file
from rlt_jax.rewards.by_name import chosen_reward
from rlt_jax.rewards.ranking import ranks, select_rows
from rlt_jax.rewards.rlt import reward_columns
from rlt_jax.rewards.scorer import Scorer, make_scorer, tokens_of
from rlt_jax.runs.announce import attention_line, score_lines
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.chats import show_chat
from rlt_jax.runs.contradictions import warn_of_row_prompts
from rlt_jax.runs.own_reward import pinned
from rlt_jax.runs.rows import load_rows_to_score
from rlt_jax.runs.setup import load_checked_model, warn_of_skipped
from rlt_jax.runs.work import kernels, tokens_line
from rlt_jax.types import Prompt, ScoreRow

BATCHES_PER_CHUNK = 16  # forward passes between two writes: sorting by length inside a chunk keeps padding small


def score(config: ScoreConfig) -> Path:
    """Score every row of config.data, and write config.out and the other requested files, each whole or not at all.

    Each line of config.out holds `row` (its number in the data), `reward`, `components` (name -> value), `matched`,
    `copy_rate`, `repeat_rate`, `thought_tokens` and `solution_tokens`. config.selected_out is a data set of the kept
    rows.

    Returns:
      config.out.
    Raises:
      UserError: an inconsistent config, or unusable files, models or data.
    """
    check_score_config(config)
    config = pinned(config)
    named = {"--out": config.out, "--selected-out": config.selected_out, "--histogram": config.histogram}
    outputs = {flag: Path(name) for flag, name in named.items() if name is not None}
    for flag, path in outputs.items():
        if path.exists():
            raise UserError(f"{flag} {path} exists: choose another file, or delete it")
    with ExitStack() as locks:
        locks.enter_context(stops.reported(lambda: said(outputs)))
        for flag, path in outputs.items():
            locks.enter_context(sole_writer(path, flag))
        write_scores(config, outputs)
    return Path(config.out)


def said(outputs: Mapping[str, Path]) -> str:
    """What a stop leaves."""
    written = [str(path) for path in outputs.values() if path.exists()]
    return f"{', '.join(written)} complete" if written else "no file is written, the same command starts again"


def write_scores(config: ScoreConfig, outputs: Mapping[str, Path]) -> None:
    """Score the rows, and write the files (flag -> path)."""
    use_compilation_cache()
    prepare_memory(shared=False, pinned_bytes=0)
    chat = chat_format_of(config)
    with counting("reading rows") as on_progress:
        rows, skipped = load_rows_to_score(config, chat.tags, say=print, on_progress=on_progress)
    warn_of_row_prompts(chat, (explained.row.system for explained in rows))
    print("\n".join(score_lines(config, chat, rows=[explained.row for explained in rows], skipped=len(skipped))))
    if config.selected_out is not None:
        check_json(rows)  # before hours of scoring
    teacher, teacher_params = load_checked_model(config.teacher, chat.tokenizer, dtype=config.dtype)
    student, student_params = load_checked_model(config.student, chat.student, dtype=config.dtype)
    scorer = make_scorer(
        teacher,
        student,
        student_params,
        config.reward,
        sampling_temperature=config.temperature,
        chunk=config.logprob_chunk,
        reward_fn=(own := chosen_reward(config.reward)),
    )
    reads_prompts = own is not None or config.reward.overlong_coeff > 0
    print(attention_line(kernels(dtype_of(teacher_params), teacher=teacher, student=student)))
    room = Room(0, teacher.config.max_positions, student.config.max_positions)
    score_chunk = partial(score_records, scorer, teacher_params, batch_size=config.score_batch_size)
    kept, scored, scores, unscored, work = None, [], [], [], Work()
    with ExitStack() as unfinished:
        files = {flag: unfinished.enter_context(whole_file(path, flag)) for flag, path in outputs.items()}
        with files["--out"].open("w", encoding="utf-8") as file:
            chunk = config.score_batch_size * BATCHES_PER_CHUNK
            for start in track(range(0, len(rows), chunk), "scoring"):
                usable, unusable = explained_score_rows(rows[start : start + chunk], chat, room=room)
                unscored += unusable
                prompts: Sequence[Prompt] = ()
                if reads_prompts and usable:
                    usable, prompts, unusable = with_prompts(usable, chat)
                    unscored += unusable
                records, done = score_chunk(usable, prompts)
                work += done
                for explained, reward, record in records:
                    file.write(json_line(record))
                    scored.append(explained)
                    scores.append(reward)
        if not scored:
            number, reason = unscored[0]
            raise UserError(
                f"{config.data}: expected rows that can be scored, but none of {len(rows)} can: "
                f"{describe_skipped(unscored)}; row {number}: {reason}: give other rows, or models for longer texts"
            )
        warn_of_skipped(unscored, "rows")
        rewards = np.array(scores)
        if "--selected-out" in files:
            kept = select_rows(
                rewards,
                [(explained.row.question, explained.row.solution) for explained in scored],
                best_of_question=config.best_of_question,
                top_fraction=config.top_fraction,
            )
            with files["--selected-out"].open("w", encoding="utf-8") as file:
                for i, rank in zip(kept, ranks(rewards[kept])):
                    file.write(json_line({**scored[i].raw, "reward": rewards[i], "rank": int(rank)}))
        if "--histogram" in files:
            draw_histogram(rewards, files["--histogram"], kept=kept)
        with stops.held():  # all files or none
            unfinished.close()
    print(f"{tokens_line(work)}\nrewards\n{histogram_text(rewards)}")
    unscored += skipped
    print(f"{len(scored)} rows scored, {len(unscored)} skipped, mean reward {rewards.mean():.4f}: {config.out}")
    if kept is not None:
        print(f"{len(kept)} rows kept, mean reward {rewards[kept].mean():.4f}: {config.selected_out}")


def score_records(
    scorer: Scorer,
    teacher_params: Params,
    pairs: Sequence[tuple[ExplainedRow, ScoreRow]],
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
) -> tuple[list[tuple[ExplainedRow, float, dict[str, object]]], Work]:
    """Score rows together: each with its reward and its line of config.out, and the work of both models.

    Args:
      prompts: of the rows; () if the reward function does not read them.
    """
    if not pairs:
        return [], Work()
    numbers, rows = [explained.row.number for explained, _ in pairs], [row for _, row in pairs]
    scored = scorer.score(teacher_params, prompts, rows, tokens=tokens_of(rows, batch_size), numbers=numbers)
    rewards, records = scored.rewards, []
    for i, (explained, row) in enumerate(pairs):
        record = {
            "row": explained.row.number,
            **reward_columns(rewards, i),
            "matched": row.matched,
            "copy_rate": row.copy_rate,
            "repeat_rate": row.repeat_rate,
            "thought_tokens": len(row.teacher_thought),
            "solution_tokens": len(row.solution),
        }
        records.append((explained, float(rewards.reward[i]), record))
    return records, sum(scored.work.values(), Work())


def check_json(rows: Sequence[ExplainedRow]) -> None:
    """Refuse rows that a JSON Lines file cannot hold, such as a parquet file's dates and images."""
    for explained in rows:
        for column, value in explained.raw.items():
            try:
                json_text(value)
            except TypeError as error:
                raise UserError(
                    f"row {explained.row.number}: --selected-out is JSON Lines, which cannot hold its column "
                    f"{column} ({error}): drop the column, or leave out the flag"
                ) from None


@command
def main() -> None:
    parsed = parse_command(ScoreConfig, sys.argv[1:], command="score", description=__doc__, shows_chat=True)
    run_or_print(*parsed, run=score, show_chat=show_chat)


if __name__ == "__main__":
    main()
