"""Time whole steps beside TRL's GRPOTrainer on one GPU: equal models, prompts, tokens and rewards, one after the other.

    python benchmarks/trl_step.py --work /tmp/beside
    python benchmarks/trl_step.py --work /tmp/small --small --no-vllm --trl-python trl/bin/python    # on a CPU

Writes a folder with random weights of Qwen2.5-1.5B's shape (no download) and questions whose prompts have exactly
--prompt tokens, and trains on them with TRL (`trl_side.py`) and with `python -m rlt_jax.train`, one process each. Stops
unless both read and wrote the same numbers of tokens: the model never writes a token that ends a text, so that all
completions have --completion tokens. NVML reads the whole GPU every 10 ms from outside. Flags of `rlt_jax.train` may
follow after `--`. Prints one JSON object per step, and a table at the end: the first step apart, of the others the
median; peaks are of all steps. A second run in the same --work folder reuses the model.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from common import QWEN_7B, write_rows, write_tokenizer

from rlt_jax.configs import RewardConfig
from rlt_jax.data import ChatFormat, build_prompts, eos_ids, load_tokenizer
from rlt_jax.device.monitor import gpu_memory_reader
from rlt_jax.errors import run_command
from rlt_jax.rewards.scorer import completion_rows
from rlt_jax.runs.rollouts import read_rollout
from rlt_jax.types import Prompt, Row, ScoreRow

QWEN_1_5B = QWEN_7B | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SMALL = QWEN_1_5B | {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 512,
    "torch_dtype": "float32",
}
PHASES = ("generate", "score", "update", "sync")
TOKENS = ("prompt", "completion", "student", "teacher", "update")  # what both sides count, in a step
TEMPERATURE = 0.7
BETA = 0.04
LEARNING_RATE = 1e-6
POOL = 4_000_037  # random numbers that all weights are cut from, which is ten times as fast as drawing each

Measured = dict[str, Any]  # of a side: steps, packages, peaks, whole run


def main(
    flags: tyro.conf.Positional[tuple[str, ...]] = (),
    work: Path = Path("runs/trl_step"),
    side: Literal["both", "ours", "trl"] = "both",
    steps: int = 4,
    small: bool = False,
    vllm: bool = True,
    layers: int | None = None,
    prompt: int | None = None,
    completion: int | None = None,
    completions: int | None = None,
    group: int = 8,
    micro_batch: int = 8,
    vllm_share: float = 0.3,
    liger: bool = True,
    importance_correction: bool = False,
    check_reward: bool = False,
    trl_python: str = sys.executable,
) -> None:
    """Measure.

    Args:
      flags: of `python -m rlt_jax.train`, after those that this program gives.
      work: folder for model, data and runs; takes 4 GB.
      side: which to run; ratios need both.
      steps: of training, 2 or more.
      small: a model of 64 hidden units, 2 layers, in float32; 16 completions of 256 + 32 tokens, 8 a micro-batch.
      vllm: sample with vLLM on both sides; --no-vllm: with each side's own sampler, as a CPU can.
      layers: of the model. None: 28, or 2 with --small.
      prompt: tokens of every prompt. None: 1024, or 256 with --small.
      completion: tokens of every completion. None: 1024, or 32 with --small.
      completions: in a step. None: 64, or 16 with --small.
      group: completions per question.
      micro_batch: sequences per forward and backward pass, and per forward pass of scoring.
      vllm_share: of the GPU's memory, for vLLM: TRL's of the whole, ours of `-- --budget-gb`, 85 in the preset.
      liger: let TRL use Liger's layers, if liger-kernel is installed.
      importance_correction: let TRL correct for vLLM's log-probs as it does by default, which takes one more forward
        pass than ours does by default.
      check_reward: also compute the rewards of TRL's first step with ours, and print the largest difference.
      trl_python: the Python interpreter that has TRL.
    """
    if steps < 2:
        raise SystemExit(f"--steps {steps}: expected 2 or more, since the first one is told apart")
    config = (SMALL if small else QWEN_1_5B) | ({} if layers is None else {"num_hidden_layers": layers})
    prompt, completion, completions = (
        given or (at_small if small else full)
        for given, full, at_small in ((prompt, 1024, 256), (completion, 1024, 32), (completions, 64, 16))
    )
    gpu = gpu_memory_reader() is not None
    work.mkdir(parents=True, exist_ok=True)
    model = work / f"model-{config['hidden_size']}x{config['num_hidden_layers']}"
    if not (model / "config.json").is_file():
        write_model(model, config)
    chat = ChatFormat(load_tokenizer(str(model)))
    data = work / "rows.jsonl"
    write_rows(data, chat, prompt, steps * completions // group)
    prompts = read_prompts(data, chat, prompt)
    spec = {
        "model": str(model),
        "student": str(model),
        "prompts": str(work / "prompts.jsonl"),
        "gpu": gpu,
        "steps": steps,
        "prompt": prompt,
        "completion": completion,
        "completions": completions,
        "group": group,
        "micro_batch": micro_batch,
        "score_batch": micro_batch,
        "dtype": config["torch_dtype"],
        "temperature": TEMPERATURE,
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "vllm": vllm,
        "vllm_share": vllm_share,
        "liger": liger,
        "importance_correction": importance_correction,
        **reward_spec(),
        "keep_completions": check_reward,
    }
    write_prompts(Path(spec["prompts"]), prompts)
    ran: dict[str, Measured] = {}
    if side != "ours":
        ran["TRL"] = run_trl(work, spec, trl_python)
    if side != "trl":
        ran["ours"] = run_ours(work, spec, flags, data, chat, prompts[0])
    for name, measured in ran.items():
        for step in measured["steps"]:
            print(json.dumps({"side": name} | step), flush=True)
        print(json.dumps({"side": name, "packages": measured["packages"]}))
    check_tokens(ran, completions=completions, prompt=prompt, completion=completion)
    if check_reward and "TRL" in ran:
        print(json.dumps({"largest_reward_difference": reward_difference(ran["TRL"], model, chat, prompts)}))
    print_table(ran)


def write_model(folder: Path, config: Mapping[str, Any]) -> None:
    """Write random weights that never choose a special token, and a tokenizer with a token for each id.

    The first layer's attention writes one constant into the residual stream's first place, where no other layer
    writes, and where the embeddings of special tokens alone are not 0: after the final norm, that is a logit far below
    all others for them, and nothing for the rest.
    """
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    special = write_tokenizer(folder, vocab_size=config["vocab_size"])
    dtype = ml_dtypes.bfloat16 if config["torch_dtype"] == "bfloat16" else np.float32
    random = np.random.default_rng(0)
    pool = (random.standard_normal(POOL, np.float32) * config["initializer_range"]).astype(dtype)
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    narrow = hidden // heads * config["num_key_value_heads"]

    def matrix(rows: int, columns: int) -> Any:
        begin = int(random.integers(POOL))
        return np.resize(np.concatenate([pool[begin:], pool[:begin]]), (rows, columns))

    def writes_nothing_first(weight: Any) -> Any:
        weight[0] = 0
        return weight

    embedding = matrix(config["vocab_size"], hidden)
    embedding[:, 0] = 0
    embedding[special, 0] = -0.5
    norm = np.ones(hidden, dtype)
    norm[0] = 2400  # the logit is -0.5 * 2400 / (root mean square of the residual stream)
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": norm}
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}."
        for part, size in (("q", hidden), ("k", narrow), ("v", narrow)):
            tensors[f"{name}self_attn.{part}_proj.weight"] = matrix(size, hidden)
            tensors[f"{name}self_attn.{part}_proj.bias"] = np.zeros(size, dtype)
        tensors[f"{name}self_attn.o_proj.weight"] = writes_nothing_first(matrix(hidden, hidden))
        tensors[f"{name}mlp.gate_proj.weight"] = matrix(inner, hidden)
        tensors[f"{name}mlp.up_proj.weight"] = matrix(inner, hidden)
        tensors[f"{name}mlp.down_proj.weight"] = writes_nothing_first(matrix(hidden, inner))
        for part in ("input", "post_attention"):
            tensors[f"{name}{part}_layernorm.weight"] = np.ones(hidden, dtype)
    tensors["model.layers.0.self_attn.v_proj.weight"][0] = 0
    tensors["model.layers.0.self_attn.v_proj.bias"][0] = 1  # the same for every token, so attention leaves it as it is
    tensors["model.layers.0.self_attn.o_proj.weight"][0, 0] = 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(config)))  # last: says that the folder is whole


def read_prompts(data: Path, chat: ChatFormat, tokens: int) -> list[Prompt]:
    """The prompts of the rows as training has them, checked to be of one length for teacher and student."""
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    rows = [Row(i, line["question"], line["solution"], None, None) for i, line in enumerate(lines)]
    prompts = list(build_prompts(rows, chat, max_prompt_length=tokens).prompts)
    shapes = {(len(one.teacher_ids), len(one.student_prefix_ids), len(one.closing_ids)) for one in prompts}
    if len(prompts) != len(rows) or len(shapes) != 1 or next(iter(shapes))[0] != tokens:
        raise SystemExit(f"expected {len(rows)} prompts of {tokens} tokens, and students' of one length, but: {shapes}")
    return prompts


def write_prompts(file: Path, prompts: Sequence[Prompt]) -> None:
    """Write what TRL's side needs of each prompt: its text, and all ids that come before and after an explanation."""
    lines = []
    for prompt in prompts:
        ids = ("teacher_ids", "student_prefix_ids", "closing_ids", "closing_solution")
        line = {"text": prompt.teacher_text} | {name: getattr(prompt, name).tolist() for name in ids}
        lines.append(json.dumps(line) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def reward_spec() -> dict[str, Any]:
    """The weights of our default reward, and the temperature of its student."""
    config = RewardConfig()
    assert (config.reduction_log_prob, config.reduction_kl) == (("mean", "min"), ("mean", "max"))  # as in trl_side.py
    weights = {
        "solution": config.answer_log_prob_coeff,
        "kl": config.kl_penalty_reward_coeff,
        "not_matched": config.not_matched_penalty,
    }
    return {"reward": weights, "student_temperature": config.student_temperature}


def run_trl(work: Path, spec: Mapping[str, Any], python: str) -> Measured:
    """Train with TRL in a process of its own."""
    (work / "trl.json").write_text(json.dumps(dict(spec)))
    out = work / "trl-measured.json"
    out.unlink(missing_ok=True)
    program = Path(__file__).with_name("trl_side.py")
    with watched() as samples:
        run([python, str(program), str(work / "trl.json"), str(out)])
    measured = json.loads(out.read_text())
    peaks = dict.fromkeys(PHASES, float("nan"))
    for phase, begin, end in measured.pop("pieces"):
        if readings := [used for moment, used in samples["gpu"] if begin <= moment <= end]:
            peaks[phase] = max([used for used in (peaks[phase],) if used == used] + readings)
    for step in measured["steps"]:
        step["seconds"] = {name: step["seconds"].get(name, 0.0) for name in (*PHASES, "step")}
    return measured | {"peaks": peaks} | whole(samples)


def run_ours(
    work: Path, spec: Mapping[str, Any], flags: Sequence[str], data: Path, chat: ChatFormat, prompt: Prompt
) -> Measured:
    """Train with `rlt_jax.train` in a process of its own, with an empty compilation cache."""
    folder, cache = work / "run", work / "xla"
    for old in (folder, cache):
        shutil.rmtree(old, ignore_errors=True)
    given = {
        "teacher": spec["model"],
        "student": spec["student"],
        "output-dir": folder,
        "data.path": data,
        "data.eval-rows": 0,
        "eval-steps": 0,
        "save-steps": 0,
        "max-steps": spec["steps"],
        "train-batch-size": spec["completions"],
        "num-generations": spec["group"],
        "per-device-train-batch-size": spec["micro_batch"],
        "score-batch-size": spec["score_batch"],
        "max-prompt-length": spec["prompt"],
        "max-completion-length": spec["completion"],
        "temperature": spec["temperature"],
        "learning-rate": spec["learning_rate"],
        "loss.beta": spec["beta"],
        "sampler.kind": "vllm" if spec["vllm"] else "native",
        "dtype": spec["dtype"],
        "sampler.max-batch": spec["completions"],
        "vllm-gpu-memory-utilization": spec["vllm_share"],
        "memory.optimizer": "device",
        "memory.frozen": "device",
    }
    if not spec["gpu"]:
        given |= {"budget-gb": "None", "planned-gb": "None"}
    command = [sys.executable, "-m", "rlt_jax.train", "--preset", "mono85"]
    command += [text for name, value in given.items() for text in (f"--{name}", str(value))]
    command += ["--checkpoint.no-at-end", "--checkpoint.no-export", "--log.no-progress", *flags]
    with watched() as samples:
        run(command, JAX_COMPILATION_CACHE_DIR=str(cache))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "seconds/step" in line]
    steps = []
    for number, line in enumerate(lines, 1):
        seconds = {name: line[f"seconds/{name}"] for name in (*PHASES, "step")}
        tokens = count_tokens(folder / "rollouts" / f"{number}.safetensors", chat, prompt, Path(spec["model"]))
        steps.append({"tokens": tokens, "seconds": seconds})
    peaks = {name: max(line.get(f"memory/peak_gpu_gb/{name}", float("nan")) for line in lines) for name in PHASES}
    return {"packages": versions("jax", "flax"), "steps": steps, "peaks": peaks} | whole(samples)


