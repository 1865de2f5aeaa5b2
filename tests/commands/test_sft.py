"""`python -m rlt_jax.sft`: the loss falls, a resumed run is the same run, each target trains on its own part."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from transformers import Qwen2ForCausalLM

from rlt_jax import sft as sft_command
from rlt_jax.configs import SftConfig, load_settings, parse_command
from rlt_jax.data import questions_of_step
from rlt_jax.errors import UserError
from rlt_jax.models import load_model
from rlt_jax.runs.chat_format import load_chat_format
from rlt_jax.runs.sft import chat_format_of, load_examples
from rlt_jax.segments import micro_batches
from rlt_jax.sft import sft

pytestmark = pytest.mark.slow


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parse(flags: tuple) -> SftConfig:
    return parse_command(SftConfig, list(map(str, flags)), command="sft", description="")[0]


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory) -> Path:
    """64 rows with true traces, one without a trace (row 5) and one that is too long (row 9)."""
    rows = lines(tiny / "train.jsonl")[:64]
    rows.insert(5, {"question": "What is 1+1?", "solution": "2"})
    rows.insert(9, {"question": "What is 1+1?", "solution": "2", "reasoning_trace": "One and one. " * 100})
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def flags(tiny, data) -> tuple:
    return (
        *("--model", tiny / "teacher", "--data.path", data, "--data.eval-path", tiny / "eval.jsonl"),
        *(
            "--data.eval-rows",
            16,
            "--data.teacher-prompt-file",
            tiny / "teacher_prompt.txt",
            "--saved-mlp",
            3,
            "--saved-attention",
            3,
        ),
        *("--max-length", 256, "--train-batch-size", 16, "--per-device-train-batch-size", 16),
        *("--learning-rate", 1e-3, "--optimizer.lr-scheduler", "constant", "--check-texts", 0),
    )


@pytest.fixture(scope="module")
def run(command, flags, golden, tmp_path_factory) -> Path:
    """A model of random weights as teacher."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    command(
        *("sft", *flags, "--model", golden / "teacher", "--target", "teacher", "--dtype", "float32"),
        *("--num-train-epochs", 3, "--check-texts", 3, "--eval-steps", 4, "--output-dir", folder),
    )
    return folder


def test_held_out_loss_falls(run):
    held_out = [(line["step"], line["eval/loss"]) for line in lines(run / "metrics.jsonl") if "eval/loss" in line]
    assert [step for step, _ in held_out] == [0, 4, 8, 12]  # 3 epochs of 64 rows
    assert held_out[-1][1] < 0.7 * held_out[0][1]


def test_metrics_of_a_step(run):
    logged = [line for line in lines(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, 13))
    for line in logged:
        assert line["loss"] > 0 and line["grad_norm"] > 0 and line["seconds/update"] <= line["seconds/step"]
        assert line["tokens_per_second/update"] > 0 and line["memory/host_gb"] > 0
    assert logged[0]["learning_rate"] == pytest.approx(0.5e-3)  # warm-up of a twentieth: one step
    assert [line["learning_rate"] for line in logged[1:]] == [pytest.approx(1e-3)] * 11


def test_files_and_the_rows_that_are_not_used(run, data):
    for name in ("config.yaml", "logs", "tensorboard", "checkpoints/12", "final/tokenizer.json"):
        assert (run / name).exists()
    log = (run / "logs" / "training.log").read_text()
    skipped = "1 x no reasoning trace (row 5); 1 x text is too long (row 9)"
    assert f"WARNING rlt_jax: 2 training rows skipped: {skipped}\n" in log
    assert f" on 64 training examples of {data} (2 skipped), 12 steps of 16 rows\n" in log
    assert "no evaluation" not in log and " steps on 16 rows of " in log
    assert load_settings(run / "config.yaml", SftConfig).data.path == str(data)


def test_texts_are_drawn_at_the_end(run):
    """The model is far from done: the log says so, and how long the texts became."""
    *_, last = lines(run / "metrics.jsonl")
    check = json.loads((run / "check.json").read_text())
    assert (last["step"], check["step"], check["drawn"]) == (12, 12, 3)
    assert last["check/matched"] == check["closed"] / 3 and last["check/finished"] == 1 - check["cut_off"] / 3
    log = (run / "logs" / "training.log").read_text()
    assert f"WARNING rlt_jax: {check['closed']} of 3 drawn explanations close their tags (" in log
    assert "(the same command with --num-train-epochs 6)" in log and "the first drawn text: " in log


