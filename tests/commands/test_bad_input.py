"""What users get wrong: every mistake ends in exit code 2 and a message to act on, never in a traceback.

A message says what was expected, what came and what to do. Rows that are skipped and counted instead are in
test_train, test_sft and test_score.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlt_jax import score as score_command
from rlt_jax import sft as sft_command
from rlt_jax import train as train_command
from rlt_jax.checkpoints.store import open_checkpoints
from rlt_jax.configs import PRESETS, parse_train_args
from rlt_jax.learner.optimizer import make_optimizer
from rlt_jax.learner.state import init_state
from rlt_jax.models import load_model
from rlt_jax.report.owner import sole_user, sole_writer
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.resume import models_of, record_start, run_inputs
from rlt_jax.runs.setup import load_split_rows

ROWS = [
    {"question": f"What is {i}+1?", "solution": f"{i + 1}", "reasoning_trace": "Count on.", "explanation": "Count on."}
    for i in range(10, 40)
]


@dataclass(frozen=True)
class Place:
    """Where a test makes its files."""

    folder: Path
    tiny: Path
    golden: Path

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, *rows: object) -> Path:
        """A file of rows; a string stands as it is."""
        return self.file("rows.jsonl", "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))

    def model(self, name: str, content: str | bytes | None) -> Path:
        """The tiny teacher with one file replaced, or taken away."""
        of_no_training = shutil.ignore_patterns("rlt_jax.json", "README.md")  # as a model that others made
        copy = shutil.copytree(self.tiny / "teacher", self.folder / "model", ignore=of_no_training)
        (copy / name).unlink(missing_ok=True)
        if content is not None:
            self.file(f"model/{name}", content)
        return copy

    def config(self, **changes: object) -> Path:
        """The tiny teacher with other values in its config.json."""
        values = json.loads((self.tiny / "teacher" / "config.json").read_text())
        return self.model("config.json", json.dumps({**values, **changes}))

    def weights(self, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
        """The tiny teacher with other tensors."""
        tensors = load_file(self.tiny / "teacher" / "model.safetensors")
        change(tensors)
        copy = self.model("model.safetensors", None)
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    def cut_weights(self) -> Path:
        return self.model("model.safetensors", (self.tiny / "teacher" / "model.safetensors").read_bytes()[:-1000])


@pytest.fixture
def place(tmp_path, tiny, golden) -> Place:
    return Place(tmp_path, tiny, golden)


@pytest.fixture
def refused(main, capsys) -> Callable[..., str]:
    """refused(module, *flags): the message with which the command stops, on one line."""

    def run(module, *flags: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main(module, *flags)
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert "Traceback" not in printed.err + printed.out
        return " ".join(printed.err.replace("│", " ").split())

    return run


@pytest.fixture
def train_flags(small, place) -> tuple:
    """A run that would work, on a few rows."""
    data = ("--data.path", place.rows(*ROWS), "--data.eval-path", place.tiny / "eval.jsonl")
    return (*small, "--max-steps", 4, *data, "--output-dir", place.folder / "run")


def write_run(folder: Path, teacher: Path) -> Path:
    """What a float32 run of seed 42 leaves behind after two steps, as far as a resume reads it."""
    _, params = load_model(teacher, dtype="float32")
    tiny = PRESETS["tiny"]
    optimizer, _ = make_optimizer(learning_rate=tiny.learning_rate, max_steps=4, **asdict(tiny.optimizer))
    _, reference = load_model(teacher, dtype="float32")
    checkpoints = open_checkpoints(folder / "checkpoints", keep=2)
    checkpoints.save(2, (init_state(params, optimizer), reference), {"seed": 42})
    checkpoints.wait()
    return folder


SETTINGS = {
    "unknown preset": (["--preset", "mono58"], ["preset=mono58: no such preset: did you mean mono85?"]),
    "unknown flag": (["--max-step", "3"], ["Unrecognized", "--max-step", "--max-steps"]),
    "value of the wrong type": (["--max-steps", "many"], ["Error parsing --max-steps", "'many'"]),
    "no such choice": (["--dtype", "float16"], ["invalid choice 'float16' for argument '--dtype'", "bfloat16"]),
    "flag without a value": (["--seed"], ["--seed", "Expected 1 value"]),
    "batch that groups do not divide": (
        ["--train-batch-size", "100", "--num-generations", "24"],
        [
            "num_generations=24 does not divide train_batch_size=100: "
            "use --train-batch-size 96 or 120, or --num-generations 20"
        ],
    ),
    "negative budget": (["--budget-gb", "-85"], ["budget_gb=-85: expected a positive number of GB, or None"]),
    "a group of one": (["--num-generations", "1"], ["num_generations=1 makes every advantage 0", "use 2 or more"]),
    "nan": (["--temperature", "nan"], ["temperature=nan: expected a finite number"]),
    "server without an address": (
        ["--sampler.kind", "vllm-server"],
        ["without sampler.url: give the server's address"],
    ),
    "importance correction where vLLM filters": (
        ["--sampler.kind", "vllm", "--sampler.min-p", "0.3", "--loss.importance-correction", "token"],
        [
            "loss.importance_correction=token with sampler.min_p=0.3 and sampler.kind=vllm: expected log-probs of the "
            "whole distribution",
            "switch the filters off, or use --sampler.kind native",
        ],
    ),
    "importance correction between temperatures": (
        ["--loss.no-unbias-log-probabilities", "--temperature", "0.7", "--loss.importance-correction", "sequence"],
        ["loss.importance_correction=sequence with temperature=0.7", "use --temperature 1"],
    ),
    "evaluation without rows": (["--eval-steps", "1", "--data.eval-rows", "0"], ["give the number of held-out rows"]),
    "coefficients without reductions": (
        ["--reward.answer-log-prob-coeff", "1", "2", "3"],
        ["reward.answer_log_prob_coeff has 3 weights and reward.reduction_log_prob has 2 reductions: give one weight"],
    ),
    "several at once": (["--max-steps", "0", "--loss.beta", "-1"], ["max_steps=0: expected", "loss.beta=-1: expected"]),
}


@pytest.mark.parametrize(("flags", "parts"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings(refused, train_flags, place, flags, parts):
    message = refused(train_command, *train_flags, *flags)
    assert [part for part in parts if part not in message] == []
    assert not (place.folder / "run").exists()  # refused before anything is written


CONFIG_FILES = {
    "not there": (None, "cannot read the configuration file", "expected a YAML file, such as the config.yaml of a run"),
    "unknown key": ("max_step: 3", "max_step: no such field: did you mean max_steps?"),
    "unknown key in a section": ("loss:\n  betta: 1.0", "loss.betta: no such field: did you mean loss.beta?"),
    "wrong type": ("max_steps: many", "max_steps='many': expected a whole number"),
    "not YAML": ("data: [", ", line 2: not YAML: "),
    "no mapping": (
        "- tiny",
        "expected lines `key: value`, found a list; an example is the config.yaml of",
    ),
    "unknown preset": ("preset: huge", "preset=huge: no such preset: use one of tiny, mono_basic"),
    "inconsistent": (
        "num_generations: 7",
        "num_generations=7 does not divide train_batch_size=64: use --train-batch-size 63 or 70",
    ),
}


@pytest.mark.parametrize("content_and_parts", CONFIG_FILES.values(), ids=CONFIG_FILES.keys())
def test_configuration_files(refused, place, content_and_parts):
    content, *parts = content_and_parts
    path = place.folder / "run.yaml" if content is None else place.file("run.yaml", content + "\n")
    message = refused(train_command, "--config", path, "--output-dir", place.folder / "run")
    assert [part for part in parts if part not in message] == []


def test_a_preset_and_a_configuration_file_at_once(refused, place):
    message = refused(train_command, "--preset", "tiny", "--config", place.file("run.yaml", "seed: 1\n"))
    assert "give only one; a file names the preset it starts from" in message


MODELS = {
    "no such folder": (
        lambda p: "/no/such/model",
        ["expected a model's folder or its name on", "/no/such/model does not exist"],
    ),
    "no such hub name": (
        lambda p: "nobody/nothing",
        ["there is no nobody/nothing here and HF_HUB_OFFLINE", "check the name"],
    ),
    "a file": (lambda p: p.file("model.bin", "x"), ["expected a model's folder, got the file", "model.bin"]),
    "empty folder": (lambda p: p.file("empty/x", "").parent, ["expected tokenizer.json", "but there is none: copy"]),
    "no config.json": (lambda p: p.model("config.json", None), ["model/config.json, found chat_template.jinja"]),
    "broken config.json": (
        lambda p: p.model("config.json", '{"model_type": '),
        ["config.json: expected JSON, but it cannot be read", "copy the file again"],
    ),
    "another architecture": (
        lambda p: p.config(model_type="gpt2"),
        ["expected model_type llama (Llama 3.x, SmolLM2) or qwen2 (Qwen2 and Qwen2.5) or qwen3, got 'gpt2': give a"],
    ),
    "a size that is no number": (
        lambda p: p.config(max_position_embeddings="long"),
        ["expected max_position_embeddings to be a positive integer, got 'long': correct it"],
    ),
    "layer types that are no list": (
        lambda p: p.config(layer_types=3),
        ["expected layer_types to be a list or null, got 3: correct it"],
    ),
    "sliding window": (
        lambda p: p.config(use_sliding_window=True, sliding_window=64, max_window_layers=0),
        ["asks for what is not supported: use_sliding_win"],
    ),
    "no weights": (lambda p: p.model("model.safetensors", None), ["expected weights in", "copy the missing files"]),
    "weights cut short": (lambda p: p.cut_weights(), ["expected a complete safetensors file, but it is damaged"]),
    "weights that are none": (lambda p: p.model("model.safetensors", "junk" * 9), ["damaged", "copy it again"]),
    "weights that are a pointer": (
        lambda p: p.model("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"),
        ["expected weights, got a Git LFS pointer to them: run `git lfs pull` in that folder"],
    ),
    "weights in another format": (
        lambda p: (p.model("model.safetensors", None), p.file("model/pytorch_model.bin", "pickled"))[0],
        ["found chat_template.jinja, config.json", "pytorch_model.bin", "convert other formats to safetensors"],
    ),
    "an adapter": (
        lambda p: (p.model("config.json", None), p.file("model/adapter_config.json", "{}"))[0],
        ["expected a whole model in", "found the adapter (LoRA) of adapter_config.json: merge it into its model"],
    ),
    "missing tensor": (
        lambda p: p.weights(lambda w: w.pop("model.norm.weight")),
        ["missing model.norm.weight [128] correct the config.json, or give the checkpoint that belongs to it"],
    ),
    "extra tensor": (
        lambda p: p.weights(lambda w: w.update(extra=np.zeros((2, 3), np.float32))),
        ["extra extra [2, 3] correct the config.json"],
    ),
    "misshaped tensor": (
        lambda p: p.weights(lambda w: w.update({"model.norm.weight": np.zeros(64, np.float32)})),
        ["misshaped model.norm.weight: expected [128], got [64] correct the config.json"],
    ),
    "tensor of integers": (
        lambda p: p.weights(lambda w: w.update({"model.norm.weight": np.zeros(128, np.int32)})),
        ["model.norm.weight of type I32: expected one of BF16, F16, F32"],
    ),
    "no tokenizer": (
        lambda p: p.model("tokenizer.json", None),
        ["expected tokenizer.json", "copy the tokenizer's files"],
    ),
    "broken tokenizer": (
        lambda p: p.model("tokenizer.json", '{"version": '),
        ["expected a readable tokenizer in", "restore its files"],
    ),
    "no chat template": (
        lambda p: p.model("chat_template.jinja", None),
        ["expected a tokenizer with a chat template, but this one has none: use an instruction-tuned model"],
    ),
    "chat template without a system role": (
        lambda p: p.model("chat_template.jinja", "{{ raise_exception('no system role') }}"),
        ["it says: no system role: use the model's own template"],
    ),
    "broken end tokens": (
        lambda p: p.model("generation_config.json", '{"eos_token_id": "end"}'),
        ["expected a JSON object with eos_token_id (a number or several)", "fix the file"],
    ),
}


@pytest.mark.parametrize(("make", "parts"), MODELS.values(), ids=MODELS.keys())
def test_models(refused, train_flags, place, make, parts):
    teacher = make(place)
    message = refused(train_command, *train_flags, "--teacher", teacher, "--reference", place.tiny / "teacher")
    assert [part for part in parts if part not in message] == []
    assert message.count("error: ") == 1


def test_a_student_with_another_tokenizer(refused, train_flags, golden):
    message = refused(train_command, *train_flags, "--student", golden / "student")
    assert "expected teacher and student to share one vocabulary, since the student reads the teacher's" in message
    assert message.endswith("or let it read the text in tokens of its own with --reward.student-tokens text")


def test_a_student_with_too_few_embeddings(refused, train_flags, place):
    student = place.config(vocab_size=10)
    tensors = load_file(student / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:10]
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    message = refused(train_command, *train_flags, "--student", student)
    assert "but config.json has vocab_size=10: give the tokenizer that belongs to the model" in message


def test_a_reference_of_another_architecture(refused, train_flags, golden):
    message = refused(train_command, *train_flags, "--reference", golden / "teacher")
    assert "expected the teacher's architecture, but it has vocab_size=1000 (teacher: " in message


def test_completions_that_do_not_fit_into_the_model(refused, train_flags):
    message = refused(train_command, *train_flags, "--max-completion-length", 1000)
    assert "none of 30 does: 30 x prompt and completion exceed the teacher's positions (rows 0, 1, 2" in message
    assert "+ 1000 tokens, at most 1024): raise max_prompt_length, lower max_completion_length" in message


ENGINES = {
    "server on another machine": (
        ["--sampler.kind", "vllm-server", "--sampler.url", "http://192.0.2.1:8000"],
        ["192.0.2.1 is not this machine's loopback address", "--sampler.allow-remote"],
    ),
    "server that is not there": (
        ["--sampler.kind", "vllm-server", "--sampler.url", "http://127.0.0.1:9"],
        ["no vLLM server answers there", "VLLM_SERVER_DEV_MODE=1"],
    ),
    "engine without a Python": (
        ["--sampler.kind", "vllm", "--sampler.python", "/no/python"],
        ["--sampler.python /no/python cannot be run (No such file or directory): give a Python interpreter"],
    ),
}


@pytest.mark.parametrize(("flags", "parts"), ENGINES.values(), ids=ENGINES.keys())
def test_engines(refused, train_flags, place, flags, parts):
    message = refused(train_command, *train_flags, *flags)
    assert [part for part in parts if part not in message] == []
    assert not (place.folder / "run").exists()


DATA = {
    "no such file": (lambda p: ["--data.path", "/no/such/rows.jsonl"], ["but there is no such file or folder: check"]),
    "no such data set": (
        lambda p: ["--data.path", "nobody/nothing"],
        ["check the name, or give the folder of a downloaded data set"],
    ),
    "another kind of file": (
        lambda p: ["--data.path", p.file("x.txt", "a,b")],
        ["ends in .jsonl, .json, .parquet, .csv"],
    ),
    "parquet that is none": (lambda p: ["--data.path", p.file("x.parquet", "a,b")], ["expected a parquet file, but"]),
    "empty file": (lambda p: ["--data.path", p.rows()], ["but none of 0 can be used: give rows with question and sol"]),
    "folder without files": (
        lambda p: ["--data.path", p.file("d/x.txt", "").parent],
        ["but there are none: check the"],
    ),
    "no such split": (
        lambda p: ["--data.split", "test"],
        ["expected split 'train' of the single file", "leave it out"],
    ),
    "no usable row": (
        lambda p: ["--data.path", p.rows({"q": 1}, {"question": "a", "solution": " "}, {"question": True}, "{", "[]")],
        [
            "none of 5 can be used: row 0: no question (columns: q); row 1: solution is empty; ",
            "row 2: question is neither text nor a number (came bool); row 3: not JSON",
            "row 4: not an object with columns (came list)",
        ],
    ),
    "conversations without tags": (
        lambda p: [
            "--data.path",
            p.rows({"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]}),
        ],
        ["row 0: the assistant's turn has no tags"],
    ),
    "a bad row, when these stop": (
        lambda p: ["--data.path", p.rows(*ROWS, "{"), "--data.on-bad-row", "stop"],
        ["rows.jsonl, row 30: not JSON", "fix the row, or skip such rows with on_bad_row skip"],
    ),
    "an empty solution, when these stop": (
        lambda p: ["--data.path", p.rows({"question": "a", "solution": ""}, *ROWS), "--data.on-bad-row", "stop"],
        ["rows.jsonl, row 0: solution is empty: fix the row"],
    ),
    "all prompts too long": (
        lambda p: ["--max-prompt-length", "5"],
        ["none of 30 does: 30 x prompt is too long", "tokens, at most 5): raise max_prompt_length"],
    ),
    "fewer rows than a step's questions": (
        lambda p: ["--data.path", p.rows(ROWS[0])],
        ["expected at least 2 rows for one step, but there are 1 x 1 artificial epochs", "or give more rows"],
    ),
    "more held-out rows than there are": (
        lambda p: ["--data.eval-path", p.file("eval.jsonl", json.dumps(ROWS[0]) + "\n"), "--data.eval-rows", "2"],
        ["data.eval_rows=2: expected at most the 1 usable rows of", "lower it"],
    ),
    "held-out rows that are all rows": (
        lambda p: ["--data.eval-path", "None", "--data.eval-rows", "30"],
        ["data.eval_rows=30: expected fewer than the 30 rows of", "lower it, or give --data.eval-path"],
    ),
    "prompt file that is not there": (
        lambda p: ["--data.teacher-prompt-file", "/no/such/prompt.txt"],
        ["expected a prompt file at /no/such/prompt.txt, but it cannot be read", "check the path"],
    ),
    "empty prompt file": (
        lambda p: ["--data.student-prompt-file", p.file("prompt.txt", " \n")],
        ["but the file is empty: write one, or leave the flag out for the default"],
    ),
    "prompt file that is no text": (
        lambda p: ["--data.teacher-prompt-file", p.file("prompt.txt", b"\xff\xfeA")],
        ["but byte 0 is not: save it as UTF-8"],
    ),
}


@pytest.mark.parametrize(("make", "parts"), DATA.values(), ids=DATA.keys())
def test_data(refused, train_flags, place, make, parts):
    message = refused(train_command, *train_flags, *make(place))
    assert [part for part in parts if part not in message] == []
    assert not (place.folder / "run").exists()


FOLDERS = {
    "a file": (lambda p: p.file("x", ""), ["cannot be used (File exists): choose another folder"]),
    "below a file": (lambda p: p.file("x", "") / "run", ["cannot be used (Not a directory): choose another folder"]),
    "on a file system without files": (lambda p: "/proc/run", ["--output-dir /proc/run cannot be used"]),
    "a file where the log belongs": (
        lambda p: p.file("x/logs", "").parent,
        ["expected a run folder that can be written", "File exists"],
    ),
    "a file where checkpoints belong": (
        lambda p: p.file("x/checkpoints", "").parent,
        ["expected a folder for checkpoints, but", "is a file: move it"],
    ),
    "a folder where the metrics belong": (
        lambda p: p.file("x/metrics.jsonl/y", "").parents[1],
        ["expected a run folder that can be written", "Is a directory"],
    ),
    "a folder where the evaluations belong": (
        lambda p: p.file("x/eval.jsonl/y", "").parents[1],
        ["expected a run folder that can be written", "Is a directory"],
    ),
}


@pytest.mark.parametrize(("make", "parts"), FOLDERS.values(), ids=FOLDERS.keys())
def test_run_folders(refused, train_flags, place, make, parts):
    folder = make(place)
    before = held(place.folder)
    message = refused(train_command, *train_flags, "--output-dir", folder)
    assert [part for part in parts if part not in message] == []
    assert held(place.folder) == before


def test_weights_and_biases_without_its_package(refused, train_flags, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    message = refused(train_command, *train_flags, "--log.wandb")
    assert not (place.folder / "run").exists()
    assert "it is not installed: run `pip install 'rlt_jax[wandb]'` or `pip install wandb`, or switch it off" in message


@pytest.fixture(scope="module")
def stopped_run(tiny, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("stopped") / "run", tiny / "teacher")


def cut_checkpoint(folder: Path) -> None:
    for file in (folder / "checkpoints" / "2" / "arrays").rglob("d/*"):
        file.write_bytes(b"")


RESUMES = {
    "must, without a checkpoint": (
        ["--resume", "must"],
        lambda run: shutil.rmtree(run / "checkpoints"),
        ["--resume must: no checkpoint under", "start without it, or check --output-dir"],
    ),
    "never, over files": (
        ["--resume", "never"],
        lambda run: None,
        ["--resume never:", "is not empty: choose another --output-dir, or delete it"],
    ),
    "another dtype": (
        ["--dtype", "bfloat16"],
        lambda run: None,
        ["expected a checkpoint of this run's model, dtype and optimizer, but", "this run has bfloat16["],
    ),
    "another seed": (
        ["--seed", "7"],
        lambda run: None,
        ["expected seed 7, but the checkpoint was written with seed 42: resume with --seed 42"],
    ),
    "fewer steps than are done": (
        ["--max-steps", "1"],
        lambda run: None,
        ["expected a checkpoint of at most step 1, the run's last: raise --max-steps"],
    ),
    "arrays lost": (
        [],
        lambda run: shutil.rmtree(run / "checkpoints" / "2" / "arrays"),
        ["expected a whole checkpoint, but none of 1 is: 2: arrays/000/", " is missing put back what is missing or"],
    ),
    "arrays cut short": ([], cut_checkpoint, ["none of 1 is: 2: arrays/000/", " has 0 bytes instead of "]),
    "empty checkpoint": (
        [],
        lambda run: [shutil.rmtree(run / "checkpoints" / "2"), (run / "checkpoints" / "2").mkdir()],
        ["none of 1 is: 2: manifest.json is missing"],
    ),
    "a file in a checkpoint's place": (
        [],
        lambda run: [shutil.rmtree(run / "checkpoints" / "2"), (run / "checkpoints" / "2").write_text("")],
        ["none of 1 is: 2: it is a file, not a folder"],
    ),
    "a checkpoint of an older version": (
        [],
        lambda run: [(run / "checkpoints" / "2" / "facts").mkdir(), (run / "checkpoints/2/manifest.json").unlink()],
        ["checkpoints/2: expected a checkpoint with checksums, but it was written by an older version of rlt_jax"],
    ),
    "only a damaged one that was set aside": (
        [],
        lambda run: (run / "checkpoints" / "2").rename(run / "checkpoints" / "damaged-2"),
        ["holds no whole checkpoint, but damaged ones (damaged-2): put a whole one back from a copy, or choose"],
    ),
}


@pytest.mark.parametrize(("flags", "spoil", "parts"), RESUMES.values(), ids=RESUMES.keys())
def test_resumes(refused, train_flags, place, stopped_run, flags, spoil, parts):
    run = shutil.copytree(stopped_run, place.folder / "run")
    spoil(run)
    before = held(run)
    message = refused(train_command, *train_flags, *flags)
    assert [part for part in parts if part not in message] == []
    assert held(run) == before


def test_a_resume_with_another_model(refused, train_flags, place, stopped_run, golden):
    shutil.copytree(stopped_run, place.folder / "run")
    models = ("--teacher", golden / "teacher", "--student", golden / "student", "--max-prompt-length", 300)
    message = refused(train_command, *train_flags, *models)
    assert "this run has float32[1000, 128], the checkpoint float32[" in message


def held(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def flip_last_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


CHANGED = {
    "another temperature": (
        ["--temperature", "1"],
        lambda p: None,
        ["measure something else: temperature 0.7 -> 1.0: resume with what the run was"],
    ),
    "other tags": (
        ["--data.tags", "r1", "--data.on-contradiction", "warn"],  # the student was trained with the first ones
        lambda p: None,
        ["measure something else: data.tags None -> r1, the tags bespoke -> r1: resume with what the run was"],
    ),
    "another student": (
        ["--student", "{folder}/model"],  # the teacher's weights, in another folder
        lambda p: None,
        [
            "student ",
            "/model, ",
            "the student's weights 2 files ",
            "choose another --output-dir, or add --accept-changes",
        ],
    ),
    "other weights of the teacher under the same path": (
        [],
        lambda p: flip_last_bit(p.folder / "model" / "model.safetensors"),
        ["measure something else: the teacher's weights 2 files "],
    ),
    "another version of a package": (
        [],
        lambda p: p.file(
            "run/inputs.json",
            (p.folder / "run/inputs.json").read_text().replace(f'"{jax.__version__}"', '"0.0.1"', 1),
        ),
        [f"measure something else: the version of jax 0.0.1 -> {jax.__version__}: resume with what"],
    ),
    "another weight of the reward": (
        ["--reward.kl-penalty-reward-coeff", "1"],
        lambda p: None,
        ["reward.kl_penalty_reward_coeff 3.0 0.03 -> 1.0"],
    ),
    "a changed row under the same path": (
        [],
        lambda p: p.rows(*ROWS[1:], ROWS[0]),
        ["measure something else: the training rows 30 rows "],
    ),
    "changed held-out rows under the same path": (
        [],
        lambda p: p.file("held-out.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS[::-1])),
        ["measure something else: the held-out rows 8 rows "],
    ),
    "a changed prompt under the same path": (
        [],
        lambda p: p.file("prompt.txt", "Explain it well."),
        ["measure something else: the teacher's prompt Explain it. -> Explain it well.: resume"],
    ),
    "another file of other rows": (
        ["--data.eval-path", "{folder}/other.jsonl"],
        lambda p: p.file("other.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS[::-1])),
        ["measure something else: data.eval_path ", "other.jsonl, the held-out rows 8 rows "],
    ),
    "settings that cannot be read": (
        [],
        lambda p: p.file("run/config.yaml", "seed: [\n"),
        ["config.yaml, line 2: not YAML", "restore it, or delete it to resume without a comparison"],
    ),
    "prompts and rows that cannot be read": (
        [],
        lambda p: p.file("run/inputs.json", "{"),
        ["inputs.json: expected the prompts and rows of the run so far, but it cannot be read"],
    ),
    "a run of sft": (
        [],
        lambda p: p.file("run/config.yaml", "model: x\ntarget: teacher\n"),
        ["holds a run of `rlt_jax.sft`", "choose another folder"],
    ),
}


@pytest.mark.parametrize(("flags", "change", "parts"), CHANGED.values(), ids=CHANGED.keys())
def test_resumes_that_would_measure_something_else(refused, train_flags, place, stopped_run, flags, change, parts):
    """They are refused by name before a model is loaded, and leave everything as it was."""
    place.file("held-out.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    files = ("--data.eval-path", place.folder / "held-out.jsonl", "--data.teacher-prompt-file")
    teacher = place.model("rlt_jax.json", None)  # which was trained with no other prompt
    train_flags = (*train_flags, "--teacher", teacher, *files, place.file("prompt.txt", "Explain it."))
    run = shutil.copytree(stopped_run, place.folder / "run")
    config, _ = parse_train_args(list(map(str, train_flags)))
    split = load_split_rows(config.data, evaluates=config.eval_steps > 0)
    inputs = run_inputs(chat_format_of(config), split.train, split.held_out, models=models_of(config))
    record_start(config, inputs, [], run, step=2)
    change(place)
    before = held(run)
    message = refused(train_command, *train_flags, *(flag.format(folder=place.folder) for flag in flags))
    assert [part for part in parts if part not in message] == []
    assert held(run) == before


def test_a_run_folder_in_use(refused, train_flags, place):
    with sole_user(place.folder / "run", "--output-dir"):
        message = refused(train_command, *train_flags)
        sft_flags = ("--model", place.tiny / "teacher", "--data.path", place.rows(*ROWS))
        assert message == refused(sft_command, *sft_flags, "--output-dir", place.folder / "run")
        assert held(place.folder / "run").keys() == {".lock"}
    assert f"run is in use by another run (process {os.getpid()} on " in message
    assert message.endswith("): wait, stop it, or choose another folder")


def test_an_output_in_use(refused, place):
    good = ("--teacher", place.tiny / "teacher", "--student", place.tiny / "student", "--data", place.rows(*ROWS))
    with sole_writer(place.folder / "scores.jsonl", "--out"):
        message = refused(score_command, *good, "--out", place.folder / "scores.jsonl")
    assert "scores.jsonl is in use by another run (process " in message and "choose another file" in message


SCORES = {
    "output that exists": (lambda p: ["--out", p.file("out.jsonl", "")], ["out.jsonl exists: choose another file"]),
    "output below a file": (lambda p: ["--out", p.file("x", "") / "y"], ["cannot write --out", "choose another file"]),
    "output nowhere": (lambda p: ["--out", "/proc/scores.jsonl"], ["cannot write --out /proc/scores.jsonl"]),
    "no such rows": (
        lambda p: ["--data", "/no/such/rows.jsonl"],
        ["but there is no such file or folder: check the path"],
    ),
    "rows without explanations": (
        lambda p: ["--data", p.rows({"question": "a", "solution": "b"})],
        ["none of 1 can be used: row 0: neither completion nor explanation (columns: question, solution)"],
    ),
    "rows with both": (
        lambda p: ["--data", p.rows({**ROWS[0], "completion": "x"}), "--on-bad-row", "stop"],
        ["row 0: both completion and explanation: keep one, or name the column to read: fix the row"],
    ),
    "an explanation with its end tag": (
        lambda p: ["--data", p.rows({**ROWS[0], "explanation": "a<|end_of_explanation|>b"})],
        ["row 0: expected an explanation without tags, but it holds <|end_of_explanation|>"],
    ),
    "an empty explanation": (
        lambda p: ["--data", p.rows({**ROWS[0], "explanation": " "})],
        ["row 0: expected an explanation, but it is empty"],
    ),
    "a temperature of 0": (lambda p: ["--temperature", "0"], ["temperature=0: expected a number above 0"]),
    "nan": (lambda p: ["--temperature", "nan"], ["temperature=nan: expected a finite number"]),
    "infinite weight": (
        lambda p: ["--reward.kl-penalty-reward-coeff", "inf"],
        ["reward.kl_penalty_reward_coeff=inf: expected a finite number"],
    ),
    "no rows at a time": (lambda p: ["--score-batch-size", "0"], ["score_batch_size=0: expected a positive whole num"]),
    "empty name": (lambda p: ["--student", ""], ["student is empty: expected a model folder or hub name"]),
    "another tokenizer": (lambda p: ["--student", p.golden / "student"], ["to share one vocabulary"]),
    "no such reduction": (lambda p: ["--reward.reduction-kl", "average"], ["invalid choice 'average'"]),
}


@pytest.mark.parametrize(("make", "parts"), SCORES.values(), ids=SCORES.keys())
def test_scores(refused, place, tiny, make, parts):
    good = ("--teacher", tiny / "teacher", "--student", tiny / "student", "--data", place.rows(*ROWS[:2]))
    message = refused(score_command, *good, "--out", place.folder / "scores.jsonl", *make(place))
    assert [part for part in parts if part not in message] == []
    assert not list(place.folder.rglob("*scores*"))  # nothing half-written stays


def test_scores_without_required_flags(refused):
    assert "--student" in refused(score_command, "--teacher", "x")


SFTS = {
    "rows without traces": (
        lambda p: ["--data.path", p.rows({"question": "a", "solution": "b"})],
        ["expected rows with a reasoning trace, but none of 1 has one: give rows with a reasoning_trace"],
    ),
    "texts that are all too long": (
        lambda p: ["--max-length", "9"],
        ["expected rows with a reasoning trace and at most 9 tokens, but none of 30 can be used", "raise max_length"],
    ),
    "fewer rows than a batch": (
        lambda p: ["--data.path", p.rows(*ROWS[:3]), "--train-batch-size", "16"],
        ["train_batch_size=16: expected at most the 3 usable rows of", "lower it, leave it out, or give more rows"],
    ),
    "no such target": (lambda p: ["--target", "both"], ["invalid choice 'both' for argument '--target'"]),
    "a rate that is none": (lambda p: ["--learning-rate", "nan"], ["learning_rate=nan: expected a finite number"]),
    "a micro-batch above the batch": (
        lambda p: ["--per-device-train-batch-size", "17"],
        ["per_device_train_batch_size=17 is more than train_batch_size=16"],
    ),
    "no folder": (lambda p: ["--output-dir", ""], ["output_dir is empty: expected a folder for the run"]),
    "no model": (lambda p: ["--model", ""], ["model is empty: expected a model folder or hub name"]),
    "damaged model": (lambda p: ["--model", p.cut_weights()], ["expected a complete safetensors file"]),
    "a resume without checkpoint": (lambda p: ["--resume", "must"], ["--resume must: no checkpoint under"]),
}


@pytest.mark.parametrize(("make", "parts"), SFTS.values(), ids=SFTS.keys())
def test_supervised_runs(refused, place, tiny, make, parts):
    good = ("--model", tiny / "teacher", "--data.path", place.rows(*ROWS), "--output-dir", place.folder / "run")
    message = refused(sft_command, *good, *make(place))
    assert [part for part in parts if part not in message] == []
    assert not (place.folder / "run").exists()


def spoilt_run(p: Place) -> Path:
    run = write_run(p.folder / "run", p.tiny / "teacher")
    cut_checkpoint(run)
    return run


PROCESSES = {
    "train, unknown preset": lambda p: ["train", "--preset", "huge"],
    "train, damaged model": lambda p: ["train", "--teacher", p.cut_weights(), "--output-dir", p.folder / "run"],
    "train, damaged checkpoint": lambda p: ["train", "--max-steps", 4, "--output-dir", spoilt_run(p)],
    "score, output exists": lambda p: [
        *("score", "--teacher", p.tiny / "teacher", "--student", p.tiny / "student"),
        *("--data", p.rows(*ROWS), "--out", p.file("out", "")),
    ],
    "sft, no traces": lambda p: [
        *("sft", "--model", p.tiny / "teacher", "--output-dir", p.folder / "run"),
        *("--data.path", p.rows({"question": "a", "solution": "b"})),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("make", PROCESSES.values(), ids=PROCESSES.keys())
def test_a_real_process_prints_one_error_and_no_traceback(place, small, make):
    name, *flags = make(place)
    flags = [*small, *flags] if name == "train" and "--preset" not in flags else flags
    done = subprocess.run(
        [sys.executable, "-m", f"rlt_jax.{name}", *map(str, flags)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.stderr.count("error: ") == 1 and done.stderr.startswith("error: ")
