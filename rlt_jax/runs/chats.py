"""`--show-chat`: the chats of a command's first row, as text and tokens, with what is counted marked."""

from collections.abc import Sequence
from functools import singledispatch

import numpy as np

from rlt_jax.configs import EvaluateConfig, GenerateConfig, ScoreConfig, SftConfig, TrainConfig
from rlt_jax.data import (
    ChatFormat,
    Room,
    build_prompts,
    build_sft_examples,
    encode,
    encode_batch,
    eos_ids,
    explained_score_rows,
    explanation_to_completion,
    score_row_from_ids,
    trace_completion,
)
from rlt_jax.data.marked import Span, marked_chat, token_text
from rlt_jax.errors import UserError
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.questions import load_test_set, prompt_text
from rlt_jax.runs.rows import load_data_rows, load_rows_to_score
from rlt_jax.terminal import visible
from rlt_jax.types import Row, ScoreRow

NO_TRACE = "(an explanation stands here)"
ANY_LENGTH = 10**9  # tokens: a row that would be skipped is shown, too
KL_TERM = "thought: the KL from teacher to student is over these tokens"


@singledispatch
def chats_of(config: object) -> list[str]:
    """The chats of the first row of a command's data, each as `marked_chat`.

    Raises:
      UserError: unusable tokenizers, templates or data.
    """
    raise TypeError(f"{type(config).__name__} has no chat")


def show_chat(config: object) -> None:
    """Print the chats of the first row."""
    print(visible("\n\n".join(chats_of(config))))


@chats_of.register
def _(config: TrainConfig | GenerateConfig) -> list[str]:
    chat = chat_format_of(config)
    ends = eos_ids(chat.tokenizer, config.teacher)
    return sampled_chats(load_data_rows(config.data).rows[0], chat, ends, _titles(config.teacher, config.student))


@chats_of.register
def _(config: ScoreConfig) -> list[str]:
    chat = chat_format_of(config)
    rows, _ = load_rows_to_score(config, chat.tags)
    usable, skipped = explained_score_rows(rows[:1], chat, room=Room(0, ANY_LENGTH, ANY_LENGTH))
    if not usable:
        raise UserError(f"row {skipped[0][0]}: {skipped[0][1]}: give another first row")
    ends = eos_ids(chat.tokenizer, config.teacher)
    return _scored(usable[0][1], chat, ends, _titles(config.teacher, config.student))


@chats_of.register
def _(config: SftConfig) -> list[str]:
    chat = chat_format_of(config)
    loaded = load_data_rows(config.data, with_traces=True)
    first = [row for row in loaded.rows if row.reasoning_trace is not None][:1]
    (example,) = build_sft_examples(first, chat, target=config.target, max_length=ANY_LENGTH).examples
    trained = Span(np.flatnonzero(example.trained), "trained: the loss is over these tokens")
    title = f"{config.target} ({config.model}), row {first[0].number}"
    return [
        marked_chat(title, example.ids, chat.tokenizer, [trained], rest="prompt, not trained"),
        _ends(chat, eos_ids(chat.tokenizer, config.model)),
    ]


@chats_of.register
def _(config: EvaluateConfig) -> list[str]:
    chat = chat_format_of(config)
    questions, _ = load_test_set(config.data)
    (ids,) = encode_batch(chat.tokenizer, [prompt_text(questions[0], config, chat)])
    title = f"model ({config.model}), row {questions[0].number}, whose answer is {questions[0].answer!r}"
    return [
        marked_chat(title, ids, chat.tokenizer, [], rest="prompt, which the model continues"),
        _ends(chat, eos_ids(chat.tokenizer, config.model)),
    ]


def sampled_chats(
    row: Row, chat: ChatFormat, ends: tuple[int, ...], titles: Sequence[str], *, tokens: bool = True
) -> list[str]:
    """Both chats, with the row's own trace as the explanation, as if the teacher had written it.

    Args:
      ends: token ids that end a completion; the last ends this one.
      titles: of the teacher's chat and of the student's, or of the teacher's alone.
      tokens: as in `marked_chat`.
    """
    (prompt,) = build_prompts([row], chat, max_prompt_length=ANY_LENGTH).prompts
    completion = trace_completion(row, chat.tags) or explanation_to_completion(NO_TRACE, chat.tags)
    sampled = np.append(encode(chat.tokenizer, completion), ends[-1])
    scored = score_row_from_ids(prompt, sampled, chat, ends)
    written = np.arange(len(prompt.teacher_ids), len(scored.teacher_ids))
    return _scored(scored, chat, ends, titles, written=written, tokens=tokens)


def _scored(
    scored: ScoreRow,
    chat: ChatFormat,
    ends: tuple[int, ...],
    titles: Sequence[str],
    *,
    written: np.ndarray | None = None,
    tokens: bool = True,
) -> list[str]:
    """Both chats of a row; `written` are the positions of the completion, if it was sampled."""
    of_teacher = [Span(scored.teacher_thought, KL_TERM)]
    if written is not None:
        of_teacher = [
            Span(written, "end tag and end of turn: written by the teacher, in the policy loss"),
            Span(scored.teacher_thought, f"{KL_TERM}, which the teacher writes"),
        ]
    of_student = [
        Span(scored.student_thought, KL_TERM),
        Span(scored.solution, "solution: the log-prob of these tokens is rewarded"),
    ]
    sequences = [(scored.teacher_ids, chat.tokenizer, of_teacher), (scored.student_ids, chat.student, of_student)]
    chats = [
        marked_chat(title, ids, tokenizer, spans, rest="not counted", tokens=tokens)
        for title, (ids, tokenizer, spans) in zip(titles, sequences)
    ]
    return [*chats, _ends(chat, ends)]


def _titles(teacher: str, student: str | None) -> list[str]:
    return [f"teacher ({teacher})", *([] if student is None else [f"student ({student})"])]


def _ends(chat: ChatFormat, ends: tuple[int, ...]) -> str:
    return f"a completion ends at: {', '.join(token_text(i, chat.tokenizer) for i in ends)}"
