"""What a chat template writes around a text, found by rendering it: the one place that knows templates.

    [system turn]  user turn  assistant's header  (opened)  TEXT  ending

The assistant's turn belongs to the caller: what a template begins it with for the model (`opened`: the `<think>` of
R1-Distill, QwQ or Qwen3-Thinking) is left out, so that no tag is opened twice and nothing stands in an open block. What
the template writes after an assistant's text (`ending`) is what fine-tuning teaches, and its end token is among those
that end a completion.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from rlt_jax.data.rendering import Message, TemplateRefused, renderer_of
from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SYSTEM, USER, ANSWER, LATER = (
    f"(the {name} stands here)" for name in ("prompt", "question", "answer", "next question")
)
THOUGHT_TAGS = {  # start tag of a thought -> end tag, of whatever model
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning")},
    "[THINK]": "[/THINK]",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
THOUGHT_START, THOUGHT_END = (
    re.compile("|".join(map(re.escape, tags)), re.IGNORECASE) for tags in (THOUGHT_TAGS, THOUGHT_TAGS.values())
)
GAP = "\n\n"  # between system prompt and question where the template has no system turn
TODAY = "26 Jul 2024"  # for templates that write the date (Llama 3), so that prompts are the same every day


@dataclass(frozen=True)
class Turns:
    """What a template writes around an assistant's text. Made by `turns_of`."""

    has_system: bool  # False: it has no system turn; the system prompt then begins the user's
    prompts: bool  # whether it has a generation prompt
    missing: str  # what stands before an assistant's text but not in the generation prompt; mostly empty
    opened: str  # what it begins the assistant's text with, such as "<think>\n"; mostly empty
    ending: str  # what follows the assistant's text, such as "<|im_end|>\n"
    end_id: int | None  # the token in `ending` that ends the turn; None: it has none, as in "\n"


@lru_cache(maxsize=8)
def turns_of(tokenizer: "PreTrainedTokenizerFast") -> Turns:
    """Render the template with known texts, and see what stands around them.

    Raises:
      UserError: the template leaves out, repeats or reorders the system prompt, the question or the answer, or it
        takes more time or memory than it may.
    """
    has_system = _has_system_turn(tokenizer)
    asked = [*([_message("system", SYSTEM)] if has_system else []), _message("user", USER)]
    answered = [*asked, _message("assistant", ANSWER)]
    begun = _after_question(_render(tokenizer, asked, generate=True))
    finished = _render(tokenizer, answered, generate=False)
    if finished.count(ANSWER) != 1:
        raise UserError(
            "expected a chat template that writes the assistant's text, once, but this one writes it "
            f"{finished.count(ANSWER)} times: use the model's own template"
        )
    try:  # of an earlier turn, whose thoughts templates leave out
        earlier = _render(tokenizer, [*answered, _message("user", LATER)], generate=False)
    except TemplateRefused:
        earlier = finished
    before = _after_question(earlier).partition(ANSWER)[0]
    header = _common_start(begun, before)
    missing = _without_thought(before[len(header) :]) if header == begun else ""
    header = _without_thought(header)
    opened = begun[len(header) :]
    ending = finished.rpartition(ANSWER)[2]
    return Turns(
        has_system=has_system,
        prompts=begun != _after_question(_render(tokenizer, asked, generate=False)),
        missing=missing if missing.strip() else "",
        opened=opened if opened.strip() else "",
        ending=ending,
        end_id=_end_id(tokenizer, ending),
    )


