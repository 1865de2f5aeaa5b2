"""Graded answers as lines of a file, and their summary."""

from typing import Any

import numpy as np

from rlt_jax.configs import EvaluateConfig
from rlt_jax.data import ChatFormat, Question, ids_to_bytes, turns_of
from rlt_jax.data.turns import THOUGHT_END, THOUGHT_START
from rlt_jax.evals.accuracy import pass_rates
from rlt_jax.evals.answers import Graded, answer_text, grade_choice, grade_math, grade_text
from rlt_jax.report.partial_file import PartialFile
from rlt_jax.types import Completion

FEW = 0.05  # share of the answers


def answer_record(
    question: Question, sample: int, completion: Completion, config: EvaluateConfig, chat: ChatFormat
) -> dict[str, Any]:
    """The line of the output for one sample of a question."""
    ids = completion.token_ids[:-1] if completion.finished else completion.token_ids  # without EOS
    text = b"".join(ids_to_bytes(chat.tokenizer, ids)).decode(errors="replace")
    said = outside_of_thought(text, opened=opens_thought(chat)) if config.prompt == "chat" else text
    graded = grade(answer_text(said, chat.tags), question, config)
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


def opens_thought(chat: ChatFormat) -> bool:
    """Whether the chat template begins the model's turn inside a thought, as those of R1-Distill and QwQ do."""
    opened = turns_of(chat.tokenizer).opened
    return bool(THOUGHT_START.search(opened)) and not THOUGHT_END.search(opened)


def outside_of_thought(text: str, *, opened: bool) -> str:
    """What a model says after its thought: after the last end tag of one, nothing if it is still thinking.

    Args:
      opened: the thought was opened in the prompt.
    """
    ends = [tag.end() for tag in THOUGHT_END.finditer(text)]
    if ends:
        return text[ends[-1] :]
    return "" if opened or THOUGHT_START.search(text) else text


def grade(text: str, question: Question, config: EvaluateConfig) -> Graded:
    """Find the answer in `text` and compare it with the expected one."""
    if question.letters:
        return grade_choice(text, question.answer, question.letters)
    match config.answer_kind:
        case "math":
            return grade_math(text, question.answer)
        case "text":
            return grade_text(text, question.answer)


def summarise(config: EvaluateConfig, done: PartialFile) -> dict[str, Any]:
    """Accuracy and pass@k with intervals, shares of finished completions and of those with an answer, mean length."""
    correct, finished, answered, tokens = [], [], [], []
    for chunk in done.read():
        for record in chunk.records:
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


def few_answers(summary: dict[str, Any]) -> str | None:
    """What to do if hardly any completion ends by itself, or holds an answer; None: enough do."""
    if summary["finished"] < FEW:
        return (
            f"only {summary['finished']:.1%} of the answers ended by themselves: raise --max-completion-length, or ask "
            "the model in the form that it was trained on (--prompt, --tags, --system-prompt-file)"
        )
    if summary["answered"] < FEW:
        return (
            f"an answer was found in only {summary['answered']:.1%} of the completions: ask the model in the form that "
            "it was trained on (--prompt, --tags, --system-prompt-file)"
        )
    return None


def describe(summary: dict[str, Any]) -> str:
    """Format a summary as one line."""
    rates = {
        "accuracy" if k == "1" else f"pass@{k}": "{value:.4f} [{low:.4f}, {high:.4f}]".format(**rate)
        for k, rate in summary["pass_at_k"].items()
    }
    return (
        f"{summary['questions']} questions x {summary['samples']}, {summary['skipped']} skipped, "
        + ", ".join(f"{name} {rate}" for name, rate in rates.items())
        + f", {summary['finished']:.1%} finished"
    )
