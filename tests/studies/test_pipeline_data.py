"""The rows that a study reads: of one subset each, for training and held out."""

import json
from pathlib import Path

import pytest

from rlt_jax.configs import PipelineData
from rlt_jax.errors import UserError
from rlt_jax.studies.pipeline_data import read_study_rows


def test_each_source_has_its_subset(tmp_path: Path, capsys):
    for name in ("main", "socratic"):
        rows = [{"question": f"{name} {i}", "solution": "1", "reasoning_trace": "t"} for i in range(3)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"heldout_rows": 2, "test_rows": 2}
    path = str(tmp_path)
    data = PipelineData(path=path, subset="socratic", heldout_path=path, heldout_subset="main", **counts)
    train, heldout = read_study_rows(data)
    assert [row.question for row in train] == [f"socratic {i}" for i in range(3)]
    assert [row.question for row in heldout] == [f"main {i}" for i in range(3)]
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: 3 rows of socratic/train.jsonl (subset socratic); not read: main/train.jsonl",
        f"{path}: 3 rows of main/train.jsonl (subset main); not read: socratic/train.jsonl",
    ]
    with pytest.raises(UserError, match=r"the subsets main, socratic: choose with data.heldout_subset main"):
        read_study_rows(PipelineData(path=path, subset="socratic", heldout_path=path, **counts))
