"""`python -m rlt_jax.generate`: a data set that a student is trained on, the same whether or not it was interrupted."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlt_jax import generate as generate_command
from rlt_jax import score as score_command
from rlt_jax.configs import SftConfig, parse_command
from rlt_jax.runs.sft import chat_format_of, load_examples
from tests.commands.killing import kill_after

pytestmark = pytest.mark.slow

ROWS, SAMPLES = 24, 2


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = (tiny / "eval.jsonl").read_text().splitlines()[:ROWS]
    path.write_text("".join(row + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def flags(tiny, data) -> tuple:
    return (
        *(
            "--teacher",
            tiny / "teacher",
            "--data.path",
            data,
            "--data.teacher-prompt-file",
            tiny / "teacher_prompt.txt",
        ),
        *("--samples", SAMPLES, "--max-completion-length", 48, "--max-prompt-length", 128, "--dtype", "float32"),
    )


@pytest.fixture(scope="module")
def taught(command, flags, tiny, tmp_path_factory) -> tuple[Path, str]:
    """A finished data set with rewards, and what was printed."""
    out = tmp_path_factory.mktemp("taught") / "new folder" / "taught.jsonl"
    printed = command("generate", *flags, "--student", tiny / "student", "--out", out)
    return out, printed


def test_every_row_is_explained(taught, data):
    out, printed = taught
    records, rows = read(out), read(data)
    assert [(record["row"], record["sample"]) for record in records] == [
        (row, sample) for row in range(ROWS) for sample in range(SAMPLES)
    ]
    for record in records:
        row = rows[record["row"]]
        assert {name: record[name] for name in row} == row  # question, solution, reasoning_trace, system
        assert record["matched"] and record["finished"] and record["draw"] == 0
        assert 4 <= record["tokens"] <= 48 and record["copy_rate"] == 0.0
        assert record["explanation"] == record["explanation"].strip("\n") != ""
    assert len({record["explanation"] for record in records}) > ROWS  # the samples of a row differ
    mean = np.mean([record["reward"] for record in records])
    loaded, start, prompts, *_, end = printed.splitlines()
    assert loaded == f"{data}: 24 rows"
    assert " explains 24 rows of " in start and " (0 skipped), 2 explanations each; the frozen student " in start
    assert prompts.startswith("prompts: teacher's from ") and prompts.endswith("(<|begin_of_explanation|> ...)")
    assert end == f"24 rows, 48 explanations, mean reward {mean:.4f}, 0 resampled, 0 dropped: {out}"
    assert [path.name for path in out.parent.iterdir()] == ["taught.jsonl"]


def test_a_student_is_trained_on_the_explanation_and_not_on_the_rows_own_trace(taught, tiny):
    out, _ = taught
    line = ["--target", "student", "--model", tiny / "student", "--data.path", out, "--output-dir", "none"]
    config, _ = parse_command(
        SftConfig, [*map(str, line), "--student-gap", "blank-line"], command="sft", description=""
    )
    chat = chat_format_of(config)
    examples = load_examples(config, chat).training
    records = read(out)
    assert len(examples) == len(records)
    own = 0
    for example, record in zip(examples, records, strict=True):
        trained = chat.tokenizer.decode(example.ids[example.trained])
        thought = f"<|begin_of_thought|>\n\n{record['explanation']}\n\n<|end_of_thought|>\n\n"
        assert trained.startswith(f"{thought}<|begin_of_solution|>{record['solution']}<|end_of_solution|>")
        own += record["reasoning_trace"] in trained
        prompt = chat.tokenizer.decode(example.ids[~example.trained])
        assert record["system"] in prompt and record["question"] in prompt
    assert 0 < own < len(records)  # some explanations are the trace, as this teacher was taught, but not all


def test_sft_runs_on_it_as_it_is(taught, command, tiny, tmp_path):
    out, _ = taught
    flags = ("--max-steps", 1, "--train-batch-size", 4, "--per-device-train-batch-size", 4, "--check-texts", 0)
    flags += ("--checkpoint.no-export",)
    flags += ("--target", "student", "--model", tiny / "student", "--data.path", out, "--output-dir", tmp_path / "run")
    command("sft", *flags)
    (metrics,) = read(tmp_path / "run" / "metrics.jsonl")
    assert 0 < metrics["loss"] < 2


def test_rewards_are_those_of_score(taught, main, tiny, tmp_path):
    out, _ = taught
    scored = tmp_path / "scores.jsonl"
    models = ("--teacher", tiny / "teacher", "--student", tiny / "student", "--dtype", "float32")
    prompt = ("--teacher-prompt-file", tiny / "teacher_prompt.txt")
    main(score_command, *models, *prompt, "--data", out, "--out", scored)
    for ours, theirs in zip(read(out), read(scored), strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-3)
        assert ours["components"] == pytest.approx(theirs["components"], abs=1e-3)
        assert ours["copy_rate"] == theirs["copy_rate"]
        assert ours["repeat_rate"] == theirs["repeat_rate"]


def test_a_killed_start_resumes_to_the_same_bytes(main, flags, tmp_path, capsys):
    flags = (*flags, "--rows-per-chunk", 2)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    main(generate_command, *flags, "--out", whole)
    partial = kill_after(3, "generate", *flags, out=killed)
    with partial.open("ab") as file:
        file.write(b'{"records": [{"row": 99, "quest')  # as a kill in the middle of a line leaves it
    done = partial.read_bytes().count(b"\n") - 1
    main(generate_command, *flags, "--out", killed)
    assert f"resuming after {done} of 12 chunks\n" in capsys.readouterr().out
    assert killed.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_what_a_row_gets_does_not_depend_on_the_chunks(taught, main, flags, tmp_path):
    main(generate_command, *flags, "--rows-per-chunk", 7, "--out", tmp_path / "out.jsonl")
    texts = [[record["explanation"] for record in read(path)] for path in (taught[0], tmp_path / "out.jsonl")]
    assert texts[0] == texts[1]


def test_another_seed_gives_other_explanations(taught, main, flags, tmp_path):
    main(generate_command, *flags, "--seed", 43, "--out", tmp_path / "out.jsonl")
    texts = [[record["explanation"] for record in read(path)] for path in (taught[0], tmp_path / "out.jsonl")]
    assert sum(a != b for a, b in zip(*texts)) > ROWS / 2


LIMIT = ("--max-completion-length", 24)  # some explanations are longer


def test_what_is_cut_off_is_drawn_again_and_then_dropped(main, flags, tmp_path, capsys):
    outs = {redraws: tmp_path / f"{redraws}.jsonl" for redraws in (0, 1, 4)}
    summaries = {}
    for redraws, out in outs.items():
        main(generate_command, *flags, *LIMIT, "--redraws", redraws, "--out", out)
        summaries[redraws] = capsys.readouterr().out.splitlines()[-1]
    found = {redraws: read(out) for redraws, out in outs.items()}
    dropped = ROWS * SAMPLES - len(found[0])
    assert 0 < dropped < ROWS * SAMPLES
    assert summaries[0].startswith(
        f"24 rows, {len(found[0])} explanations, 0 resampled, {dropped} dropped, "
        f"wrong after the last try: {dropped} cut off: "
    )
    assert f", {dropped} resampled, " in summaries[1]
    assert len(found[0]) < len(found[1]) < len(found[4])
    assert {record["draw"] for record in found[0]} == {0} and {record["draw"] for record in found[1]} == {0, 1}
    assert all(record["matched"] and record["finished"] for record in found[4])
    assert [record for record in found[4] if record["draw"] == 0] == found[0]  # what was right is not resampled


def test_unfinished_ones_can_be_kept(main, flags, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    main(generate_command, *flags, *LIMIT, "--redraws", 0, "--on-unfinished", "keep", "--out", out)
    records = read(out)
    cut = [record for record in records if not record["finished"]]
    assert len(records) == ROWS * SAMPLES
    assert all(record["tokens"] == 24 and not record["matched"] for record in cut)
    assert f"48 explanations, 0 resampled, 0 dropped, wrong after the last try: {len(cut)} cut off: " in (
        capsys.readouterr().out
    )


def test_greedy(main, flags, tmp_path):
    for name in ("a", "b"):
        seed = ("--seed", ord(name), "--samples", 1, "--temperature", 0, "--redraws", 0)
        main(generate_command, *flags, *seed, "--out", tmp_path / name)
    assert len(read(tmp_path / "a")) == ROWS
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bad_and_long_rows_are_left_out_and_the_others_keep_their_numbers(main, flags, tmp_path, caplog, capsys):
    rows = [
        {"question": "What is 13+16-11?"},
        {"question": "What is 13+16-11?", "solution": "18"},
        {"question": "What is 1? " * 100, "solution": "1"},
        {"prompt": "What is 87-59-13?", "solution": "15"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(generate_command, *flags, "--data.path", path, "--out", tmp_path / "out.jsonl")
    assert [(r["row"], r["reasoning_trace"]) for r in read(tmp_path / "out.jsonl")] == [(n, None) for n in (1, 1, 3, 3)]
    assert "1 x no solution (row 0)" in caplog.text and "1 x prompt is too long (row 2)" in caplog.text
    assert "2 rows, 4 explanations" in capsys.readouterr().out


REFUSED = {
    "greedy samples": (
        ("--temperature", 0, "--redraws", 0),
        "temperature=0 with samples=2: all samples of a row would be",
    ),
    "greedy redraws": (
        ("--temperature", 0, "--samples", 1, "--redraws", 1),
        "temperature=0 with redraws: sampling again would give the",
    ),
    "negative temperature": (
        ("--temperature", -1),
        "temperature=-1: expected a number above 0, or 0 for greedy",
    ),
    "no samples": (("--samples", 0), "samples=0: expected a positive whole number"),
    "no redraws": (("--redraws", -1), "redraws=-1: expected a positive whole number, or 0 for none"),
    "seed": (("--seed", -1), "seed=-1: expected a whole number from 0 to"),
    "sampler": (("--sampler.top-p", 0), "sampler.top_p=0: expected a share above 0"),
    "server": (("--sampler.kind", "vllm-server"), "sampler.kind=vllm-server without sampler.url"),
    "share": (("--vllm-gpu-memory-utilization", 2), "vllm_gpu_memory_utilization=2: expected a share of the GPU"),
    "reward": (("--reward.not-matched-penalty", 1), "reward.not_matched_penalty=1 would reward unclosed tags"),
    "no model": (
        ("--teacher", "/no/such/model"),
        "Hugging Face hub, but /no/such/model does not exist: check the path\n",
    ),
    "no rows": (("--data.path", "/no/rows.jsonl"), "expected rows at '/no/rows.jsonl'"),
    "no room": (("--max-completion-length", 5000), "+ 5000 tokens, at most 1024): raise max_prompt_length, lower"),
    "nothing usable": (
        ("--max-completion-length", 2),
        "none of the first 48 explanations can be used (48 cut off): give",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(main, flags, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        main(generate_command, *flags, *changes, "--out", tmp_path / "no" / "such" / "out.jsonl")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_an_existing_file_and_another_half_are_not_touched(main, flags, taught, tmp_path, capsys):
    out, _ = taught
    before = out.read_bytes()
    with pytest.raises(SystemExit):
        main(generate_command, *flags, "--out", out)
    assert f"--out {out} exists: choose another file, or delete it" in capsys.readouterr().err
    assert out.read_bytes() == before

    partial = kill_after(1, "generate", *flags, "--rows-per-chunk", 1, out=tmp_path / "out.jsonl")
    half = partial.read_bytes()
    with pytest.raises(SystemExit):
        main(generate_command, *flags, "--rows-per-chunk", 1, "--temperature", 0.5, "--out", tmp_path / "out.jsonl")
    assert "was started with other settings: temperature=0.7 (now 0.5): use those" in capsys.readouterr().err
    assert partial.read_bytes() == half
