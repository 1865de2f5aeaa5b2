"""What a fine-tuned model writes: texts sampled at the end of a supervised run, and how many of them close their tags.

The loss alone does not say whether a model has learned to stop: a teacher whose explanations never end is useless for
RLT, and its loss may look fine. Texts are sampled as training samples them (temperature 0.7), with fixed seeds.
"""

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlt_jax.configs import SftConfig
from rlt_jax.data import (
    ChatFormat,
    Tags,
    build_prompts,
    encode_batch,
    ids_to_bytes,
    known_ids,
    score_row_from_ids,
    student_sft_parts,
    teacher_sft_parts,
)
from rlt_jax.data.sft_text import Target
from rlt_jax.device.backoff import MemoryBackoff
from rlt_jax.disk import replace_file
from rlt_jax.errors import UserError
from rlt_jax.models import Model, Params
from rlt_jax.report.folder import writing_to
from rlt_jax.report.step_lines import iter_lines, read_lines
from rlt_jax.report.writer import METRICS_FILE
from rlt_jax.sampling.factory import sample_request
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.types import Completion, Prompt, Row, SamplingParams

log = logging.getLogger("rlt_jax")

CHECK_FILE = "check.json"  # in the run folder
BATCH = 8  # texts sampled at one time
TEMPERATURE = 0.7  # that of training and of `generate`
READY = 7 / 8  # share of closed texts from which on the model can be used
SHOWN = 160  # characters of the example
LAST_LOSSES = 5  # steps over which the last loss is a mean
BY_HEART = 0.01  # nats per token: the rows are known by heart


class Question(NamedTuple):
    """A row that a text is sampled for."""

    row: Row
    prompt_ids: np.ndarray  # i32[P]
    answer: int  # tokens of the row's own text
    prompt: Prompt | None  # the teacher's; None for a student


@dataclass(frozen=True)
class TextCheck:
    """What came out, as the run folder's check.json keeps it."""

    step: int  # of the model
    drawn: int  # texts
    closed: int  # of these, ended by themselves and with all tags closed
    cut_off: int  # of these, still going on at max_tokens
    max_tokens: int
    example: str  # the first text

    def metrics(self) -> dict[str, float]:
        """For metrics.jsonl; docs/metrics.md explains them."""
        return {"check/matched": self.closed / self.drawn, "check/finished": 1 - self.cut_off / self.drawn}


def questions_to_check(rows: Sequence[Row], chat: ChatFormat, *, target: Target, count: int) -> tuple[Question, ...]:
    """At most `count` of the rows, evenly spread over them, with what the model is to continue; () if none can be used.

    Args:
      rows: with a reasoning trace.
    """
    places = sorted({int(place) for place in np.linspace(0, len(rows) - 1, min(count, len(rows)))}) if rows else []
    chosen: Sequence[tuple[Row, Prompt | None]] = [(rows[place], None) for place in places]
    if target == "teacher" and chosen:
        longest = 2**31  # the rows fit, as they were trained on
        try:
            prompts = build_prompts([row for row, _ in chosen], chat, max_prompt_length=longest).prompts
        except UserError as error:
            log.warning("no texts will be drawn to check the model: %s", error)
            return ()
        chosen = [(prompt.row, prompt) for prompt in prompts]
    parts = (teacher_sft_parts if target == "teacher" else student_sft_parts)([row for row, _ in chosen], chat)
    tokenizer = chat.tokenizer if target == "teacher" else chat.student
    prompt_ids = encode_batch(tokenizer, [prompt for prompt, _ in parts])
    answers = encode_batch(tokenizer, [answer for _, answer in parts])
    return tuple(
        Question(row, ids, len(answer), prompt)
        for (row, prompt), ids, answer in zip(chosen, prompt_ids, answers, strict=True)
    )


