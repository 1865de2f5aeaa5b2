"""Prompts from rows: which rows can be used is decided before a run, each prompt is built when it is asked for.

Departures from the original:
- A prompt that is too long is skipped and counted; `truncate=True` truncates it on the left, as the original does.
  Truncation removes the system prompt, then the question, then the solution, which makes the reward meaningless.
- A solution all of whose tokens hold a piece of a tag is skipped: it has no log-prob of its own.
- A question or solution that forges a tag of the chat is skipped (`forged.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from rlt_jax.data.chat_format import ChatFormat, student_closing_text, student_prefix_texts, teacher_prompt_texts
from rlt_jax.data.encoding import encode_batch
from rlt_jax.data.forged import forged_problem
from rlt_jax.data.lazily import Lazily
from rlt_jax.data.lengths import LONGEST_REMEMBERED, MOST_REMEMBERED, UNKNOWN, Length, counter_of
from rlt_jax.data.rows import describe_skipped
from rlt_jax.data.spans import NO_SOLUTION_TOKEN, closing_tokens
from rlt_jax.errors import UserError
from rlt_jax.types import Prompt, Row

MOST_ROWS = 1024  # that are decided together,
MOST_CHARACTERS = 2**22  # or rows of so many characters


@dataclass(frozen=True)
class BuiltPrompts:
    """The prompts of a run, and why the other rows were skipped."""

    rows: tuple[Row, ...]  # of the prompts
    prompts: Lazily[Row, Prompt]  # each formatted and tokenised at every access
    skipped: tuple[tuple[int, str], ...]  # (row number, reason)


@dataclass(frozen=True)
class Room:
    """The lengths that the models of a run were made for, and the longest completion, tokens."""

    completion: int
    teacher: int  # positions of the teacher, and of the reference if it has fewer
    student: int | None  # None: nothing is scored


def build_prompts(
    rows: Sequence[Row],
    chat: ChatFormat,
    *,
    max_prompt_length: int,
    truncate: bool = False,
    room: Room | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> BuiltPrompts:
    """Choose the rows that can be used, and format and tokenise each of them when it is asked for.

    Skipped are rows that are too long, forge a tag of the chat, or whose solution has no token of its own.

    Args:
      max_prompt_length: maximum length of the teacher's prompt, tokens.
      truncate: truncate a longer prompt's `teacher_ids` on the left instead of skipping it; `teacher_text` stays whole.
      room: skip rows that could exceed the positions of a model if their completion is as long as it may be. None:
        nothing is known of the models.
      on_progress: called with the number of rows that are decided.
    Raises:
      UserError: no row can be used. A prompt raises it when it is built if it is not what was found here.
    """
    limits = _Limits(max_prompt_length, truncate, room)
    usable, skipped, lengths = [], [], []
    own_tokens: dict[str, bool] = {}
    for batch in row_batches(rows):
        teachers = _teacher_lengths(batch, chat, limits)
        rest = [row for row, length in zip(batch, teachers) if not limits.exceeded_by_prompt(length)]
        students = iter(_student_lengths(rest, chat, limits))
        owned = iter(_have_own_tokens([row.solution for row in rest], chat, own_tokens))
        for row, teacher in zip(batch, teachers):
            if limits.exceeded_by_prompt(teacher):
                problem: str | None = _too_long(teacher, limits)
            else:
                problem = _problem(row, limits, teacher=teacher, student=next(students), own_token=next(owned))
            problem = forged_problem(row, chat) or problem
            if problem is None:
                usable.append(row)
            else:
                skipped.append((row.number, problem))
                lengths.append(teacher)
        on_progress(len(usable) + len(skipped))
    if not usable:
        raise UserError(_none_fits(skipped, _shortest(rows, lengths, chat)))
    prompts = Lazily(tuple(usable), partial(_prompts, chat=chat, limits=limits))
    return BuiltPrompts(tuple(usable), prompts, tuple(skipped))


def teacher_texts(rows: Sequence[Row], chat: ChatFormat) -> Iterator[str]:
    """The `teacher_text` of each row's prompt, which is not tokenised."""
    for batch in row_batches(rows):
        yield from teacher_prompt_texts([(row.question, row.solution) for row in batch], chat)


def row_batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows in order, in lists that are decided together: many short rows, or a few long ones."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.question) + len(row.solution) + len(row.reasoning_trace or "") + len(row.system or "")
        if len(batch) == MOST_ROWS or size > MOST_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class _Limits:
    """The lengths that a row must keep, tokens."""

    prompt: int
    truncate: bool
    room: Room | None

    def exceeded_by_prompt(self, length: Length) -> bool:
        """Whether the teacher's prompt is too long, however long its completion."""
        return not self.truncate and length.low > self.prompt

    def of_teacher(self) -> list[int]:
        limits = [] if self.truncate else [self.prompt]
        return limits if self.room is None else [*limits, self.room.teacher - self.room.completion]

    def of_student(self) -> list[int]:
        if self.room is None or self.room.student is None:
            return []
        return [self.room.student - self.room.completion]


def _teacher_lengths(rows: Sequence[Row], chat: ChatFormat, limits: _Limits) -> list[Length]:
    """Lengths of the teacher's prompts, before they are truncated."""
    texts = teacher_prompt_texts([(row.question, row.solution) for row in rows], chat)
    return counter_of(chat.tokenizer).lengths([(text,) for text in texts], limits.of_teacher())


