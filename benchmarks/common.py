"""What several benchmarks share: models and rows of a given shape, and the table of figures at the end."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from rlt_jax.data import ChatFormat, build_prompts
from rlt_jax.types import Row

TINY = Path(__file__).resolve().parents[1] / "rlt_jax" / "assets" / "tiny" / "teacher"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

QWEN_7B = {  # config.json
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "use_sliding_window": False,
    "vocab_size": 152064,
    "torch_dtype": "bfloat16",
}


def print_figures(figures: Mapping[str, object]) -> None:
    """Print figures as a Markdown table."""
    print("\n| figure | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |")


def write_rows(file: Path, chat: ChatFormat, tokens: int, count: int) -> None:
    """Write distinct questions whose prompts have exactly `tokens` tokens each."""

    def length(question: str) -> int:
        row = Row(0, question, "57", None, None)
        (prompt,) = build_prompts([row], chat, max_prompt_length=10**9).prompts
        return len(prompt.teacher_ids)

    lines = []
    for i in range(count):
        question = f"{i}."
        while (missing := tokens - length(question)) > 0:
            question += "+" * max(missing // 2, 1)  # each adds at most one token
        if missing < 0:
            raise SystemExit(
                f"--prompt {tokens}: expected at least {tokens - missing} tokens, as the shortest prompt has: raise it"
            )
        lines.append(json.dumps({"question": question, "solution": "57"}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def make_model(folder: Path, *, layers: int = 28) -> None:
    """Write a folder with random weights of Qwen2.5-7B's shape, with so many of its layers."""
    from rlt_jax.models import init_model, save_model

    scratch = folder.with_name(folder.name + "-config")
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "config.json").write_text(json.dumps(QWEN_7B | {"num_hidden_layers": layers}))
    save_model(folder, *init_model(scratch, 0, dtype="bfloat16"))
    write_tokenizer(folder, vocab_size=QWEN_7B["vocab_size"])


def write_tokenizer(folder: Path, *, vocab_size: int) -> list[int]:
    """Write the tiny models' tokenizer, with a token for every row of the embedding: vLLM can exclude few ids.

    Returns:
      The ids of its special tokens.
    """
    for file in TOKENIZER:
        if (TINY / file).is_file():
            shutil.copyfile(TINY / file, folder / file)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary |= special  # else they get ids after all others, when the file is read
    known = set(vocabulary.values())
    vocabulary |= {f"filler{i}": i for i in range(vocab_size) if i not in known}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return list(special.values())
