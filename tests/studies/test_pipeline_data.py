"""The rows of a study, and the results files that its summary reads."""

import json
from pathlib import Path

import pytest

from rlt_jax.configs import PipelineData
from rlt_jax.errors import UserError
from rlt_jax.studies.pipeline_data import best_rows, read_study_rows, row_columns, scored_values

COLUMNS = {
    "question_column": "problem",
    "solution_column": "answer",
    "trace_column": "cot",
    "system_column": "persona",
}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mine(count: int, start: int = 0) -> list[dict]:
    return [
        {"problem": f"{i}?", "answer": i / 2, "cot": "Halve it.", "persona": "Be brief."}
        for i in range(start, start + count)
    ]


def test_a_study_reads_named_columns_and_writes_the_usual_ones(tmp_path):
    path, held_out = write(tmp_path / "a.jsonl", mine(3)), write(tmp_path / "b.jsonl", mine(4, 7))
    data = PipelineData(path=path, heldout_path=held_out, heldout_rows=2, test_rows=4, **COLUMNS)
    train, heldout = read_study_rows(data)
    assert [row.question for row in train] == ["0?", "1?", "2?"] and len(heldout) == 4
    usual = {"reasoning_trace": "Halve it.", "system": "Be brief."}
    assert row_columns(heldout[0]) == {"question": "7?", "solution": "3.5", **usual}


def test_a_study_names_columns_as_its_file_does(tmp_path):
    path = write(tmp_path / "rows.jsonl", mine(8))
    data = PipelineData(path=path, heldout_rows=2, test_rows=2)
    with pytest.raises(UserError, match=r"add data.question_column: problem, data.solution_column: answer, which"):
        read_study_rows(data)
    data = PipelineData(path=path, heldout_rows=2, test_rows=2, **{**COLUMNS, "trace_column": None})
    with pytest.raises(UserError, match=r"none of 6 has one: add data.trace_column: cot, which looks right, or add"):
        read_study_rows(data)


def test_a_reward_that_was_not_finite_is_refused_with_words(tmp_path):
    rows = [{"row": 4, "sample": 0, "reward": 1.0}, {"row": 5, "sample": 0, "reward": None}]
    file = Path(write(tmp_path / "rlt.jsonl", rows))
    with pytest.raises(UserError, match=r"a reward for every explanation, but 1 have none, such as that of row 5"):
        best_rows(file)
    file.write_text(file.read_text().replace("null", "NaN"))
    with pytest.raises(UserError, match="1 have none"):
        best_rows(file)


def test_a_component_that_was_not_finite_is_not_known():
    components = {"solution_logp/mean": None, "thought_kl/mean": 0.5}
    score = {"reward": 1.0, "components": components, "copy_rate": 0.0, "repeat_rate": 0.0}
    assert scored_values(score)["solution_logp"] is None


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
