"""Measure the exact-answer accuracy of a model: `python -m rlt_jax.evaluate --model DIR --data.path ... --out ...`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from rlt_jax.configs import EvaluateConfig, check_evaluate_config, parse_command, run_or_print
from rlt_jax.configs.resume import deciding_settings
from rlt_jax.data import (
    ChatFormat,
    Question,
    encode_batch,
    eos_ids,
    load_questions,
    plain_chat_text,
    student_prefix_text,
)
from rlt_jax.device.jax_setup import prepare_memory, use_compilation_cache
from rlt_jax.errors import command
from rlt_jax.evals.grading import answer_record, describe, summarise
from rlt_jax.report.partial_file import Chunk, PartialFile, fingerprint, open_partial
from rlt_jax.report.whole_file import whole_file
from rlt_jax.runs.setup import check_positions, load_chat_format, load_checked_model
from rlt_jax.sampling.engine import Engine
from rlt_jax.sampling.factory import (
    SamplerSettings,
    make_sampler,
    running_engine,
    sample_request,
    sampling_params,
    text_settings,
    weight_files,
)


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
    out, data = Path(config.out), config.data
    use_compilation_cache()
    prepare_memory(shared=config.sampler.kind == "vllm", pinned_bytes=0)
    chat = load_chat_format(
        config.model,
        config.model,
        tags=config.tags,
        teacher_prompt_file=None,
        student_prompt_file=config.system_prompt_file,
    )
    questions, skipped = load_questions(
        data.path,
        split=data.split,
        question_column=data.question_column,
        answer_column=data.answer_column,
        choice_columns=data.choice_columns,
        on_bad_row=data.on_bad_row,
    )
    texts = [prompt_text(question, config, chat) for question in questions]
    settings = deciding_settings(config) | {
        "questions": fingerprint(zip(questions, texts)),
        "model_files": weight_files(config.model),
    }
    prompts = encode_batch(chat.tokenizer, texts)
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
        summary = summarise(config, partial) | {"skipped": len(skipped)}
        with whole_file(out.with_suffix(".summary.json"), "the summary") as path:
            path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        partial.finish()
    print(f"{describe(summary)}: {out}")
    return summary


def prompt_text(question: Question, config: EvaluateConfig, chat: ChatFormat) -> str:
    """The prompt that the model continues."""
    if config.prompt == "student":
        return student_prefix_text(question.text, chat, row_system=question.system)
    # if there is a prompt file, the chat format's student prompt is from it
    system = chat.tags.fill(chat.student_prompt) if config.system_prompt_file else None
    return plain_chat_text(question.text, chat, system=system)


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
    model, params = load_checked_model(config.model, chat, dtype=config.dtype)
    check_positions(
        model, max(map(len, prompts)), max_completion_length=config.max_completion_length, name=config.model
    )
    end_ids = eos_ids(chat.tokenizer, config.model)
    sampler = make_sampler(settings, engine, model, params, version=0, eos_ids=end_ids, probe_ids=prompts[0])
    sampling = sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)
    size = config.questions_per_chunk
    for start in track(range(partial.done * size, len(questions), size), "answering", transient=True):
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
    parsed = parse_command(EvaluateConfig, sys.argv[1:], command="evaluate", description=__doc__)
    run_or_print(*parsed, run=evaluate)


if __name__ == "__main__":
    main()
