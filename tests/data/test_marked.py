"""A chat cut into the parts that count and those that do not."""

import numpy as np

from rlt_jax.data import encode
from rlt_jax.data.marked import Span, marked_chat, token_text


def test_parts_hold_their_text_and_tokens(tokenizer):
    ids = encode(tokenizer, "Two and three\nmake five.<|im_end|>")
    spans = [Span(np.arange(2, 4), "counted"), Span(np.array([len(ids) - 1]), "the end")]
    lines = marked_chat("A chat", ids, tokenizer, spans, rest="nothing").split("\n")
    assert lines[0] == f"A chat, {len(ids)} tokens"
    heads = [line for line in lines if line[:4] in ("  | ", "  > ")]
    assert heads == [
        "  | 2 tokens, nothing",
        "  > 2 tokens, counted",
        f"  | {len(ids) - 5} tokens, nothing",
        "  > 1 token, the end",
    ]
    assert lines[-2:] == ["    > <|im_end|>", "      999 '<|im_end|>'"]
    counted = lines.index("  > 2 tokens, counted")
    assert lines[counted + 1] == "    > " + tokenizer.decode(ids[2:4]).lstrip("\n")


def test_every_token_is_shown_once_with_its_id(tokenizer):
    ids = encode(tokenizer, "a  b\n\n" * 40 + "✓")
    shown = marked_chat("A chat", ids, tokenizer, [], rest="nothing")
    tokens = " ".join(line.strip() for line in shown.split("\n") if line.startswith("      "))
    expected = "  ".join(token_text(int(i), tokenizer) for i in ids)
    assert " ".join(tokens.split()) == " ".join(expected.split())
    assert max(map(len, shown.split("\n"))) <= 120
