"""Tokens in the metrics of `train`, `sft` and `score`, recomputed from files, and from what went to the device."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from rlt_jax import score as score_command
from rlt_jax import sft as sft_command
from rlt_jax import train as train_command
from rlt_jax.configs import SftConfig, load_config, load_settings, parse_train_args
from rlt_jax.data import build_prompts, eos_ids, questions_of_step, score_row_from_ids
from rlt_jax.device.peaks import PEAKS, Peak
from rlt_jax.learner import step as learner_step
from rlt_jax.rewards import logprobs
from rlt_jax.rewards.rlt import reads
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.rows import load_data_rows
from rlt_jax.runs.sft import load_examples
from rlt_jax.train import train
from tests.commands.comparing import without_times

pytestmark = pytest.mark.slow

COUNTS = ("real", "computed", "shared")
SHORTEST_SHARED = 16  # tokens


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def tokens(line: dict) -> dict[str, int]:
    """`score_real` and so on of a line of metrics."""
    return {name.removeprefix("tokens/"): value for name, value in line.items() if name.startswith("tokens/")}


def check_sums(line: dict) -> None:
    """real - shared + padding = computed, and phases are sums of their passes."""
    found = tokens(line)
    for name in {name.rpartition("_")[0] for name in found}:
        real, computed, shared = (found[f"{name}_{count}"] for count in COUNTS)
        assert 0 <= shared < real and computed >= real - shared  # the rest is padding
    passes = [name for name in ("score_teacher", "score_student", "score_reference") if f"{name}_real" in found]
    for count in COUNTS:
        assert found.get(f"score_{count}", 0) == sum(found[f"{name}_{count}"] for name in passes)


class Device:
    """What goes to the device: sizes of the ids of forward passes and of micro-batches, in the order of the calls.

    Args:
      fails: calls of either kind, counted from 0, that run out of memory instead.
    """

    def __init__(self, monkeypatch, *, fails: tuple[tuple[str, int], ...] = ()) -> None:
        self.sizes: list[tuple[str, int]] = []
        self.calls = {"score": 0, "update": 0}
        self.fails = fails
        forward, sum_gradients = logprobs._sequence_logprobs, learner_step.sum_gradients

        def scored(model, params, ids, **rest):
            self.called("score", ids.size)
            return forward(model, params, ids, **rest)

        def summed(accumulate, params, batches, **rest):
            def seen() -> Iterator:
                for batch, weight in batches:
                    self.called("update", batch.ids.size)
                    yield batch, weight

            return sum_gradients(accumulate, params, seen(), **rest)

        monkeypatch.setattr(logprobs, "_sequence_logprobs", scored)
        monkeypatch.setattr(learner_step, "sum_gradients", summed)

    def called(self, phase: str, size: int) -> None:
        number = self.calls[phase]
        self.calls[phase] += 1
        if (phase, number) in self.fails:
            self.sizes.append((f"{phase} fails", size))
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate 9 bytes")
        self.sizes.append((phase, size))

    def total(self, phase: str) -> int:
        return sum(size for name, size in self.sizes if name == phase)


def most_shared(rows: list[list[int]]) -> int:
    """The most tokens that rows can share: over all ways to put them into groups with a common prefix."""

    def common(group: list[list[int]]) -> int:
        length = next((i for i, them in enumerate(zip(*group)) if len(set(them)) > 1), min(map(len, group)))
        return length if length >= SHORTEST_SHARED else 0

    def partitions(rest: list[list[int]]) -> Iterator[list[list[list[int]]]]:
        if not rest:
            yield []
            return
        for groups in partitions(rest[1:]):
            yield [[rest[0]], *groups]
            for i, group in enumerate(groups):
                yield [*groups[:i], [rest[0], *group], *groups[i + 1 :]]

    return max(sum((len(group) - 1) * common(group) for group in groups) for groups in partitions(rows))


@pytest.fixture
def flags(small) -> tuple:
    """Of a run that keeps all completions that it has drawn."""
    return (*small, "--save-steps", "0", "--checkpoint.no-at-end", "--checkpoint.no-export")


def test_training_counts_what_is_on_disk_and_what_went_to_the_device(main, flags, tiny, tmp_path, monkeypatch):
    device = Device(monkeypatch)
    main(train_command, *flags, "--max-steps", 2, "--log.sample-probability", 1, "--output-dir", tmp_path)
    config = load_config(tmp_path / "config.yaml")
    chat = chat_format_of(config)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
    prompts = build_prompts(load_data_rows(config.data).rows, chat, max_prompt_length=config.max_prompt_length).prompts
    logged = lines(tmp_path)
    assert len(logged) == 2
    for line in logged:
        check_sums(line)
        samples = [sample for sample in lines(tmp_path, "completions.jsonl") if sample["step"] == line["step"]]
        drawn = load_file(tmp_path / "rollouts" / f"{line['step']}.safetensors")
        assert len(samples) == 8 and [sample["tokens"] for sample in samples] == drawn["lengths"].tolist()
        completions = np.split(drawn["token_ids"], np.cumsum(drawn["lengths"])[:-1])
        asked = [prompts[sample["row"]] for sample in samples]
        assert [prompt.row.question for prompt in asked] == [sample["question"] for sample in samples]
        read = [
            tokenizer(prompt.teacher_text, add_special_tokens=False)["input_ids"] + ids.tolist()
            for prompt, ids in zip(asked, completions)
        ]
        found = tokens(line)
        for part in ("score_teacher", "score_reference", "update"):
            assert found[f"{part}_real"] == sum(map(len, read))
            assert found[f"{part}_shared"] == most_shared(read) > len(read[0])
        ends = eos_ids(chat.tokenizer, config.teacher)
        students = [score_row_from_ids(p, ids, chat, ends).student_ids.tolist() for p, ids in zip(asked, completions)]
        assert found["score_student_real"] == sum(map(len, students))
        assert found["score_student_shared"] == most_shared(students)
        for phase in ("score", "update"):
            assert line[f"tokens_per_second/{phase}"] * line[f"seconds/{phase}"] == pytest.approx(
                found[f"{phase}_real"]
            )
    for phase in ("score", "update"):
        assert sum(line[f"tokens/{phase}_computed"] for line in logged) == device.total(phase)


def test_a_pass_that_ran_out_of_memory_is_not_counted(main, flags, tmp_path, monkeypatch):
    """The student's, after the teacher's; the update twice: without saved activations, then with half the tokens."""
    fails = (("score", 1), ("update", 0), ("update", 1))
    device = Device(monkeypatch, fails=fails)
    sizes = ("--score-tokens", 2048, "--update-tokens", 256)
    main(train_command, *flags, *sizes, "--max-steps", 1, "--output-dir", tmp_path)
    (line,) = lines(tmp_path)
    assert json.loads((tmp_path / "backoff.json").read_text()) == {
        "generate": 64,
        "score": 1024,
        "update": 128,
        "save_activations": False,
    }
    check_sums(line)
    failed = [i for i, (name, _) in enumerate(device.sizes) if name == "score fails"]
    final = [size for name, size in device.sizes[failed[-1] + 1 :] if name == "score"]
    assert line["tokens/score_computed"] == sum(final) < device.total("score")
    assert line["tokens/update_computed"] == device.total("update")  # those that failed did so at once
    assert max(size for name, size in device.sizes if name == "update") <= 128


def test_passes_that_are_not_made_have_no_tokens(flags, tmp_path):
    """Without a KL term, and with rewards on texts alone, or on the student's log-probs."""

    def passes(name, reward_fn):
        config = parse_train_args(list(map(str, (*flags, "--loss.beta", 0, "--max-steps", 1))))[0]
        (line,) = lines(train(replace(config, output_dir=str(tmp_path / name)), reward_fn=reward_fn))
        check_sums(line)
        return {name.removesuffix("_real") for name in tokens(line) if name.endswith("_real")}

    @reads()
    def shortness(inputs):
        return np.array([-float(len(row.explanation)) for row in inputs.rows])

    @reads("student")
    def helpful(inputs):
        return (inputs.logprobs.solution_logps * inputs.logprobs.solution_mask).sum(1)

    assert passes("default", None) == {"score", "score_teacher", "score_student", "update"}
    assert passes("student", helpful) == {"score", "score_student", "update"}
    assert passes("texts", shortness) == {"update"}