def test_ten_rows_and_no_other_setting(command, tiny, tmp_path):
    """What is open follows the rows and the machine, is recorded, and is the same when the command is repeated."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in lines(tiny / "train.jsonl")[:10]))
    line = ("sft", "--model", tiny / "teacher", "--data.path", rows, "--output-dir", tmp_path / "run")
    line = (*line, "--data.teacher-prompt-file", tiny / "teacher_prompt.txt", "--max-steps", 2, "--check-texts", 2)
    printed = command(*line)
    saved = load_settings(tmp_path / "run" / "config.yaml", SftConfig)
    assert (saved.dtype, saved.train_batch_size, saved.learning_rate) == ("float32", 10, 1e-3)
    assert "INFO 10 rows: all of them in each step; --train-batch-size changes that\n" in printed
    ready = "INFO 2 of 2 drawn explanations close their tags: the teacher is ready for rlt_jax.train; the loss "
    assert ready in printed and f"INFO the model is in {tmp_path / 'run' / 'final'}\n" in printed
    words = f"--teacher {tmp_path / 'run' / 'final'} --student STUDENT --data.path {rows} --output-dir FOLDER"
    assert f"INFO next: python -m rlt_jax.train --preset PRESET {words}\n" in printed

    written = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = command(*line)
    assert "the run is finished" in again and ready in again
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == written
    assert load_settings(tmp_path / "run" / "config.yaml", SftConfig) == saved


def test_a_check_that_does_not_fit_loses_nothing(flags, tmp_path, monkeypatch):
    def exhausted(*args, **kwargs):
        raise UserError("the GPU's memory is too small: generate does not fit even with one sequence at a time")

    monkeypatch.setattr("rlt_jax.runs.sft.check_texts", exhausted)
    run = sft(parse((*flags, "--check-texts", 2, "--max-steps", 1, "--output-dir", tmp_path / "run")))
    assert (run / "final" / "model.safetensors").exists() and not (run / "check.json").exists()
    log = (run / "logs" / "training.log").read_text()
    assert "WARNING rlt_jax: no texts were drawn to check the model: the GPU's memory is too small" in log


def test_the_result_opens_in_transformers_with_equal_logits(run):
    model, params = load_model(run / "final")
    ids = np.arange(1, 40, dtype=np.int32)[None]
    with torch.no_grad():
        theirs = Qwen2ForCausalLM.from_pretrained(run / "final", dtype=torch.float32)(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model.logits(params, ids, np.ones_like(ids)), theirs, atol=1e-4)


def test_two_steps_and_two_more_are_four_in_bfloat16(flags, tiny, tmp_path):
    """A student; the second half starts from the checkpoint and the configuration that the whole run left at step 2."""
    flags = (
        *flags,
        "--target",
        "student",
        "--model",
        tiny / "student",
        "--student-gap",
        "blank-line",
        "--dtype",
        "bfloat16",
    )
    flags = (*flags, "--optimizer.lr-scheduler", "cosine", "--log.no-tensorboard", "--save-steps", 2)
    whole = sft(parse((*flags, "--max-steps", 4, "--output-dir", tmp_path / "whole")))
    halves = shutil.copytree(whole, tmp_path / "halves")
    shutil.rmtree(halves / "checkpoints" / "4")
    shutil.rmtree(halves / "final")
    sft(parse(("--config", halves / "config.yaml", "--output-dir", halves, "--resume", "must")))

    def state(folder):
        parts = sorted((folder.resolve() / "checkpoints" / "4" / "arrays").iterdir())
        read = [ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(part) for part in parts]
        return [np.asarray(leaf) for leaf in jax.tree.leaves(read)]

    for ours, theirs in zip(state(halves), state(whole), strict=True):
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
    assert (halves / "final" / "model.safetensors").read_bytes() == (whole / "final" / "model.safetensors").read_bytes()
    losses = [[line["loss"] for line in lines(folder / "metrics.jsonl")] for folder in (halves, whole)]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    assert "resuming from step 2" in (halves / "logs" / "training.log").read_text()


def test_a_resumed_run_names_what_changed_and_records_what_was_accepted(flags, data, tmp_path):
    """From a copy of the rows, which is the same data; then with other rows, accepted; then finished."""
    flags = (
        *flags,
        "--log.no-tensorboard",
        "--checkpoint.no-export",
        "--eval-steps",
        0,
        "--output-dir",
        tmp_path / "a",
    )
    run = sft(parse((*flags, "--max-steps", 1)))
    assert sorted(path.name for path in run.iterdir()) == [
        *("checkpoints", "config.yaml", "inputs.json", "logs", "metrics.jsonl")
    ]

    def log() -> str:
        return (run / "logs" / "training.log").read_text()

    copy = shutil.copy(data, tmp_path / "copy.jsonl")
    sft(parse((*flags, "--max-steps", 2, "--learning-rate", 1e-4, "--data.path", copy)))
    changed = f"max_steps 1 -> 2, learning_rate 0.001 -> 0.0001, data.path {data} -> {copy}"
    assert f"WARNING rlt_jax: resuming with other settings: {changed}\n" in log()
    assert [line["learning_rate"] for line in lines(run / "metrics.jsonl")] == [1e-3, pytest.approx(1e-4)]

    other = tmp_path / "copy.jsonl"
    other.write_text("".join(data.read_text().splitlines(keepends=True)[::-1]))
    flags = (*flags, "--learning-rate", 1e-4, "--data.path", other)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"measure something else: the training rows 66 rows \w+ -> 66 rows \w+: "):
        sft(parse((*flags, "--max-steps", 3)))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    sft(parse((*flags, "--max-steps", 3, "--accept-changes")))
    assert "change what is measured (--accept-changes): the training rows 66 rows " in log()
    record = lines(run / "changes.jsonl")[-1]
    assert record["step"] == 2
    assert [(change["name"], change["measured"]) for change in record["changes"]] == [
        *(("max_steps", False), ("the training rows", True))
    ]
    sft(parse((*flags, "--max-steps", 3)))  # the accepted rows are those of the run now

    before = {path: path.read_bytes() for path in run.glob("*.*")}
    sft(parse((*flags, "--max-steps", 3, "--learning-rate", 0.5)))
    assert log().rstrip().endswith("no effect on the finished run: learning_rate 0.0001 -> 0.5")
    assert {path: path.read_bytes() for path in run.glob("*.*")} == before


def test_of_two_runs_in_one_folder_one_is_refused(flags, tmp_path):
    line = [sys.executable, "-m", "rlt_jax.sft", *flags, "--max-steps", 12, "--checkpoint.no-export", "--eval-steps", 0]
    line = list(map(str, [*line, "--output-dir", tmp_path / "run"]))
    runs = [subprocess.Popen(line, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    printed = [run.communicate() for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2], printed
    (error,) = [err for run, (_, err) in zip(runs, printed) if run.returncode == 2]
    assert error.startswith(f"error: --output-dir {tmp_path / 'run'} is in use by another run (process ")
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 13))


def repeated_traces(tiny, path: Path) -> Path:
    """The tiny problems with traces of one to five times their length: 90 to 182 tokens each."""
    rows = lines(tiny / "train.jsonl")[:64]
    for i, row in enumerate(rows):
        row["reasoning_trace"] = " ".join([row["reasoning_trace"]] * (1 + i % 5))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_packed_steps_have_the_losses_of_single_rows_and_resume(flags, tiny, tmp_path, command):
    data, held_out = (repeated_traces(tiny, tmp_path / name) for name in ("rows.jsonl", "held_out.jsonl"))
    flags = (*flags, "--data.path", data, "--data.eval-path", held_out, "--dtype", "float32", "--eval-steps", 1)
    flags = (*flags, "--save-steps", 1, "--max-steps", 2)
    # AdamW's first steps follow the gradient's signs: where it is about 0, rounding decides.
    flags = (*flags, "--learning-rate", 1e-4, "--log.no-tensorboard", "--checkpoint.no-export")
    sft(parse((*flags, "--output-dir", tmp_path / "single")))
    command("sft", *flags, "--packing", "--packed-length", 1024, "--output-dir", tmp_path / "packed")
    single, packed = (lines(tmp_path / name / "metrics.jsonl") for name in ("single", "packed"))
    for name, count in (("loss", 2), ("grad_norm", 2), ("eval/loss", 3)):
        found, expected = ([line[name] for line in run if name in line] for run in (packed, single))
        assert len(found) == count and found == pytest.approx(expected, rel=1e-5, abs=1e-5)

    halves = shutil.copytree(tmp_path / "packed", tmp_path / "halves")
    shutil.rmtree(halves / "checkpoints" / "2")
    sft(parse(("--config", halves / "config.yaml", "--output-dir", halves, "--resume", "must")))
    resumed = lines(halves / "metrics.jsonl")
    assert [line["loss"] for line in resumed if "loss" in line] == [line["loss"] for line in packed if "loss" in line]
    assert "resuming from step 1" in (halves / "logs" / "training.log").read_text()


def test_packing_leaves_little_padding_and_only_real_tokens_are_counted(flags, tiny, tmp_path):
    """Over an epoch of 16 rows a step. Speed counts the rows' own tokens, with and without packing."""
    data = repeated_traces(tiny, tmp_path / "rows.jsonl")
    config = parse((*flags, "--data.path", data, "--output-dir", tmp_path / "run", "--max-steps", 1, "--packing"))
    examples = load_examples(config, chat_format_of(config)).training
    chosen = [
        [examples[i] for i in questions_of_step(step, num_rows=64, questions_per_step=16, seed=config.seed)]
        for step in range(4)
    ]
    real = [sum(len(example.ids) for example in step) for step in chosen]

    def computed(size: int, *, packing: bool, arrangement: str = "masked") -> int:
        """Tokens of the forward passes of an epoch, padding included."""
        one = replace(config, per_device_train_batch_size=size, packing=packing)
        lie = partial(micro_batches, tokens=one.tokens_of_update, arrangement=arrangement)
        laid_out = [
            lie([example.ids for example in step], packed_length=config.packed_length if packing else None)
            for step in chosen
        ]
        return sum(batch.computed for batches in laid_out for batch in batches)

    alone = [1 - sum(real) / computed(size, packing=False, arrangement="rows") for size in (1, 16)]
    assert alone == pytest.approx([0.152, 0.295], abs=1e-3)
    # The examples' first tokens are the same: sharing them saves more than is padded.
    assert [computed(size, packing=True) / sum(real) for size in (1, 16)] == pytest.approx([0.976] * 2, abs=1e-3)
    assert [computed(size, packing=False) / sum(real) for size in (1, 16)] == pytest.approx([0.976, 1.064], abs=1e-3)

    (line,) = lines(sft(replace(config, eval_steps=0)) / "metrics.jsonl")
    assert line["tokens_per_second/update"] * line["seconds/update"] == pytest.approx(real[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--packing", "--packed-length", 0), "packed_length=0: expected a positive whole number"),
        (
            ("--no-packing", "--packed-length", 1024),
            "packed_length=1024 without packing has no effect: add --packing, or leave it out",
        ),
    ],
)
def test_packing_that_cannot_be_is_refused(main, flags, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        main(sft_command, *flags, *changes, "--output-dir", tmp_path / "run")
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("target", "gap", "expected"),
    [
        ("teacher", "as-row", "{trace}\n\n<|end_of_explanation|><|im_end|>\n"),
        (
            "student",
            "as-row",
            "<|begin_of_thought|>\n\n{trace}\n\n<|end_of_thought|>"
            "<|begin_of_solution|>{solution}<|end_of_solution|><|im_end|>\n",
        ),
        (
            "student",
            "blank-line",
            "<|begin_of_thought|>\n\n{trace}\n\n<|end_of_thought|>\n\n"
            "<|begin_of_solution|>{solution}<|end_of_solution|><|im_end|>\n",
        ),
    ],
)
def test_what_teacher_and_student_are_trained_on(flags, tiny, target, gap, expected):
    config = parse((*flags, "--target", target, "--student-gap", gap, "--output-dir", "unused"))
    loaded = load_examples(config, chat_format_of(config))
    assert (len(loaded.training), len(loaded.held_out), len(loaded.questions)) == (64, 16, 0)
    assert (len(loaded.rows), loaded.skipped) == (64, 2)
    example = loaded.training[0]
    chat = load_chat_format(
        str(tiny / "teacher"), str(tiny / "teacher"), tags="bespoke", teacher_prompt_file=None, student_prompt_file=None
    )
    row = lines(tiny / "train.jsonl")[0]
    trained = chat.tokenizer.decode(example.ids[example.trained])
    assert trained == expected.format(trace=row["reasoning_trace"], solution=row["solution"])
    untrained = chat.tokenizer.decode(example.ids[~example.trained])
    assert row["question"] in untrained and row["reasoning_trace"] not in untrained
    assert (row["solution"] in untrained.split("assistant")[-1]) is (target == "teacher")
    first = np.argmax(example.trained)
    assert not example.trained[:first].any() and example.trained[first:].all()  # one run, to the end