def count_tokens(file: Path, chat: ChatFormat, prompt: Prompt, model: Path) -> dict[str, int]:
    """The tokens of a step of ours, from its completions on disk and the layout that scoring and update get.

    Args:
      prompt: any of the prompts, which are of one length.
    """
    completions = read_rollout(file)
    if completions is None:
        raise SystemExit(f"expected the completions of a step in {file}, but there are none")
    rows = completion_rows([prompt] * len(completions), completions, chat=chat, eos_ids=eos_ids(chat.tokenizer, model))
    written = [len(one.token_ids) for one in completions]
    teacher = sum(len(row.teacher_ids) for row in rows)
    return {
        "prompt": teacher - sum(written),
        "completion": sum(written),
        "student": sum(len(row.student_ids) for row in rows),
        "teacher": teacher,
        "update": teacher,
    }


def check_tokens(ran: Mapping[str, Measured], *, completions: int, prompt: int, completion: int) -> None:
    """Stop unless every step of every side had the same tokens, and as many as were asked for.

    Raises:
      SystemExit: they differ.
    """
    counts = {(name, i): step["tokens"] for name, one in ran.items() for i, step in enumerate(one["steps"], 1)}
    first = next(iter(counts.values()))
    wanted = first | {"prompt": completions * prompt, "completion": completions * completion}
    for (name, i), found in counts.items():
        if found != wanted:
            raise SystemExit(
                f"step {i} of {name}: expected the tokens {wanted}, but counted {found}: no fair comparison"
            )