def _student_lengths(rows: Sequence[Row], chat: ChatFormat, limits: _Limits) -> list[Length]:
    """Lengths of the student's chats without the explanation; nothing is known of them if nothing limits them."""
    if not limits.of_student():
        return [Length(0, UNKNOWN)] * len(rows)
    prefixes = student_prefix_texts([(row.question, row.system) for row in rows], chat)
    closings = [student_closing_text(row.solution, chat) for row in rows]
    return counter_of(chat.student).lengths(list(zip(prefixes, closings)), limits.of_student())


def _have_own_tokens(solutions: Sequence[str], chat: ChatFormat, known: dict[str, bool]) -> list[bool]:
    """Whether each solution has a token of its own in the student's chat; `known` keeps the answers for short ones."""
    counter = counter_of(chat.student)
    answers = {text: True for text in solutions if text not in known and counter.has_own_token(text)}
    unknown = list(dict.fromkeys(text for text in solutions if text not in answers and text not in known))
    answers |= {text: len(own) > 0 for text, (_, own) in zip(unknown, closing_tokens(unknown, chat))}
    found = [answers[text] if text in answers else known[text] for text in solutions]
    for text in unknown[: max(MOST_REMEMBERED - len(known), 0)]:
        if len(text) <= LONGEST_REMEMBERED:
            known[text] = answers[text]
    return found


def _prompts(rows: Sequence[Row], chat: ChatFormat, limits: _Limits) -> list[Prompt]:
    """Format and tokenise rows that were found usable.

    Raises:
      UserError: one is not.
    """
    texts = teacher_prompt_texts([(row.question, row.solution) for row in rows], chat)
    prefixes = student_prefix_texts([(row.question, row.system) for row in rows], chat)
    teacher_ids = encode_batch(chat.tokenizer, texts)
    student_ids = encode_batch(chat.student, prefixes)
    solution_ids = encode_batch(chat.tokenizer, [row.solution for row in rows])
    closings = closing_tokens([row.solution for row in rows], chat)
    prompts = []
    for i, row in enumerate(rows):
        closing_ids, solution = closings[i]
        teacher, student = Length.exact(len(teacher_ids[i])), Length.exact(len(student_ids[i]) + len(closing_ids))
        if limits.exceeded_by_prompt(teacher):
            raise changed_since(row, _too_long(teacher, limits))
        problem = _problem(row, limits, teacher=teacher, student=student, own_token=len(solution) > 0)
        if problem is not None:
            raise changed_since(row, problem)
        prompts.append(
            Prompt(
                row=row,
                teacher_text=texts[i],
                teacher_ids=teacher_ids[i][-limits.prompt :] if limits.truncate else teacher_ids[i],
                student_text=prefixes[i],
                student_prefix_ids=student_ids[i],
                closing_ids=closing_ids,
                closing_solution=solution,
                solution_ids=solution_ids[i],
            )
        )
    return prompts


def changed_since(row: Row, problem: str) -> UserError:
    """What to say of a row that fitted when its length was bounded, and does not now that it is tokenised."""
    return UserError(
        f"row {row.number}: {problem}, but it was found to fit when the run started: expected the tokenizer and its "
        "chat template to stay as they were loaded: leave both unchanged, or leave out the row"
    )


def _shortest(rows: Sequence[Row], lengths: Sequence[Length], chat: ChatFormat) -> int | None:
    """Index of the first row with the shortest prompt; `lengths` may be bounds."""
    if not rows:
        return None
    most = min(length.high for length in lengths)
    candidates = [i for i, length in enumerate(lengths) if length.low <= most]
    texts = teacher_prompt_texts([(rows[i].question, rows[i].solution) for i in candidates], chat)
    counts = counter_of(chat.tokenizer).counts(texts)
    return candidates[min(range(len(candidates)), key=counts.__getitem__)]


def _none_fits(skipped: Sequence[tuple[int, str]], shortest: int | None) -> str:
    """What to say if no row can be used; `shortest` indexes the row with the shortest prompt."""
    if shortest is None:
        return "expected rows, but there are none: give rows with question and solution"
    number, reason = skipped[shortest]
    return (
        f"expected rows whose prompt fits, but none of {len(skipped)} does: {describe_skipped(skipped)}; the shortest "
        f"is row {number}: {reason}: raise max_prompt_length, lower max_completion_length, or give shorter rows"
    )


def _too_long(length: Length, limits: _Limits) -> str:
    return f"prompt is too long ({length} tokens, at most {limits.prompt})"


def _problem(row: Row, limits: _Limits, *, teacher: Length, student: Length, own_token: bool) -> str | None:
    """Why a row whose prompt is not too long is skipped; None if it can be used.

    Args:
      teacher: of its prompt, before it is truncated.
      student: of the student's chat without the explanation.
      own_token: whether the solution has one.
    """
    length = teacher.cut(limits.prompt) if limits.truncate else teacher
    room = limits.room
    if not own_token:
        return f"{NO_SOLUTION_TOKEN} ({row.solution!r})"
    if room is None:
        return None
    if length.low + room.completion > room.teacher:
        return (
            f"prompt and completion exceed the teacher's positions ({length} + {room.completion} tokens, at most "
            f"{room.teacher})"
        )
    if room.student is not None and student.low + room.completion > room.student:
        return (
            f"chat and explanation exceed the student's positions ({student} + {room.completion} tokens, at most "
            f"{room.student})"
        )
    return None
