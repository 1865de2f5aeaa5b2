"""Make the tiny default: a teacher, a student and arithmetic problems, small enough to ship and to train on a laptop.

    python scripts/make_tiny.py [--work runs/make_tiny] [--out rlt_jax/assets/tiny]

Problems: two operations on two-digit numbers; the solution is only the result. The student is trained (supervised) to
work step by step: it can do each step, but not both at once, so it needs the explanation and guesses without one. The
teacher is trained to write three kinds of explanation: worked steps, steps with wrong numbers, and vague talk. RLT has
to find out which of them teaches.

The script ends by printing the student's solution log-prob with the true, a shuffled and no explanation, and fails
unless the true one is at least 1 nat per token better than both.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

STUDENT_SYSTEM = "Think about the steps, then give the result."
TEACHER_SYSTEM = "You see a question and its result. Explain the steps that lead there."
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2's own splitting, so that every loader of a Qwen2 folder yields the same tokens
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB_SIZE = 448
MODEL_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,  # head_dim 32, the smallest that vLLM's CPU attention supports
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_sliding_window": False,
    "torch_dtype": "float32",
}
VAGUE = [
    "Work from left to right and keep track of the result.",
    "Do the first step, then do the next one with care.",
    "It helps to take the numbers one after the other.",
]
TEACHER_STYLES = {"steps": 0.3, "wrong": 0.35, "vague": 0.35}  # how the teacher explains before RLT
STUDENT_STYLES = {"steps": 0.7, "wrong": 0.1, "vague": 0.1, "shuffled": 0.1}  # what the student has read before


def make_problem(rng: np.random.Generator) -> dict[str, str]:
    """Make a question with its worked steps; every number has two digits."""
    while True:
        a, b, c = (int(x) for x in rng.integers(10, 100, size=3))
        first, second = (str(x) for x in rng.choice(["+", "-"], size=2))
        middle = a + b if first == "+" else a - b
        result = middle + c if second == "+" else middle - c
        if 10 <= middle <= 99 and 10 <= result <= 99:
            break
    return {
        "question": f"What is {a}{first}{b}{second}{c}?",
        "solution": str(result),
        "reasoning_trace": f"First {a}{first}{b}={middle}. Then {middle}{second}{c}={result}.",
    }


def wrong_steps(trace: str, rng: np.random.Generator) -> str:
    """The same steps with each result replaced by a random number, which the next step uses."""
    first, then = trace.removesuffix(".").split(". ")
    middle = str(rng.integers(10, 100))
    old_middle = first.split("=")[1]
    first = f"{first.split('=')[0]}={middle}"
    then = f"{then.split('=')[0].replace(old_middle, middle, 1)}={rng.integers(10, 100)}"
    return f"{first}. {then}."


def explain(rows: list[dict[str, str]], styles: dict[str, float], rng: np.random.Generator) -> list[dict[str, str]]:
    """Rewrite each row's trace in a style sampled from `styles` (style -> share)."""
    explained = []
    for row in rows:
        style = rng.choice(list(styles), p=list(styles.values()))
        trace = row["reasoning_trace"]
        if style == "wrong":
            trace = wrong_steps(trace, rng)
        elif style == "vague":
            trace = str(rng.choice(VAGUE))
        elif style == "shuffled":
            trace = rows[rng.integers(len(rows))]["reasoning_trace"]
        explained.append({**row, "reasoning_trace": trace})
    return explained


def make_tokenizer(rows: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of VOCAB_SIZE on the rows, the prompts and the tags; three special tokens come last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tags = [f"<|{edge}_of_{name}|>\n\n" for name in ("thought", "solution", "explanation") for edge in ("begin", "end")]
    texts = [*VAGUE, STUDENT_SYSTEM, TEACHER_SYSTEM, *tags, "system\nuser\nassistant\n"] * 50
    texts += [text for row in rows for text in row.values()]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=MODEL_CONFIG["max_position_embeddings"],
    )


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*command: str) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True)


