"""Measure the exact-answer accuracy of a model: `python -m rlt_jax.evaluate --model DIR --data.path ... --out ...`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlt_jax.configs import EvaluateConfig, check_evaluate_config, parse_command, run_or_print
from rlt_jax.configs.dtype import decided_dtype
from rlt_jax.configs.resume import deciding_settings
from rlt_jax.data import ChatFormat, Question
from rlt_jax.data.model_record import tag_format_of
from rlt_jax.device.jax_setup import prepare_memory, use_compilation_cache
from rlt_jax.errors import command
from rlt_jax.evals.grading import answer_record, describe, few_answers, summarise
from rlt_jax.report.json_text import json_text
from rlt_jax.report.partial_file import Chunk, PartialFile, fingerprint, open_partial
from rlt_jax.report.progress import track
from rlt_jax.report.whole_file import whole_file
from rlt_jax.runs.announce import evaluate_lines
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.chats import show_chat
from rlt_jax.runs.contradictions import warn_of_row_prompts
from rlt_jax.runs.machine import on_this_machine
from rlt_jax.runs.questions import fitting_questions, load_test_set
from rlt_jax.runs.setup import chat_sampler, load_checked_model, with_room
from rlt_jax.sampling.engine import Engine
from rlt_jax.sampling.factory import (
    SamplerSettings,
    running_engine,
    sample_request,
    sampling_params,
    text_settings,
    weight_files,
)

log = logging.getLogger("rlt_jax")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Ask every question of config.data and write config.out whole; repeating an interrupted call resumes it.

    Each line holds `row` (the question's number), `sample`, `completion`, `answer` as parsed, `expected`,
    `correct`, `finished` and `tokens`.

    Returns:
      The summary, which is also written to a file with the suffix .summary.json.
    Raises:
      UserError: an inconsistent config, or unusable files, model or data.
    """
    check_evaluate_config(config)
    config = on_this_machine(config)
    out, data = Path(config.out), config.data
    use_compilation_cache()
    prepare_memory(shared=config.sampler.kind == "vllm", pinned_bytes=0)
    chat = chat_format_of(config)
    readable, skipped = load_test_set(data, say=print)
    config = with_room(config, say=print)
    if config.prompt == "student":
        warn_of_row_prompts(chat, (question.system for question in readable))
    questions, texts, prompts, too_long = fitting_questions(readable, config, chat)
    unusable = len(skipped) + len(too_long)
    print("\n".join(evaluate_lines(config, chat, asked=len(questions), skipped=unusable)))
    settings = deciding_settings(config) | {
        "tags": tag_format_of(chat.tags),  # as the model's folder says it, if at all: they decide what an answer is
        "questions": fingerprint(zip(questions, texts)),
        "model_files": weight_files(config.model),
    }
    with open_partial(out, settings) as partial:
        if partial.done:
            print(f"resuming after {partial.done} chunks of {config.questions_per_chunk} questions")
        if partial.done * config.questions_per_chunk < len(questions):
            sampler_settings = text_settings(
                config,
                model=config.model,
                max_length=max(map(len, prompts)) + config.max_completion_length,
                max_sequences=config.questions_per_chunk * config.samples,
            )
            with running_engine(sampler_settings, log_file=out.with_name(out.name + ".vllm.log")) as engine:
                write_chunks(config, questions, prompts, partial, chat, sampler_settings, engine)
        summary = summarise(config, partial) | {"skipped": unusable}
        with whole_file(out.with_suffix(".summary.json"), "the summary") as path:
            path.write_text(json_text(summary, indent=2) + "\n", encoding="utf-8")
        partial.finish()
    if warning := few_answers(summary):
        log.warning(warning)
    print(f"{describe(summary)}: {out}")
    return summary


def write_chunks(
    config: EvaluateConfig,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    partial: PartialFile,
    chat: ChatFormat,
    settings: SamplerSettings,
    engine: Engine | None,
) -> None:
    """Load the model; ask, grade and save all chunks that are not done yet."""
    model, params = load_checked_model(config.model, chat.tokenizer, dtype=decided_dtype(config.dtype))
    sampler = chat_sampler(settings, engine, model, params, chat, version=0, probe_ids=prompts[0])
    sampling = sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)
    size = config.questions_per_chunk
    for start in track(range(partial.done * size, len(questions), size), "answering"):
        chunk = questions[start : start + size]
        requests = [
            sample_request(ids, seed=config.seed, row=question.number, samples=range(config.samples))
            for question, ids in zip(chunk, prompts[start:])
        ]
        groups = sampler.generate(requests, sampling)
        records = [
            answer_record(question, sample, completion, config, chat)
            for question, completions in zip(chunk, groups)
            for sample, completion in enumerate(completions)
        ]
        partial.add(Chunk(records, {}))


@command
def main() -> None:
    parsed = parse_command(EvaluateConfig, sys.argv[1:], command="evaluate", description=__doc__, shows_chat=True)
    run_or_print(*parsed, run=evaluate, show_chat=show_chat)


if __name__ == "__main__":
    main()
