"""`rlt_jax.generate --sampler.kind vllm` with the real engine, whose explanations the trainer's model scores."""

import importlib.util
import json

import psutil
import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: see `make vllm`"),
]


@pytest.fixture(scope="module")
def taught(command, tiny, tmp_path_factory):
    """The file that a run of two chunks wrote, and the last line that it printed."""
    folder = tmp_path_factory.mktemp("taught")
    rows = (tiny / "eval.jsonl").read_text().splitlines()[:8]
    (folder / "rows.jsonl").write_text("".join(row + "\n" for row in rows))
    printed = command(
        "generate",
        *("--teacher", tiny / "teacher", "--student", tiny / "student", "--data.path", folder / "rows.jsonl"),
        *("--data.teacher-prompt-file", tiny / "teacher_prompt.txt", "--sampler.kind", "vllm", "--dtype", "float32"),
        *("--samples", 2, "--rows-per-chunk", 4, "--max-completion-length", 48, "--max-prompt-length", 128),
        *("--out", folder / "taught.jsonl"),
    )
    return folder / "taught.jsonl", printed.splitlines()[-1]


def test_all_rows_are_explained(taught):
    """The second chunk too, before which the engine slept while the first was scored."""
    out, printed = taught
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(record["row"], record["sample"]) for record in records] == [(i, j) for i in range(8) for j in range(2)]
    assert all(record["matched"] and record["finished"] for record in records)
    assert all(record["components"]["solution_logp/mean"] <= 0 for record in records)
    assert sum(record["explanation"] == record["reasoning_trace"] for record in records) >= 2  # what it was taught
    assert printed.startswith("8 rows, 16 explanations, mean reward ")


def test_the_engine_is_gone_and_its_log_is_there(taught):
    out, _ = taught
    assert (out.parent / "taught.jsonl.vllm.log").stat().st_size > 0
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    assert [line for line in lines if str(out.parent) in line] == []
