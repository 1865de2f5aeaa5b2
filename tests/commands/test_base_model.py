"""A base model whose EOS is not what its chat ends turns with, through the commands: taught, sampled, exported."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    """The tiny teacher as a base model: EOS is `<|endoftext|>` (418), turns end with `<|im_end|>` (420)."""
    folder = Path(shutil.copytree(tiny / "teacher", tmp_path_factory.mktemp("base") / "teacher"))
    for name, values in {
        "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
        "config.json": {"eos_token_id": 418},
        "generation_config.json": {"eos_token_id": 418},
    }.items():
        old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(old | values))
    return folder


def test_its_explanations_end_and_close_their_tags(command, tiny, base, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join((tiny / "eval.jsonl").open().readlines()[:4]))
    out = tmp_path / "explained.jsonl"
    command(
        "generate",
        *("--teacher", base, "--data.path", rows, "--data.teacher-prompt-file", tiny / "teacher_prompt.txt"),
        *("--max-completion-length", 64, "--dtype", "float32", "--out", out),
    )
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 4 and all(record["finished"] and record["matched"] for record in records)


def test_other_programs_stop_where_fine_tuning_taught_it_to(command, tiny, base, tmp_path):
    from transformers import GenerationConfig

    command(
        "sft",
        *("--model", base, "--data.path", tiny / "train.jsonl", "--max-steps", 1, "--train-batch-size", 2),
        *("--output-dir", tmp_path / "run", "--checkpoint.no-at-end", "--check-texts", 0),
    )
    assert GenerationConfig.from_pretrained(tmp_path / "run" / "final").eos_token_id == [418, 420]