def check_texts(
    questions: Sequence[Question],
    model: Model,
    params: Params,
    chat: ChatFormat,
    *,
    eos_ids: tuple[int, ...],
    backoff: MemoryBackoff,
    seed: int,
    step: int,
    on_progress: Callable[[int], None] | None = None,
) -> TextCheck:
    """Sample a text for each question with the native sampler, and count those that close their tags.

    A text may be half as long again as the longest of these rows' own, plus 32 tokens, as far as the model's positions
    go.

    Args:
      questions: one or more.
      step: of the parameters.
    """
    room = model.config.max_positions - max(len(question.prompt_ids) for question in questions)
    max_tokens = min(max(question.answer for question in questions) * 3 // 2 + 32, room)
    requests = [sample_request(q.prompt_ids, seed=seed, row=q.row.number, samples=range(1)) for q in questions]
    sampling = SamplingParams(max_tokens=max_tokens, temperature=TEMPERATURE)
    sampler = NativeSampler(model, params, eos_ids=eos_ids, token_ids=known_ids(chat.tokenizer), max_batch=BATCH)
    groups = backoff.run(
        "generate",
        lambda sizes: sampler.generate(requests, sampling, max_batch=sizes.generate, on_progress=on_progress),
    )
    texts = [completion for (completion,) in groups]
    sampler.close()
    return TextCheck(
        step=step,
        drawn=len(texts),
        closed=sum(is_closed(question, text, chat, eos_ids) for question, text in zip(questions, texts, strict=True)),
        cut_off=sum(not text.finished for text in texts),
        max_tokens=max_tokens,
        example=_text_of(texts[0], chat, eos_ids),
    )


def is_closed(question: Question, text: Completion, chat: ChatFormat, eos_ids: tuple[int, ...]) -> bool:
    """Whether a text ended by itself and closes its tags: a teacher's explanation, or a student's thought and solution.

    A teacher's is judged as in training (`score_row_from_ids`).
    """
    if not text.finished:
        return False
    if question.prompt is not None:
        return score_row_from_ids(question.prompt, text.token_ids, chat, eos_ids).matched
    return closes_answer(_text_of(text, chat, eos_ids), chat.tags)


def closes_answer(text: str, tags: Tags) -> bool:
    """Whether a student's text has thought and solution, each between its tags, in this order."""
    place = 0
    for tag in (tags.thought_start, tags.thought_end, tags.solution_start, tags.solution_end):
        found = text.find(tag, place)
        if found < 0:
            return False
        place = found + len(tag)
    return True


def save_check(folder: Path, check: TextCheck) -> None:
    """Write the run folder's check.json."""
    with writing_to(folder):
        replace_file(folder / CHECK_FILE, json.dumps(asdict(check), indent=2) + "\n")


def is_in_metrics(folder: Path, check: TextCheck) -> bool:
    """Whether metrics.jsonl has a line of such a check already."""
    names = check.metrics().keys()
    return any(line["step"] == check.step and names <= line.keys() for line in iter_lines(folder / METRICS_FILE))


def read_check(folder: Path, *, step: int) -> TextCheck | None:
    """The check of the model of this step; None if there was none."""
    try:
        check = TextCheck(**json.loads((folder / CHECK_FILE).read_text(encoding="utf-8")))
        counts = (check.step, check.drawn, check.closed, check.cut_off, check.max_tokens)
        whole = all(type(count) is int for count in counts) and check.drawn > 0 and type(check.example) is str
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return check if whole and check.step == step else None


def describe_check(check: TextCheck, config: SftConfig, folder: Path) -> tuple[str, bool]:
    """(how many texts close their tags, and what follows from that; whether the model can be used).

    Args:
      config: of the run, with the values that were open.
    """
    kind = "explanations" if config.target == "teacher" else "answers"
    problems = []
    if check.cut_off:
        problems.append(f"{check.cut_off} cut off after {check.max_tokens} tokens")
    if without := check.drawn - check.closed - check.cut_off:
        problems.append(f"{without} ended without {'the tag' if config.target == 'teacher' else 'the tags'}")
    why = f" ({', '.join(problems)})" if problems else ""
    text = f"{check.closed} of {check.drawn} drawn {kind} close their tags{why}: "
    ready = check.closed >= READY * check.drawn
    if ready:
        text += f"the {config.target} is ready for rlt_jax.{'train' if config.target == 'teacher' else 'evaluate'}"
    else:
        assert config.learning_rate is not None  # filled in by `Schedule.apply`
        text += (
            f"train longer (the same command with {_twice_as_long(config, check.step)}) or at a higher learning rate "
            f"(--learning-rate {float(f'{3 * config.learning_rate:.1e}'):g} and another --output-dir)"
        )
    losses = [line["loss"] for line in read_lines(folder / METRICS_FILE) if line.get("loss") is not None]
    if losses:
        first, last = losses[0], float(np.mean(losses[-LAST_LOSSES:]))
        text += f"; the loss {'fell' if last < first else 'went'} from {first:.3g} to {last:.3g}"
        if last < BY_HEART and config.target == "teacher":
            text += (
                ": it knows the rows by heart and will explain each the same way every time, which leaves RLT "
                f"nothing to choose from: train less ({_half_as_long(config, check.step)} and another --output-dir)"
            )
    return text, ready


def shortened(text: str) -> str:
    """A text in one line of at most SHOWN characters, its blanks and line breaks as single blanks."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 4] + " ..."


def next_command(config: SftConfig, model: Path) -> str:
    """The command that usually comes next, with words in capitals to fill in; prompt and tags are in the folder."""
    if config.target == "student":
        return f"python -m {shlex.join(['rlt_jax.evaluate', '--model', str(model)])} --data.path QUESTIONS --out FILE"
    data = config.data
    columns = {"question": data.question_column, "solution": data.solution_column, "trace": data.trace_column}
    named = [word for part, column in columns.items() if column for word in (f"--data.{part}-column", column)]
    words = ["rlt_jax.train", "--preset", "PRESET", "--teacher", str(model), "--student", "STUDENT"]
    return f"python -m {shlex.join([*words, '--data.path', data.path, *named, '--output-dir', 'FOLDER'])}"


def _twice_as_long(config: SftConfig, steps: int) -> str:
    """Flags that double a run."""
    if config.max_steps is not None:
        return f"--max-steps {2 * steps}"
    assert config.num_train_epochs is not None  # filled in by `Schedule.apply`
    return f"--num-train-epochs {2 * config.num_train_epochs}"


def _half_as_long(config: SftConfig, steps: int) -> str:
    """Flags that halve a run."""
    if config.num_train_epochs is not None and config.num_train_epochs > 1:
        return f"--num-train-epochs {config.num_train_epochs // 2}"
    return f"--max-steps {max(steps // 2, 1)}"


def _text_of(text: Completion, chat: ChatFormat, eos_ids: tuple[int, ...]) -> str:
    """What was written, without the end of the turn."""
    ids = [i for i in map(int, text.token_ids) if i not in eos_ids]
    return b"".join(ids_to_bytes(chat.tokenizer, ids)).decode(errors="replace")
