"""Compare a model folder's logits and greedy text with those of transformers, both in float32 on this machine.

    python benchmarks/check_logits.py --model DIR --data rows.jsonl [--exact] [--same-as DIR]

The texts are the data's rows (question and solution, in the model's chat format if it has one), batched with left
padding; greedy text continues the first questions. Prints a table, and exits with 1 if a number is out of bounds.
Logits of a large model differ by rounding alone: --exact also shows how far both are from those that transformers
computes in float64, row by row.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rlt_jax.data.tokenizer import load_tokenizer
from rlt_jax.errors import UserError, command
from rlt_jax.models import Model, load_model


@command
def main() -> None:
    """Compare logits and greedy text as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, with its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file with `question` and `solution`")
    parser.add_argument("--texts", type=int, default=16, help="rows whose logits to compare")
    parser.add_argument("--batch", type=int, default=4, help="rows per padded batch")
    parser.add_argument("--prompts", type=int, default=3, help="questions to continue greedily")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each greedy continuation")
    parser.add_argument("--atol", type=float, default=1e-3, help="largest allowed difference between two logits")
    parser.add_argument("--exact", action="store_true", help="also compare both with transformers in float64")
    parser.add_argument("--same-as", type=Path, help="folder of a model that computes the same: compare with ours, too")
    args = parser.parse_args()
    rows = read_rows(args.data, max(args.texts, args.prompts))
    tokenizer = load_tokenizer(args.model)
    oracle = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, trust_remote_code=False).eval()
    model, params = load_model(args.model, dtype="float32")

    exact = (
        AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float64, trust_remote_code=False).eval()
        if args.exact
        else None
    )
    twin = load_model(args.same_as, dtype="float32") if args.same_as else None

    passed = True
    heads = ("rows", "tokens", "max |logit|", "max abs diff", "argmax equal")
    heads += ("ours - exact", "theirs - exact") if exact else ()
    heads += ("ours - twin",) if twin else ()
    print("  ".join(f"{head:>14}" for head in heads))
    sequences = [tokenizer(as_text(tokenizer, row, with_solution=True))["input_ids"] for row in rows[: args.texts]]
    for start in range(0, len(sequences), args.batch):
        batch = sequences[start : start + args.batch]
        ours, theirs = our_logits(model, params, batch), their_logits(oracle, batch)
        difference = largest_difference(ours, theirs)
        passed &= difference <= args.atol
        agreement = (ours.argmax(-1) == theirs.argmax(-1)).mean()
        cells = [f"{start}-{start + len(batch) - 1}", f"{len(ours)}", f"{np.abs(theirs).max():.2f}"]
        cells += [f"{difference:.2e}", f"{agreement:.4%}"]
        if exact:
            right = np.concatenate([their_logits(exact, [row]) for row in batch])
            cells += [f"{largest_difference(logits, right):.2e}" for logits in (ours, theirs)]
        if twin:
            difference = largest_difference(ours, our_logits(*twin, batch))
            passed &= difference <= args.atol
            cells.append(f"{difference:.2e}")
        print("  ".join(f"{cell:>14}" for cell in cells))

    print(f"\n{'prompt':>8} {'tokens':>7} {'greedy equal':>13}  text")
    for index, row in enumerate(rows[: args.prompts]):
        prompt = tokenizer(as_text(tokenizer, row, with_solution=False))["input_ids"]
        ours = greedy(model, params, prompt, args.tokens, stop=tokenizer.eos_token_id)
        theirs = oracle_greedy(oracle, prompt, args.tokens, stop=tokenizer.eos_token_id)
        passed &= ours == theirs
        print(f"{index:>8} {len(ours):>7} {ours == theirs!s:>13}  {tokenizer.decode(ours)[:60]!r}")

    print(f"\n{'passed' if passed else 'FAILED'}: expected logits within {args.atol} and equal greedy text")
    if not passed:
        sys.exit(1)


def read_rows(path: Path, count: int) -> list[dict[str, str]]:
    """The first `count` rows of a JSONL file."""
    if not path.is_file():
        raise UserError(f"expected a JSONL file, but {path} does not exist: check --data")
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines)]
    if len(rows) < count or not all({"question", "solution"} <= row.keys() for row in rows):
        raise UserError(
            f"expected {count} rows with question and solution in {path}, got {len(rows)} rows: check --data"
        )
    return rows


def as_text(tokenizer: PreTrainedTokenizerBase, row: dict[str, str], *, with_solution: bool) -> str:
    """A row in the chat format, or as plain lines if the tokenizer has none."""
    if tokenizer.chat_template is None:
        return f"{row['question']}\n{row['solution'] if with_solution else ''}"
    messages = [{"role": "user", "content": row["question"]}]
    if with_solution:
        messages.append({"role": "assistant", "content": row["solution"]})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not with_solution)


def padded(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded ids i32[B, T] and mask bool[B, T]."""
    width = -(-max(map(len, sequences)) // 64) * 64  # few widths, so few compilations
    ids = np.array([[0] * (width - len(row)) + row for row in sequences], np.int32)
    return ids, np.arange(width) >= width - np.array([[len(row)] for row in sequences])


def our_logits(model: Model, params: dict, sequences: list[list[int]]) -> np.ndarray:
    """Logits [N, V] of all real tokens."""
    ids, mask = padded(sequences)
    return np.asarray(model.logits(params, ids, mask))[mask]


def their_logits(oracle: PreTrainedModel, sequences: list[list[int]]) -> np.ndarray:
    """transformers' logits [N, V] of all real tokens; a single row is not padded."""
    ids, mask = padded(sequences)
    if len(sequences) == 1:
        ids, mask = ids[mask][None], mask[mask][None]
    with torch.no_grad():
        return oracle(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(np.int64))).logits.numpy()[mask]


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference of two arrays."""
    return float(np.abs(a - b).max())


def greedy(model: Model, params: dict, prompt: list[int], tokens: int, *, stop: int) -> list[int]:
    """The most likely continuation through the key-value cache, up to and including `stop`."""
    cache = model.init_cache(params, 1, len(prompt) + tokens)
    hidden, cache = model.prefill(params, np.array([prompt], np.int32), cache)
    logits = model.unembed(params, hidden[:, -1])
    decode = jax.jit(model.decode, donate_argnums=3)
    continuation: list[int] = []
    while True:
        continuation.append(int(jnp.argmax(logits[0])))
        if len(continuation) == tokens or continuation[-1] == stop:
            return continuation
        token, position = np.array(continuation[-1:], np.int32), len(prompt) + len(continuation) - 1
        logits, cache = decode(params, token, np.array([position], np.int32), cache)


def oracle_greedy(oracle: PreTrainedModel, prompt: list[int], tokens: int, *, stop: int) -> list[int]:
    """The most likely continuation by transformers, with its own cache and loop."""
    ids = torch.tensor([prompt])
    output = oracle.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop,
    )
    return output[0, len(prompt) :].tolist()


if __name__ == "__main__":
    main()