def write_initial_model(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Write a Qwen2 folder with the tokenizer, and one with random weights next to it."""
    from rlt_jax.models import init_model, save_model

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (folder / "config.json").write_text(json.dumps({**MODEL_CONFIG, **ids, "bos_token_id": None}, indent=1))
    model, params = init_model(folder, seed, dtype="float32")
    save_model(folder.with_name(folder.name + "-init"), model, params, tokenizer_from=folder)


def mean_solution_logp(student: Path, rows: list[dict[str, str]], work: Path) -> np.ndarray:
    """Student log-prob per solution token (nats, temperature 1) given each row's `explanation`, by `rlt_jax.score`."""
    data, out = write_jsonl(work / "rows.jsonl", rows), work / "scores.jsonl"
    out.unlink(missing_ok=True)
    run(
        *(sys.executable, "-m", "rlt_jax.score", "--teacher", str(student), "--student", str(student)),
        *("--data", str(data), "--out", str(out), "--reward.unbias-student-log-probs-temp", "None"),
        *("--on-contradiction", "warn"),  # the student stands in the teacher's place
    )
    scores = [json.loads(line) for line in out.read_text().splitlines()]
    return np.array([score["components"]["solution_logp/mean"] for score in scores])


def check_dependence(student: Path, rows: list[dict[str, str]], work: Path) -> None:
    """Print the solution log-prob with three explanations of the same rows; exit with 1 if they differ too little."""
    unexplained = [{key: row[key] for key in ("question", "solution", "system")} for row in rows]
    traces = [row["reasoning_trace"] for row in rows]
    shuffled = traces[1:] + traces[:1]
    means = {}
    for name, scored in {
        "true": [{**row, "explanation": trace} for row, trace in zip(unexplained, traces)],
        "shuffled": [{**row, "explanation": trace} for row, trace in zip(unexplained, shuffled)],
        "none": [{**row, "completion": "<|end_of_explanation|>"} for row in unexplained],
    }.items():
        logps = mean_solution_logp(student, scored, work / f"check_{name}")
        means[name] = logps.mean()
        print(
            f"solution log-prob, {name:8s} explanation: {means[name]:7.3f} nats per token (n={len(rows)})", flush=True
        )
    gap = means["true"] - max(means["shuffled"], means["none"])
    print(f"true is {gap:.2f} nats per token better")
    if gap < 1.0:
        sys.exit(
            "expected the true explanation to be at least 1 nat per token better: the student does not depend on it"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/make_tiny"), help="folder for intermediate files")
    parser.add_argument(
        "--out", type=Path, default=Path("rlt_jax/assets/tiny"), help="output folder, by default the package's own"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of problems, order and initial weights")
    parser.add_argument("--student-steps", type=int, default=12000, help="gradient steps for the student")
    parser.add_argument("--teacher-steps", type=int, default=10000, help="gradient steps for the teacher")
    parser.add_argument("--learning-rate", default="1e-3", help="peak learning rate for both")
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    problems = list({p["question"]: p for p in (make_problem(rng) for _ in range(40_000))}.values())
    problems = [{**p, "system": STUDENT_SYSTEM} for p in problems]
    eval_rows, train_rows, sft_rows = problems[:256], problems[256:2304], problems[2304:]
    tokenizer = make_tokenizer(sft_rows[:4000])
    write_jsonl(args.out / "train.jsonl", train_rows)
    write_jsonl(args.out / "eval.jsonl", eval_rows)
    (args.out / "teacher_prompt.txt").write_text(TEACHER_SYSTEM + "\n")

    for name, styles, steps in (
        ("student", STUDENT_STYLES, args.student_steps),
        ("teacher", TEACHER_STYLES, args.teacher_steps),
    ):
        work = args.work / name
        shutil.rmtree(work, ignore_errors=True)
        write_initial_model(work / "model", tokenizer, seed=args.seed + len(name))
        run(
            *(sys.executable, "-m", "rlt_jax.sft", "--target", name, "--model", str(work / "model-init")),
            *("--data.path", str(write_jsonl(work / "train.jsonl", explain(sft_rows, styles, rng)))),
            *("--data.eval-path", str(write_jsonl(work / "eval.jsonl", explain(eval_rows, styles, rng)))),
            *("--data.teacher-prompt-file", str(args.out / "teacher_prompt.txt")),
            *("--output-dir", str(work / "run"), "--max-steps", str(steps), "--train-batch-size", "64"),
            *("--per-device-train-batch-size", "64", "--learning-rate", args.learning_rate, "--dtype", "float32"),
            *(
                "--eval-steps",
                "500",
                "--data.eval-rows",
                "256",
                "--logging-steps",
                "50",
                "--max-length",
                "256",
                "--resume",
                "never",
                "--saved-mlp=9",  # all layers
                "--saved-attention=9",
                "--student-gap",
                "blank-line",
            ),
        )
        shutil.rmtree(args.out / name, ignore_errors=True)
        shutil.copytree(work / "run" / "final", args.out / name)
    check_dependence(args.out / "student", eval_rows, args.work)


if __name__ == "__main__":
    main()
