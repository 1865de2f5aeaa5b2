"""Exact-answer accuracy of a model: `python -m rlt_jax.evaluate --model DIR --data.path ... --out ...`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from rlt_jax.accuracy import pass_rates
from rlt_jax.answers import Graded, answer_text, grade_choice, grade_math, grade_text
from rlt_jax.configs import (
    EvaluateConfig,
    check_evaluate_config,
    deciding_settings,
    parse_command,
    run_or_print,
)
from rlt_jax.data import (
    Layout,
    Question,
    encode_batch,
    eos_ids,
    ids_to_bytes,
    load_questions,
    plain_chat_text,
    student_prefix_text,
)
from rlt_jax.errors import run_command
from rlt_jax.report.pieces import PartialFile, Piece, fingerprint, open_partial
from rlt_jax.report.whole_file import whole_file
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
from rlt_jax.sampling.engine import Engine
from rlt_jax.types import Completion


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Ask every question of config.data, and write config.out whole; a start that was interrupted goes on.

    Each line holds `row` (the question's number), `sample`, `completion`, `answer` as it was understood, `expected`,
    `correct`, `finished` and `tokens`.

    Returns:
      The summary, which also goes to the file beside it that ends in .summary.json.
    Raises:
      UserError: anything in the config, its files, model or data that cannot work.
    """
    check_evaluate_config(config)
    out, data = Path(config.out), config.data
    use_compilation_cache()
    prepare_memory(shared=config.sampler.kind == "vllm", pinned_bytes=0)
    layout = load_layout(
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
    texts = [prompt_text(question, config, layout) for question in questions]
    settings = deciding_settings(config) | {
        "questions": fingerprint(zip(questions, texts)),
        "model_files": weight_files(config.model),
    }
    prompts = encode_batch(layout.tokenizer, texts)
    with open_partial(out, settings) as done:
        if done.done:
            print(f"going on after {done.done} pieces of {config.questions_per_piece} questions")
        if done.done * config.questions_per_piece < len(questions):
            sampler_settings = drawing_settings(
                config,
                model=config.model,
                max_length=max(map(len, prompts)) + config.max_completion_length,
                max_sequences=config.questions_per_piece * config.samples,
            )
            with running_engine(sampler_settings, log_file=out.with_name(out.name + ".vllm.log")) as engine:
                write_pieces(config, questions, prompts, done, layout, sampler_settings, engine)
        summary = summarise(config, done) | {"skipped": len(skipped)}
        with whole_file(out.with_suffix(".summary.json"), "the summary") as path:
            path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        done.finish()
    print(f"{describe(summary)}: {out}")
    return summary


def prompt_text(question: Question, config: EvaluateConfig, layout: Layout) -> str:
    """What the model continues."""
    if config.prompt == "student":
        return student_prefix_text(question.text, layout, row_system=question.system)
    # the layout's student prompt is the file's, if there is one
    system = layout.tags.fill(layout.student_prompt) if config.system_prompt_file else None
    return plain_chat_text(question.text, layout, system=system)


def write_pieces(
    config: EvaluateConfig,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    done: PartialFile,
    layout: Layout,
    settings: SamplerSettings,
    engine: Engine | None,
) -> None:
    """Load the model; ask, grade and save all pieces that are not done yet."""
    model, params = load_fitting_model(config.model, layout, dtype=config.dtype)
    check_positions(
        model, max(map(len, prompts)), max_completion_length=config.max_completion_length, name=config.model
    )
    ends = eos_ids(layout.tokenizer, config.model)
    sampler = make_sampler(settings, engine, model, params, version=0, eos_ids=ends, probe_ids=prompts[0])
    sampling = sampling_params(config.sampler, max_tokens=config.max_completion_length, temperature=config.temperature)
    size = config.questions_per_piece
    for start in track(range(done.done * size, len(questions), size), "answering", transient=True):
        piece = questions[start : start + size]
        requests = [
            sample_request(ids, seed=config.seed, row=question.number, samples=range(config.samples))
            for question, ids in zip(piece, prompts[start:])
        ]
        drawn = sampler.generate(requests, sampling)
        records = [
            answer_record(question, sample, completion, config, layout)
            for question, completions in zip(piece, drawn)
            for sample, completion in enumerate(completions)
        ]
        done.add(Piece(records, {}))


def answer_record(
    question: Question, sample: int, completion: Completion, config: EvaluateConfig, layout: Layout
) -> dict[str, Any]:
    """A line of the output."""
    ids = completion.token_ids[:-1] if completion.finished else completion.token_ids  # without the end of text
    text = b"".join(ids_to_bytes(layout.tokenizer, ids)).decode(errors="replace")
    graded = grade(answer_text(text, layout.tags), question, config)
    return {
        "row": question.number,
        "sample": sample,
        "completion": text,
        "answer": graded.answer,
        "expected": question.answer,
        "correct": graded.correct,
        "finished": completion.finished,
        "tokens": len(completion.token_ids),
    }


def grade(text: str, question: Question, config: EvaluateConfig) -> Graded:
    """The answer in `text`, and whether it is the expected one."""
    if question.letters:
        return grade_choice(text, question.answer, question.letters)
    match config.answer_kind:
        case "math":
            return grade_math(text, question.answer)
        case "text":
            return grade_text(text, question.answer)


def summarise(config: EvaluateConfig, done: PartialFile) -> dict[str, Any]:
    """Accuracy and pass@k with their intervals, shares of completions that ended and that held an answer, length."""
    correct, finished, answered, tokens = [], [], [], []
    for piece in done.read():
        for record in piece.records:
            correct.append(record["correct"])
            finished.append(record["finished"])
            answered.append(record["answer"] is not None)
            tokens.append(record["tokens"])
    rates = pass_rates(np.reshape(correct, (-1, config.samples)), sorted({1, *config.k}))
    return {
        "questions": len(correct) // config.samples,
        "samples": config.samples,
        "accuracy": rates[1]._asdict(),
        "pass_at_k": {str(k): rate._asdict() for k, rate in rates.items()},
        "finished": float(np.mean(finished)),
        "answered": float(np.mean(answered)),
        "mean_tokens": float(np.mean(tokens)),
    }


def describe(summary: dict[str, Any]) -> str:
    """The summary on one line."""
    rates = {
        "accuracy" if k == "1" else f"pass@{k}": "{value:.4f} [{low:.4f}, {high:.4f}]".format(**rate)
        for k, rate in summary["pass_at_k"].items()
    }
    return (
        f"{summary['questions']} questions x {summary['samples']}, {summary['skipped']} skipped, "
        + ", ".join(f"{name} {rate}" for name, rate in rates.items())
        + f", {summary['finished']:.1%} finished"
    )


def main() -> None:
    parsed = parse_command(EvaluateConfig, sys.argv[1:], prog="python -m rlt_jax.evaluate", description=__doc__)
    run_or_print(*parsed, run=evaluate)


if __name__ == "__main__":
    run_command(main)