def test_a_resumed_run_counts_the_same(main, small, tmp_path):
    line = (train_command, *small, "--save-steps", 1, "--log.no-tensorboard")
    main(*line, "--max-steps", 2, "--output-dir", tmp_path / "whole")
    for last in (1, 2):
        main(*line, "--max-steps", last, "--output-dir", tmp_path / "halves")
    whole, halves = (lines(tmp_path / name) for name in ("whole", "halves"))
    assert [tokens(line) for line in whole] == [tokens(line) for line in halves]
    assert without_times(whole) == without_times(halves) and tokens(whole[0]) and "attention/flat" in whole[0]


def test_utilisation_where_the_peak_is_known(main, flags, tmp_path, monkeypatch):
    """As if the table had this device. Compared with seconds: the shares are of the same FLOPs."""
    monkeypatch.setitem(PEAKS, jax.local_devices()[0].device_kind, Peak(2e12, 1e12))
    flags = (*flags, "--dtype", "bfloat16", "--max-steps", 1)
    main(train_command, *flags, "--output-dir", tmp_path / "known")
    (line,) = lines(tmp_path / "known")
    for phase in ("score", "update"):
        once, unshared, full = (line[f"{name}/{phase}"] for name in ("mfu", "mfu_unshared", "mfu_full"))
        real, shared = (line[f"tokens/{phase}_{count}"] for count in ("real", "shared"))
        assert 0 < once < unshared and once / unshared == pytest.approx(1 - shared / real, abs=0.15)
        assert full > unshared / 2  # of twice the peak
    events = EventAccumulator(str(tmp_path / "known" / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    shown = set(events.Tags()["tensors"])
    assert {"tokens/score_real", "tokens/update_shared", "mfu/update", "mfu_full/score", "attention/flat"} <= shown
    assert "seconds/compile" in shown


def test_the_log_says_which_attention_ran_and_how_long_compiling_took(main, flags, tmp_path):
    main(train_command, *flags, "--max-steps", 1, "--output-dir", tmp_path)
    (line,) = lines(tmp_path)
    log = (tmp_path / "logs" / "training.log").read_text()
    assert " attention: xla\n" in log
    (programs, seconds) = re.search(r"step 1 compiled or fetched (\d+) programs in (\d+\.\d) s\n", log).groups()
    assert int(programs) == line["compilations"]
    assert float(seconds) == pytest.approx(line["seconds/compile"], abs=0.051)
    assert 0 < line["seconds/compile"] < line["seconds/step"]


@pytest.mark.parametrize("packing", [(), ("--packing", "--packed-length", "512")])
def test_fine_tuning_counts_its_rows(main, tiny, tmp_path, monkeypatch, packing):
    device = Device(monkeypatch)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(line + "\n" for line in (tiny / "train.jsonl").read_text().splitlines()[:16]))
    flags = (
        *("--model", tiny / "teacher", "--data.path", data, "--output-dir", tmp_path / "run", "--max-steps", 2),
        *("--train-batch-size", 8, "--max-length", 256, "--eval-steps", 0, "--check-texts", 0, *packing),
    )
    main(sft_command, *flags)
    config = load_settings(tmp_path / "run" / "config.yaml", SftConfig)
    examples = load_examples(config, chat_format_of(config)).training
    logged = lines(tmp_path / "run")
    assert len(logged) == 2
    for step, line in enumerate(logged):
        check_sums(line)
        chosen = questions_of_step(step, num_rows=16, questions_per_step=8, seed=config.seed)
        rows = [examples[i].ids.tolist() for i in chosen]
        found = tokens(line)
        assert found["update_real"] == sum(map(len, rows)) and set(found) == {f"update_{count}" for count in COUNTS}
        assert 0 < found["update_shared"] <= most_shared(rows)
        assert line["attention/fused"] == 0
    assert sum(line["tokens/update_computed"] for line in logged) == device.total("update")
    log = (tmp_path / "run" / "logs" / "training.log").read_text()
    assert " attention: xla\n" in log


def test_score_says_what_it_computed(main, tiny, tmp_path, monkeypatch, capsys):
    device = Device(monkeypatch)
    rows = [json.loads(line) for line in (tiny / "train.jsonl").read_text().splitlines()[:4]]
    data = tmp_path / "rows.jsonl"
    explained = [{**row, "explanation": text} for row in rows for text in ("So it is.", row["reasoning_trace"])]
    data.write_text("".join(json.dumps(row) + "\n" for row in explained))
    main(
        score_command,
        *("--teacher", tiny / "teacher", "--student", tiny / "student", "--data", data, "--out", tmp_path / "out"),
    )
    said = capsys.readouterr().out
    pattern = r"([\d,]+) tokens scored: ([\d,]+) shared ones not again, ([\d,]+) computed with ([\d,]+) of padding\n"
    real, shared, computed, padding = (int(x.replace(",", "")) for x in re.search(pattern, said).groups())
    assert real - shared + padding == computed == device.total("score") and shared > 0
    assert "attention: xla\n" in said
