"""Explanations for every row of a data set: `python -m rlt_jax.generate --teacher DIR --data.path ... --out ...`."""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from rlt_jax.configs import (
    GenerateConfig,
    check_generate_config,
    deciding_settings,
    parse_command,
    run_or_print,
)
from rlt_jax.data import (
    Layout,
    build_prompts,
    describe_skipped,
    distillation_row,
    eos_ids,
    load_rows,
    score_row_from_ids,
    student_system,
)
from rlt_jax.errors import UserError, run_command
from rlt_jax.report.pieces import PartialFile, Piece, fingerprint, open_partial
from rlt_jax.rewards import judge_rows, reward_columns, rlt_reward
from rlt_jax.run import check_positions, load_fitting_model, load_layout, prepare_memory, use_compilation_cache
from rlt_jax.samplers import (
    SamplerSettings,
    drawing_settings,
    make_sampler,
    running_engine,
    sample_request,
    sampling_params,
    weight_files,
)
from rlt_jax.sampling.base import Sampler
from rlt_jax.sampling.engine import Engine
from rlt_jax.scoring import row_logprobs
from rlt_jax.types import Completion, Prompt, ScoreRow

log = logging.getLogger("rlt_jax")

CUT_OFF, NOT_CLOSED, UNREADABLE = "cut off", "tags not closed", "with a tag of the student's chat inside"


class Explanation(NamedTuple):
    """One drawn explanation of a row."""

    prompt: Prompt
    sample: int  # which of the row's
    draw: int  # tries before this one
    completion: Completion
    row: ScoreRow
    columns: dict[str, Any] | None  # of the data set; None: it cannot be a row of one
    problem: str | None  # why it should be drawn again


def generate(config: GenerateConfig) -> Path:
    """Explain every row of config.data, and write config.out whole; a start that was interrupted goes on.

    Each line holds the row's `question`, `solution` and `reasoning_trace`, its `explanation`, `system` and
    `conversations` to train a student on (see `distillation_row`), `row`, `sample`, `draw`, `matched`, `finished`,
    `tokens`, `copy_rate`, `repeat_rate`, and with a student `reward` and `components`.

    Returns:
      The file written.
    Raises:
      UserError: anything in the config, its files, models or data that cannot work.
    """
    check_generate_config(config)
    out = Path(config.out)
    use_compilation_cache()
    prepare_memory(shared=config.sampler.kind == "vllm", pinned_bytes=0)
    data = config.data
    layout = load_layout(
        config.teacher,
        config.student or config.teacher,
        tags=data.tags,
        teacher_prompt_file=data.teacher_prompt_file,
        student_prompt_file=data.student_prompt_file,
    )
    rows = load_rows(data.path, split=data.split, on_bad_row=data.on_bad_row).rows
    built = build_prompts(rows, layout, max_prompt_length=config.max_prompt_length)
    if built.skipped:
        log.warning("%d rows skipped: %s", len(built.skipped), describe_skipped(built.skipped))
    settings = deciding_settings(config) | {
        "rows": fingerprint(
            (prompt.row, prompt.teacher_text, student_system(layout, row_system=prompt.row.system))
            for prompt in built.prompts
        ),
        "teacher_files": weight_files(config.teacher),
        "student_files": weight_files(config.student) if config.student else None,
    }
    pieces = [
        built.prompts[start : start + config.rows_per_piece]
        for start in range(0, len(built.prompts), config.rows_per_piece)
    ]
    with open_partial(out, settings) as done:
        if done.done:
            print(f"going on after {done.done} of {len(pieces)} pieces")
        if done.done < len(pieces):
            with running_engine(sampler_settings(config), log_file=out.with_name(out.name + ".vllm.log")) as engine:
                write_pieces(config, pieces, done, layout=layout, engine=engine)
        summary = describe(config, done)
        done.finish()
    print(f"{len(built.prompts)} rows, {summary}: {out}")
    return out


def sampler_settings(config: GenerateConfig) -> SamplerSettings:
    """What the sampler is made with."""
    return drawing_settings(
        config,
        model=config.teacher,
        max_length=config.max_prompt_length + config.max_completion_length,
        max_sequences=config.rows_per_piece * config.samples,
    )


