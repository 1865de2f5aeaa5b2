"""The questions of a test set, and the prompts that a model answers them from."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rlt_jax.configs import EvaluateConfig, QuestionsConfig
from rlt_jax.data import (
    ChatFormat,
    Length,
    Question,
    counter_of,
    describe_skipped,
    encode,
    encode_batch,
    load_questions,
    plain_chat_text,
    student_prefix_text,
    text_problem,
)
from rlt_jax.data.columns import as_flags
from rlt_jax.errors import UserError
from rlt_jax.report.counting import counting
from rlt_jax.runs.setup import model_positions, warn_of_skipped

log = logging.getLogger("rlt_jax")


def load_test_set(
    data: QuestionsConfig, *, say: Callable[[str], None] = log.info
) -> tuple[tuple[Question, ...], tuple[tuple[int, str], ...]]:
    """The questions that can be read, and (row number, reason) for each other row; raises as `load_questions`."""
    with counting("reading questions") as on_progress:
        return load_questions(
            data.path,
            split=data.split,
            subset=data.subset,
            question_column=data.question_column,
            answer_column=data.answer_column,
            choice_columns=data.choice_columns,
            system_column=data.system_column,
            spelled=partial(as_flags, prefix="data."),
            on_bad_row=data.on_bad_row,
            say=say,
            on_progress=on_progress,
        )


def fitting_questions(
    questions: Sequence[Question], config: EvaluateConfig, chat: ChatFormat
) -> tuple[list[Question], list[str], list[np.ndarray], list[tuple[int, str]]]:
    """(questions, their prompts as text and as token ids i32[P], (row number, reason) of those that do not fit).

    A question that forges a tag of the chat is among the latter.

    Raises:
      UserError: every question forges a tag, or no prompt leaves room for max_completion_length in the positions that
        the model was made for.
    """
    questions, forged = _unforged(questions, config, chat)
    texts = [prompt_text(question, config, chat) for question in questions]
    positions, answer = model_positions(config.model), config.max_completion_length
    lengths = [counter_of(chat.tokenizer).bounds(text) for text in texts]
    tokenised = [i for i, length in enumerate(lengths) if length.low + answer <= positions]
    prompts = dict(zip(tokenised, encode_batch(chat.tokenizer, [texts[i] for i in tokenised])))
    for i, ids in prompts.items():
        lengths[i] = Length.exact(len(ids))
    fitting = [i for i, length in enumerate(lengths) if length.low + answer <= positions]
    skipped = [
        (
            question.number,
            f"prompt and answer exceed the model's positions ({length} + {answer}, at most {positions})",
        )
        for question, length in zip(questions, lengths)
        if length.low + answer > positions
    ]
    if not fitting:
        shortest = len(encode(chat.tokenizer, min(texts, key=len)))
        raise UserError(
            f"max_completion_length={answer} after prompts of {shortest} tokens and more: expected at "
            f"most the {positions} positions that {config.model} was made for: lower max_completion_length"
        )
    skipped = sorted([*forged, *skipped])
    warn_of_skipped(skipped, "questions")
    return [questions[i] for i in fitting], [texts[i] for i in fitting], [prompts[i] for i in fitting], skipped


def _unforged(
    questions: Sequence[Question], config: EvaluateConfig, chat: ChatFormat
) -> tuple[list[Question], list[tuple[int, str]]]:
    """(questions that can stand in the chat, (row number, reason) of the others)."""
    usable, skipped, plain = [], [], config.prompt == "chat"
    for question in questions:
        system = None if plain else question.system  # which the model's own chat does not have
        problem = text_problem({"question": question.text}, chat, system=system, plain=plain)
        if problem is None:
            usable.append(question)
        else:
            skipped.append((question.number, problem))
    if not usable:
        raise UserError(
            f"expected questions that can stand in a chat, but none of {len(questions)} can: "
            f"{describe_skipped(skipped)}; row {skipped[0][0]}: {skipped[0][1]}: take these texts out of the questions"
        )
    return usable, skipped


def prompt_text(question: Question, config: EvaluateConfig, chat: ChatFormat) -> str:
    """The prompt that the model continues."""
    if config.prompt == "student":
        return student_prefix_text(question.text, chat, row_system=question.system)
    # if there is a prompt file, the chat format's student prompt is from it
    system = chat.tags.fill(chat.student_prompt) if config.system_prompt_file else None
    return plain_chat_text(question.text, chat, system=system)
