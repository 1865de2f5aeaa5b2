"""Write docs/chats.md: the chats of one row under chat templates in the shapes of public models.

python scripts/make_chat_docs.py            rewrite the page
python scripts/make_chat_docs.py --check    change nothing, exit with 1 if it is out of date

The templates are those of tests/data/templates.py; the tokens are those of the package's tiny tokenizer.
"""

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from rlt_jax.data import R1, ChatFormat, eos_ids, template_notes  # noqa: E402
from rlt_jax.runs.chats import sampled_chats  # noqa: E402
from rlt_jax.types import Row  # noqa: E402
from tests.data.templates import SHAPES, shaped_tokenizer  # noqa: E402

DOCUMENT = REPOSITORY / "docs" / "chats.md"
BASE = REPOSITORY / "rlt_jax" / "assets" / "tiny" / "teacher"
ROW = Row(0, "What is 2+3?", "5", "Two and three make five.", None)
SHOWN = {
    "qwen2.5": "Qwen2.5, chat models",
    "qwen2.5-base": "Qwen2.5, base models",
    "qwen3": "Qwen3",
    "thinking": "Qwen3-Thinking and QwQ",
    "r1-distill": "R1-Distill",
    "llama3": "Llama 3",
    "smollm2": "SmolLM2",
    "gemma": "templates without a system turn",
}
WHY = {
    "qwen2.5": "The template's own system turn is replaced by ours.",
    "qwen2.5-base": "The tokenizer's EOS is `<|endoftext|>`, but a turn ends with `<|im_end|>`: fine-tuning teaches\n"
    "the second, and a completion ends at either.",
    "qwen3": "The template leaves out the thoughts of earlier turns and puts an empty one into the last. The\n"
    "assistant's text is not passed through it, so nothing is lost or added.",
    "thinking": "The generation prompt opens `<think>`, which is left out: the student's thought is opened once, and\n"
    "the teacher's solution does not stand inside of one.",
    "r1-distill": "As above; the system prompt has no tags around it.",
    "llama3": "Texts are trimmed; the date in the system turn is always the same.",
    "smollm2": "The template's own system turn is replaced by ours.",
    "gemma": "The system prompt begins the user's turn.",
}

HEAD = """\
# Chats under public models' templates

What teacher and student read for the row *What is 2+3?*, solution *5*, explanation *Two and three make five.*, with
`--data.tags r1` and short system prompts. Lines with `>` are counted, those with `|` are not. The templates are written
after those of public models (`tests/data/templates.py`). Add `--show-chat` to a command to see the chats of your own
models, with their tokens: `python -m rlt_jax.plan --preset mono85 --show-chat`.

This page is written by `python scripts/make_chat_docs.py`."""


def page() -> str:
    """The whole document."""
    lines = [HEAD]
    for name, title in SHOWN.items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", WHY[name], ""]
        lines += [f"    {line}".rstrip() for line in shown(name).split("\n")]
    return "\n".join(lines) + "\n"


def shown(name: str) -> str:
    """Both chats under a template, its end tokens, and what the log says of it."""
    tokenizer = shaped_tokenizer(SHAPES[name], BASE)
    chat = ChatFormat(tokenizer, R1, "Teach.", "Solve.")
    chats = sampled_chats(ROW, chat, eos_ids(tokenizer, BASE), ("teacher", "student"), tokens=False)
    return "\n".join([*chats, *(f"log: {note}" for note in template_notes(tokenizer))])


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        DOCUMENT.write_text(page(), encoding="utf-8")
    elif not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != page():
        raise SystemExit("docs/chats.md is out of date: run `python scripts/make_chat_docs.py`")


if __name__ == "__main__":
    main()
