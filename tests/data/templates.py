"""Chat templates in the shapes that public models have, written for these tests, and tokenizers with their tokens.

qwen2.5      adds a system turn of its own if there is none; the tokenizer's EOS ends a turn
qwen2.5-base the same template, but EOS is `<|endoftext|>`
qwen3        leaves out the thoughts of earlier turns, and writes an empty one into the last
thinking     as qwen3, and the generation prompt opens `<think>` (Qwen3-Thinking, QwQ)
r1-distill   the system prompt without a turn of its own, `<think>` opened, `</think>` and before it left out
llama3       a header per role, texts trimmed, today's date in the system turn, its own end of turn
smollm2      adds a system turn of its own if there is none
gemma        refuses a system turn; the assistant is called model
no-think     the generation prompt writes an empty thought (thinking turned off)
"""

from dataclasses import dataclass
from pathlib import Path

from rlt_jax.data import load_tokenizer

CHATML_TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
QWEN25 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are made-up.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}" + CHATML_TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set text = m.content.split('</think>')[-1].lstrip('\n') %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ text + '<|im_end|>\n' }}"
    "{% else %}" + CHATML_TURN + "{% endif %}{% endfor %}"
)
QWEN3 = _QWEN3 + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
THINKING = _QWEN3 + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
NO_THINK = _QWEN3 + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
R1_DISTILL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
LLAMA3 = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ bos_token }}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | "
    "trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A template, the tokens that it and its tokenizer have, and what must be found in it."""

    template: str
    eos: str  # the tokenizer's
    tokens: tuple[str, ...] = ()  # besides those of the tiny models
    bos: str | None = None
    header: str = "<|im_start|>assistant\n"  # what the assistant's turn begins with
    opened: str = ""
    ending: str = "<|im_end|>\n"
    end: str = "<|im_end|>"
    has_system: bool = True
    missing: str = ""


THINK = ("<think>", "</think>")
SHAPES = {
    "qwen2.5": Shape(QWEN25, "<|im_end|>"),
    "qwen2.5-base": Shape(QWEN25, "<|endoftext|>"),
    "qwen3": Shape(QWEN3, "<|im_end|>", THINK),
    "thinking": Shape(THINKING, "<|im_end|>", THINK, opened="<think>\n"),
    "r1-distill": Shape(
        R1_DISTILL,
        "<｜end▁of▁sentence｜>",
        ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", *THINK),
        bos="<｜begin▁of▁sentence｜>",
        header="<｜Assistant｜>",
        opened="<think>\n",
        ending="<｜end▁of▁sentence｜>",
        end="<｜end▁of▁sentence｜>",
    ),
    "llama3": Shape(
        LLAMA3,
        "<|end_of_text|>",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        ending="<|eot_id|>",
        end="<|eot_id|>",
    ),
    "smollm2": Shape(QWEN25.replace("made-up", "SmolLM"), "<|im_end|>"),
    "gemma": Shape(
        GEMMA,
        "<eos>",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        header="<start_of_turn>model\n",
        ending="<end_of_turn>\n",
        end="<end_of_turn>",
        has_system=False,
    ),
    "no-think": Shape(NO_THINK, "<|im_end|>", THINK, opened="<think>\n\n</think>\n\n"),
    "no-prompt": Shape(_QWEN3, "<|im_end|>", THINK, missing="<|im_start|>assistant\n"),
}


def shaped_tokenizer(shape: Shape, base: Path):
    """The tokenizer of a folder, with the template and the tokens of a shape."""
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(list(shape.tokens))
    tokenizer.eos_token, tokenizer.bos_token = shape.eos, shape.bos
    tokenizer.chat_template = shape.template
    return tokenizer