def reward_difference(measured: Measured, model: Path, chat: ChatFormat, prompts: Sequence[Prompt]) -> float:
    """The largest difference between TRL's rewards of its first step and ours of the same completions."""
    import numpy as np

    from rlt_jax.data import score_row_from_ids
    from rlt_jax.models import load_model
    from rlt_jax.rewards.scorer import make_scorer, tokens_of

    step = measured["reward"][0]
    net, params = load_model(model, dtype=json.loads((model / "config.json").read_text())["torch_dtype"])
    scorer = make_scorer(net, net, params, RewardConfig(), sampling_temperature=TEMPERATURE, chunk=1024)
    asked, ends = [prompts[i] for i in step["rows"]], eos_ids(chat.tokenizer, model)
    rows: list[ScoreRow] = [
        score_row_from_ids(one, np.array(ids), chat, ends) for one, ids in zip(asked, step["completion_ids"])
    ]
    ours = scorer.score(params, asked, rows, tokens=tokens_of(rows, 8)).rewards.reward
    return float(np.abs(ours - np.array(step["rewards"])).max())


def print_table(ran: Mapping[str, Measured]) -> None:
    """Print seconds, memory and tokens of each side, and of the seconds ours / TRL."""
    print(f"\n| | {' | '.join(ran)} | ours / TRL |\n|---|{'---|' * (len(ran) + 1)}")

    def line(label: str, value: Callable[[Measured], float], form: str, *, ratio: bool = False) -> None:
        values = {name: value(one) for name, one in ran.items()}
        compared = ratio and len(values) == 2 and values["TRL"] > 0
        last = f"{values['ours'] / values['TRL']:.2f}" if compared else ""
        print(f"| {label} | {' | '.join(format(value, form) for value in values.values())} | {last} |")

    for phase in (*PHASES, "other", "step"):
        label = "**step, s**" if phase == "step" else f"{phase}, s"
        line(label, partial(rest_median, phase=phase), ".2f", ratio=True)
    line("first step, s", lambda one: one["steps"][0]["seconds"]["step"], ".2f", ratio=True)
    line("whole run with start and end, s", lambda one: one["run_s"], ".1f", ratio=True)
    gpu = any(one["gpu_gb"] == one["gpu_gb"] for one in ran.values())  # NaN without one
    for phase in PHASES if gpu else ():
        line(f"GPU, {phase}, GB", lambda one, phase=phase: one["peaks"][phase], ".1f")
    if gpu:
        line("GPU, whole run, GB", lambda one: one["gpu_gb"], ".1f")
    for kind in TOKENS:
        line(f"tokens a step, {kind}", lambda one, kind=kind: one["steps"][-1]["tokens"][kind], ",")