def template_notes(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Where our chats depart from the template, one sentence each; mostly none."""
    turns, notes = turns_of(tokenizer), []
    if turns.opened:
        notes.append(
            f"the chat template begins the assistant's turn with {turns.opened!r}, which is left out where the tags of "
            "a thought, a solution or an explanation begin it"
        )
    if turns.missing:
        notes.append(
            f"the chat template's generation prompt lacks {turns.missing!r}, which it writes before an assistant's "
            "text: it is added"
        )
    if not turns.has_system:
        notes.append("the chat template has no system turn: the system prompt begins the user's, before the question")
    return notes


def end_of_turn(tokenizer: "PreTrainedTokenizerFast") -> str:
    """What the chat template writes after an assistant's text, e.g. `<|im_end|>` and a newline."""
    return turns_of(tokenizer).ending


def chat_text(tokenizer: "PreTrainedTokenizerFast", system: str | None, question: str, *, own_opening: bool) -> str:
    """The chat up to where the assistant writes; arguments as `chat_texts`, for one chat."""
    return chat_texts(tokenizer, [(system, question)], own_opening=own_opening)[0]


def chat_texts(
    tokenizer: "PreTrainedTokenizerFast", asked: Sequence[tuple[str | None, str]], *, own_opening: bool
) -> list[str]:
    """Chats up to where the assistant writes; quicker than one at a time.

    Args:
      asked: system prompt and question of each. None as the system prompt: what the template has without one.
      own_opening: keep what the template begins the assistant's text with, as for a model that is asked in its own
        way; else the caller begins it.
    """
    turns = turns_of(tokenizer)
    chats = []
    for system, question in asked:
        if system is None:
            chats.append([_message("user", question)])
        elif turns.has_system:
            chats.append([_message("system", system), _message("user", question)])
        else:
            chats.append([_message("user", system + GAP + question)])
    texts = _render_all(tokenizer, chats, generate=True)
    if own_opening:
        return texts if turns.prompts else [text + turns.missing for text in texts]
    return [text.removesuffix(turns.opened) + turns.missing for text in texts]


def _has_system_turn(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the template takes a system prompt; checks that prompt and question appear, once and in this order."""
    refused = None
    try:
        text = _render(tokenizer, [_message("system", SYSTEM), _message("user", USER)], generate=True)
    except TemplateRefused as error:
        refused, text = error, ""
    if text.count(SYSTEM) == text.count(USER) == 1 and text.index(SYSTEM) < text.index(USER):
        return True
    if SYSTEM not in text:
        try:
            if _render(tokenizer, [_message("user", USER)], generate=True).count(USER) == 1:
                return False
        except TemplateRefused:
            pass
    if refused is not None:
        raise refused
    raise UserError(
        f"expected a chat template that writes the system prompt and then the question, each once, but this one writes "
        f"{text.count(SYSTEM)} and {text.count(USER)}{' in the other order' * (SYSTEM in text and USER in text)}: use "
        "the model's own template"
    )


def _common_start(one: str, other: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


def _without_thought(text: str) -> str:
    tag = THOUGHT_START.search(text)
    return text[: tag.start()] if tag else text


def _after_question(text: str) -> str:
    return text.partition(USER)[2]


def _end_id(tokenizer: "PreTrainedTokenizerFast", ending: str) -> int | None:
    """The first token of `ending` that is not ordinary text."""
    added = tokenizer.added_tokens_decoder
    ids = tokenizer(ending, add_special_tokens=False)["input_ids"]
    return next((int(i) for i in ids if i in added), None)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _render(tokenizer: "PreTrainedTokenizerFast", messages: list[Message], *, generate: bool) -> str:
    return _render_all(tokenizer, [messages], generate=generate)[0]


def _render_all(tokenizer: "PreTrainedTokenizerFast", chats: list[list[Message]], *, generate: bool) -> list[str]:
    """Each chat as the template writes it."""
    if not chats:
        return []
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, none of them the default
        raise UserError(
            f"expected one chat template, or one called default, but: {error}: keep one in chat_template.jinja"
        ) from None
    variables = {**tokenizer.special_tokens_map, "date_string": TODAY}
    return renderer_of(template, variables, file=_template_file(tokenizer)).render(chats, generate=generate)


def _template_file(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Where its template comes from, for messages."""
    folder = Path(tokenizer.name_or_path)
    named = [folder / name for name in ("chat_template.jinja", "tokenizer_config.json")]
    return str(next((file for file in named if file.is_file()), folder))
