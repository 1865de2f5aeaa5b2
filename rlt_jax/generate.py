"""Explain every row of a data set: `python -m rlt_jax.generate --teacher DIR --data.path ... --out ...`."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlt_jax.configs import GenerateConfig, check_generate_config, parse_command, run_or_print
from rlt_jax.configs.dtype import decided_dtype
from rlt_jax.configs.resume import deciding_settings
from rlt_jax.data import (
    ChatFormat,
    build_prompts,
    eos_ids,
    student_system,
    teacher_texts,
)
from rlt_jax.data.model_record import tag_format_of
from rlt_jax.device.jax_setup import prepare_memory, use_compilation_cache
from rlt_jax.errors import UserError, command
from rlt_jax.models import Model
from rlt_jax.report.counting import counting
from rlt_jax.report.partial_file import Chunk, PartialFile, fingerprint, open_partial
from rlt_jax.report.progress import track
from rlt_jax.rewards.by_name import chosen_reward
from rlt_jax.rewards.rlt import reward_columns
from rlt_jax.rewards.scorer import Scorer, make_scorer, tokens_of
from rlt_jax.runs.announce import generate_lines
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.chats import show_chat
from rlt_jax.runs.contradictions import warn_of_row_prompts
from rlt_jax.runs.explanations import count_unusable, describe_problems, explanation_record, sample_explanations
from rlt_jax.runs.machine import on_this_machine
from rlt_jax.runs.own_reward import pinned
from rlt_jax.runs.rows import load_data_rows
from rlt_jax.runs.setup import chat_sampler, load_checked_model, room_of, warn_of_skipped, with_room
from rlt_jax.sampling.engine import Engine
from rlt_jax.sampling.factory import (
    SamplerSettings,
    running_engine,
    text_settings,
    weight_files,
)
from rlt_jax.types import Prompt

log = logging.getLogger("rlt_jax")


def generate(config: GenerateConfig) -> Path:
    """Explain every row of config.data and write config.out whole; repeating an interrupted call resumes it.

    Each line holds the row's `question`, `solution` and `reasoning_trace`, its `explanation`, `system` and
    `conversations` to train a student on (see `distillation_row`), `row`, `sample`, `draw`, `matched`, `finished`,
    `tokens`, `copy_rate`, `repeat_rate`, and with a student `reward` and `components`.

    Returns:
      The file written.
    Raises:
      UserError: an inconsistent config, or unusable files, models or data.
    """
    check_generate_config(config)
    config = pinned(on_this_machine(config))
    out = Path(config.out)
    use_compilation_cache()
    prepare_memory(shared=config.sampler.kind == "vllm", pinned_bytes=0)
    chat = chat_format_of(config)
    with counting("reading rows") as on_progress:
        loaded = load_data_rows(config.data, say=print, on_progress=on_progress)
    config = with_room(config, say=print)
    with counting("preparing rows", total=len(loaded.rows)) as on_progress:
        built = build_prompts(
            loaded.rows,
            chat,
            max_prompt_length=config.max_prompt_length,
            room=room_of(config),
            on_progress=on_progress,
        )
    warn_of_skipped(built.skipped, "rows")
    warn_of_row_prompts(chat, (row.system for row in loaded.rows))
    skipped_rows = len(loaded.skipped) + len(built.skipped)
    print("\n".join(generate_lines(config, chat, explained=len(built.prompts), skipped=skipped_rows)))
    decided = deciding_settings(config)
    settings = decided | {
        "data": decided["data"] | {"tags": tag_format_of(chat.tags)},  # as the models' folders say it, if at all
        "rows": fingerprint(
            (row, text, student_system(chat, row_system=row.system))
            for row, text in zip(built.rows, teacher_texts(built.rows, chat))
        ),
        "teacher_files": weight_files(config.teacher),
        "student_files": weight_files(config.student) if config.student else None,
    }
    chunks = [
        built.prompts[start : start + config.rows_per_chunk]
        for start in range(0, len(built.prompts), config.rows_per_chunk)
    ]
    with open_partial(out, settings) as partial:
        if partial.done:
            print(f"resuming after {partial.done} of {len(chunks)} chunks")
            first = next(partial.read())
            check_usable(config, len(chunks[0]) * config.samples, len(first.records), first.counts)
        if partial.done < len(chunks):
            with running_engine(sampler_settings(config), log_file=out.with_name(out.name + ".vllm.log")) as engine:
                write_chunks(config, chunks, partial, chat=chat, engine=engine)
        check_result(config, len(built.prompts) * config.samples, partial)
        summary = describe(config, partial)
        partial.finish()
    print(f"{len(built.prompts)} rows, {summary}: {out}")
    return out


def sampler_settings(config: GenerateConfig) -> SamplerSettings:
    """Settings of the sampler."""
    return text_settings(
        config,
        model=config.teacher,
        max_length=config.max_prompt_length + config.max_completion_length,
        max_sequences=config.rows_per_chunk * config.samples,
    )


def write_chunks(
    config: GenerateConfig,
    chunks: Sequence[Sequence[Prompt]],
    partial: PartialFile,
    *,
    chat: ChatFormat,
    engine: Engine | None,
) -> None:
    """Load the models; sample, score and save the chunks that are not done yet."""
    model, params = load_checked_model(config.teacher, chat.tokenizer, dtype=decided_dtype(config.dtype))
    end_ids = eos_ids(chat.tokenizer, config.teacher)
    probe_ids = chunks[0][0].teacher_ids
    sampler = chat_sampler(sampler_settings(config), engine, model, params, chat, version=0, probe_ids=probe_ids)
    scorer = load_scorer(config, model, chat)
    todo = chunks[partial.done :]
    for chunk in track(todo, "explaining"):
        explanations, counts = sample_explanations(config, list(chunk), sampler, chat, end_ids)
        if partial.done == 0:
            check_usable(config, len(chunk) * config.samples, len(explanations), counts)
        if scorer is None or not explanations:
            partial.add(Chunk([explanation_record(explanation) for explanation in explanations], counts))
            continue
        sampler.sleep()
        rows = [explanation.row for explanation in explanations]
        scored = scorer.score(
            params,
            [explanation.prompt for explanation in explanations],
            rows,
            tokens=tokens_of(rows, config.score_batch_size),
        )
        records = [
            explanation_record(explanation) | reward_columns(scored.rewards, i)
            for i, explanation in enumerate(explanations)
        ]
        partial.add(Chunk(records, counts))
        sampler.wake()
        sampler.set_weights(params, 0)


def check_usable(config: GenerateConfig, sampled: int, written: int, counts: Mapping[str, int]) -> None:
    """Stop if hardly any of the first chunk's explanations can be used: the others would be sampled in vain.

    Args:
      sampled: explanations of the chunk.
      written: those that are written; with on_unfinished keep, also unusable ones.
      counts: its counts.
    Raises:
      UserError: fewer than config.min_usable of them are usable, or none can be written.
    """
    if written >= config.min_usable * sampled and (written or config.min_usable == 0):
        return
    found = f"only {written} of" if written else "none of"
    limit = f", fewer than --min-usable {config.min_usable:g}" if written else ""
    raise UserError(
        f"{found} the first {sampled} explanations can be used ({describe_problems(counts)}{limit}): give the tags and "
        "prompt that the teacher was trained with (--data.tags, --data.teacher-prompt-file), raise "
        "--max-completion-length if they are cut off, write them all with --on-unfinished keep, or go on with the "
        "usable ones with --min-usable 0"
    )


def check_result(config: GenerateConfig, sampled: int, partial: PartialFile) -> None:
    """Warn if most explanations were unusable.

    Args:
      sampled: explanations of all rows.
    Raises:
      UserError: none can be written.
    """
    counts = partial.counts()
    unusable, problems = count_unusable(counts), describe_problems(counts)
    advice = "give the teacher's own tags and prompt, or raise --max-completion-length if they are cut off"
    if counts["dropped"] == sampled:
        raise UserError(
            f"none of {sampled} explanations can be used ({problems}), so there is nothing to write: {advice}"
        )
    if 2 * unusable > sampled:
        log.warning(
            "%d of %d explanations were unusable after the last try (%s): %s", unusable, sampled, problems, advice
        )


def load_scorer(config: GenerateConfig, teacher: Model, chat: ChatFormat) -> Scorer | None:
    """Load the student and build the scorer; None without a student."""
    if config.student is None:
        return None
    student, student_params = load_checked_model(config.student, chat.student, dtype=decided_dtype(config.dtype))
    return make_scorer(
        teacher,
        student,
        student_params,
        config.reward,
        sampling_temperature=config.temperature,
        chunk=config.logprob_chunk,
        reward_fn=chosen_reward(config.reward),
    )


def describe(config: GenerateConfig, partial: PartialFile) -> str:
    """How many explanations were written, resampled and dropped, and their mean reward."""
    written, reward = 0, 0.0
    for chunk in partial.read():
        written += len(chunk.records)
        reward += sum(record.get("reward", 0.0) for record in chunk.records)
    counts = partial.counts()
    parts = [f"{written} explanations", f"{counts['resampled']} resampled", f"{counts['dropped']} dropped"]
    if why := describe_problems(counts):
        parts.append(f"wrong after the last try: {why}")
    if config.student is not None:
        parts.insert(1, f"mean reward {reward / written:.4f}")
    return ", ".join(parts)


@command
def main() -> None:
    parsed = parse_command(GenerateConfig, sys.argv[1:], command="generate", description=__doc__, shows_chat=True)
    run_or_print(*parsed, run=generate, show_chat=show_chat)


if __name__ == "__main__":
    main()