def write_pieces(
    config: GenerateConfig,
    pieces: Sequence[Sequence[Prompt]],
    done: PartialFile,
    *,
    layout: Layout,
    engine: Engine | None,
) -> None:
    """Load the models, and draw and save all pieces that are not done yet."""
    model, params = load_fitting_model(config.teacher, layout, dtype=config.dtype)
    longest = max(len(prompt.teacher_ids) for piece in pieces for prompt in piece)
    check_positions(
        model,
        longest,
        max_completion_length=config.max_completion_length,
        name=config.teacher,
        hint=", or max_prompt_length to skip the longest prompts",
    )
    ends = eos_ids(layout.tokenizer, config.teacher)
    probe_ids = pieces[0][0].teacher_ids
    sampler = make_sampler(
        sampler_settings(config), engine, model, params, version=0, eos_ids=ends, probe_ids=probe_ids
    )
    judge = None
    if config.student is not None:
        student, student_params = load_fitting_model(config.student, layout, dtype=config.dtype)
        logprobs = partial(row_logprobs, batch_size=config.score_batch_size, chunk=config.logprob_chunk)
        reward = config.reward
        # greedy explanations have no temperature
        teacher_temperature = (config.temperature if reward.unbias_teacher_log_probs else 1.0) or 1.0
        judge = partial(
            judge_rows,
            teacher_logprobs=partial(logprobs, model, params, temperature=teacher_temperature),
            student_logprobs=partial(
                logprobs, student, student_params, temperature=reward.unbias_student_log_probs_temp or 1.0
            ),
            reward_fn=rlt_reward(reward),
        )
    todo = pieces[done.done :]
    for piece in track(todo, "explaining", transient=True):
        explanations, counts = draw(config, piece, sampler, layout, ends)
        if done.done == 0 and not explanations:
            raise UserError(
                f"none of the first {len(piece) * config.samples} explanations can be used ({reasons(counts)}): give "
                "the teacher prompt and tags that it was trained with, raise --max-completion-length, or write them "
                "all with --on-unfinished keep"
            )
        if judge is None or not explanations:
            done.add(Piece([record(explanation) for explanation in explanations], counts))
            continue
        sampler.sleep()
        judged = judge([it.prompt for it in explanations], [it.row for it in explanations])
        done.add(Piece([record(it) | reward_columns(judged.rewards, i) for i, it in enumerate(explanations)], counts))
        sampler.wake()
        sampler.set_weights(params, 0)


def draw(
    config: GenerateConfig, prompts: Sequence[Prompt], sampler: Sampler, layout: Layout, ends: tuple[int, ...]
) -> tuple[list[Explanation], Counter[str]]:
    """Explanations of some rows by row and sample, those that came out wrong drawn again; and what became of them."""
    sampling = sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)
    found: dict[tuple[int, int], Explanation] = {}  # (index of the prompt, sample) -> its newest try
    missing = {i: list(range(config.samples)) for i in range(len(prompts))}
    counts: Counter[str] = Counter()
    for tries in range(config.redraws + 1):
        requests = [
            sample_request(
                prompts[i].teacher_ids, seed=config.seed, row=prompts[i].row.number, samples=samples, draw=tries
            )
            for i, samples in missing.items()
        ]
        counts["drawn again"] += sum(map(len, missing.values())) if tries else 0
        for (i, samples), completions in zip(missing.items(), sampler.generate(requests, sampling)):
            for sample, completion in zip(samples, completions):
                found[i, sample] = _explanation(prompts[i], sample, tries, completion, layout, ends)
        missing = {
            i: wrong
            for i, samples in missing.items()
            if (wrong := [sample for sample in samples if found[i, sample].problem])
        }
    counts.update(it.problem for it in found.values() if it.problem is not None)
    kept = [
        it
        for _, it in sorted(found.items())
        if it.problem is None or (config.on_unfinished == "keep" and it.columns is not None)
    ]
    counts["dropped"] += len(found) - len(kept)
    return kept, counts


def _explanation(
    prompt: Prompt, sample: int, draw: int, completion: Completion, layout: Layout, ends: tuple[int, ...]
) -> Explanation:
    row = score_row_from_ids(prompt, completion.token_ids, layout, ends)
    columns = distillation_row(prompt.row, row.explanation, layout)
    problem = None
    if not completion.finished:
        problem = CUT_OFF
    elif not row.matched:
        problem = NOT_CLOSED
    elif columns is None:
        problem = UNREADABLE
    return Explanation(prompt, sample, draw, completion, row, columns, problem)


def record(explanation: Explanation) -> dict[str, Any]:
    """A line of the data set, without scores."""
    assert explanation.columns is not None  # draw leaves out what is no row
    return explanation.columns | {
        "sample": explanation.sample,
        "draw": explanation.draw,
        "matched": explanation.row.matched,
        "finished": explanation.completion.finished,
        "tokens": len(explanation.completion.token_ids),
        "copy_rate": explanation.row.copy_rate,
        "repeat_rate": explanation.row.repeat_rate,
    }


def reasons(counts: Counter[str]) -> str:
    """Why explanations could not be used: `3 cut off, 1 tags not closed`."""
    return ", ".join(f"{counts[problem]} {problem}" for problem in (CUT_OFF, NOT_CLOSED, UNREADABLE) if counts[problem])


def describe(config: GenerateConfig, done: PartialFile) -> str:
    """What was written, drawn again and dropped."""
    written, reward = 0, 0.0
    for piece in done.read():
        written += len(piece.records)
        reward += sum(record.get("reward", 0.0) for record in piece.records)
    counts = done.counts()
    parts = [f"{written} explanations", f"{counts['drawn again']} drawn again", f"{counts['dropped']} dropped"]
    if why := reasons(counts):
        parts.append(f"wrong after the last try: {why}")
    if config.student is not None:
        parts.insert(1, f"mean reward {reward / written:.4f}")
    return ", ".join(parts)


def main() -> None:
    parsed = parse_command(GenerateConfig, sys.argv[1:], prog="python -m rlt_jax.generate", description=__doc__)
    run_or_print(*parsed, run=generate)


if __name__ == "__main__":
    run_command(main)