def seconds_of(step: Mapping[str, Any], phase: str) -> float:
    """Seconds of a phase of a step; of "other", those that no phase has."""
    seconds = step["seconds"]
    return seconds["step"] - sum(seconds[name] for name in PHASES) if phase == "other" else seconds[phase]


def rest_median(measured: Measured, phase: str) -> float:
    """The median over all steps but the first."""
    return statistics.median(seconds_of(step, phase) for step in measured["steps"][1:])


def run(command: Sequence[str], **variables: str) -> None:
    """Run a command, which is printed first."""
    print(" ".join(command), flush=True)
    if (code := subprocess.run(command, env=os.environ | variables).returncode) != 0:
        raise SystemExit(f"the command above ended with exit code {code}: see its last lines")


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages."""
    from importlib.metadata import version

    return {name: version(name) for name in packages}


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Read the GPU's used memory every 10 ms: `gpu`, a list of (seconds since the epoch, GB); `run_s` at the end."""
    samples: dict[str, Any] = {"gpu": []}
    ended, read = threading.Event(), gpu_memory_reader()

    def watch() -> None:
        while read is not None and not ended.wait(0.01):
            if (used := read()) is not None:
                samples["gpu"].append((time.time(), used))

    watcher = threading.Thread(target=watch)
    started = time.perf_counter()
    watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        watcher.join()
        samples["run_s"] = time.perf_counter() - started


def whole(samples: Mapping[str, Any]) -> dict[str, float]:
    """Seconds and peak of a whole run."""
    return {"run_s": samples["run_s"], "gpu_gb": max((used for _, used in samples["gpu"]), default=float("nan"))}


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
