"""Where rows come from: every form gives the same rows, and it is said which files and how many rows were taken."""

import gzip
import json
import logging
import tracemalloc

import pytest

from rlt_jax.data import load_rows
from rlt_jax.data.questions import load_questions
from rlt_jax.data.sources import open_source
from rlt_jax.errors import UserError

ROWS = [{"question": f"What is {i}+1?", "solution": f"{i + 1}"} for i in range(6)]


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_split(folder, rows=ROWS):
    for name, part in {
        "train/part-0.jsonl": rows[:3],
        "train/part-1.jsonl": rows[3:5],
        "test/part-0.jsonl": rows[5:],
    }.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(lines(part))
    return folder


def test_every_form_gives_the_same_rows(tmp_path):
    table = "question,solution\n" + "".join(f"{row['question']},{row['solution']}\n" for row in ROWS)
    contents = {
        "rows.jsonl": lines(ROWS).encode(),
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": table.encode(),
        "rows.tsv": table.replace(",", "\t").encode(),
        "rows.jsonl.gz": gzip.compress(lines(ROWS).encode()),
        "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
        "ROWS.CSV": table.encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert [(row.question, row.solution) for row in load_rows(str(tmp_path / name)).rows] == [
            (row["question"], row["solution"]) for row in ROWS
        ], name


def test_questions_of_a_table_keep_their_digits(tmp_path):
    (tmp_path / "rows.csv").write_text("question,answer\na,007\nb,0.00002\nc,\n")
    questions, skipped = load_questions(
        str(tmp_path / "rows.csv"), split="train", question_column="question", answer_column="answer"
    )
    assert [question.answer for question in questions] == ["007", "0.00002"]
    assert skipped == ((2, "no answer (columns: question, answer)"),)


def test_what_was_taken_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="rlt_jax")
    folder = write_split(tmp_path / "units")
    loaded = load_rows(str(folder))
    assert [row.number for row in loaded.rows] == [0, 1, 2, 3, 4]
    assert loaded.taken == f"{folder}/train/part-0.jsonl, ... (2 files, 5 rows)"
    assert caplog.messages == [
        f"{folder}: 5 rows of train/part-0.jsonl, train/part-1.jsonl; not read: test/part-0.jsonl"
    ]
    said = []
    assert load_rows(str(folder), split="test", say=said.append).taken == f"{folder}/test/part-0.jsonl (1 row)"
    assert said == [f"{folder}: 1 row of test/part-0.jsonl; not read: train/part-0.jsonl, train/part-1.jsonl"]
    file = str(folder / "test" / "part-0.jsonl")
    assert load_rows(file, say=said.append).taken == f"{file} (1 row)"
    assert said[1] == f"{file}: 1 row"


def test_many_files_are_named_shortly(tmp_path):
    for i in range(1200):
        (tmp_path / f"train-{i:05}.jsonl").write_text(lines(ROWS[:1]))
    loaded = load_rows(str(tmp_path), say=(said := []).append)
    assert loaded.taken == f"{tmp_path}/train-00000.jsonl, ... (1200 files, 1,200 rows)"
    assert said == [f"{tmp_path}: 1,200 rows of {', '.join(f'train-0000{i}.jsonl' for i in range(3))} and 1197 more"]


def test_only_usable_rows_count(tmp_path):
    (tmp_path / "rows.csv").write_text("question,solution\na,1\nb,\nc,3,4\n")
    loaded = load_rows(str(tmp_path / "rows.csv"), log=(skipped := []).append)
    assert loaded.taken == f"{tmp_path}/rows.csv (1 row)"
    assert skipped == [
        f"{tmp_path}/rows.csv: 1 rows, 2 skipped: 1 x no solution (row 1); 1 x more cells than columns (row 2)"
    ]


def test_subsets_name_the_setting_that_chooses(tmp_path):
    for name in ("main", "socratic"):
        write_split(tmp_path / name)
    with pytest.raises(UserError, match="holds the subsets main, socratic: choose with --subset main"):
        open_source(str(tmp_path), "train", flag="--subset")
    assert len(load_rows(str(tmp_path), subset="socratic", split="test").rows) == 1
    file = str(tmp_path / "main" / "test" / "part-0.jsonl")
    with pytest.raises(UserError, match=r"expected no subset of the single file .*: leave out --data.subset"):
        load_rows(file, subset="main")


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (
            None,
            "expected one of the subsets of 'team/units', but none is chosen: .*'main', 'socratic'.*--data.subset NAME",
        ),
        ("algebra", "but 'algebra' is chosen: BuilderConfig 'algebra' not found. Available: .'main', 'socratic'"),
    ],
)
def test_subsets_on_the_hub(tmp_path, monkeypatch, subset, message):
    """With `datasets` itself, from a folder in place of the hub."""
    datasets = pytest.importorskip("datasets")
    for name in ("main", "socratic"):
        write_split(tmp_path / name)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files: main/train/*\n"
        "- config_name: socratic\n  data_files: socratic/train/*\n---\n"
    )
    load = datasets.load_dataset

    def from_folder(name, *args, **kwargs):
        assert name == "team/units"
        return load(str(tmp_path), *args, cache_dir=str(tmp_path / ".cache"), **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    monkeypatch.setattr("rlt_jax.data.sources.check_dataset", lambda name: None)  # the hub would have it
    with pytest.raises(UserError, match=message) as refused:
        load_rows("team/units", subset=subset)
    assert "\n" not in str(refused.value)
    loaded = load_rows("team/units", subset="main")
    assert len(loaded.rows) == 5
    assert loaded.taken == "team/units (subset main, split train, 5 rows)"


def test_a_data_set_that_is_a_script_is_refused_and_not_run(tmp_path, monkeypatch):
    """With `datasets` itself, from a folder in place of the hub."""
    datasets = pytest.importorskip("datasets")
    folder, load = tmp_path / "units", datasets.load_dataset
    folder.mkdir()
    (folder / "units.py").write_text("import pathlib\npathlib.Path(__file__).with_name('marker').touch()\n")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *args, **kwargs: load(str(folder), *args, **kwargs))
    monkeypatch.setattr("rlt_jax.data.sources.check_dataset", lambda name: None)
    monkeypatch.setattr("builtins.input", lambda *text: "y")
    with pytest.raises(UserError, match="'team/units' is a script, and code that comes with data is never run"):
        load_rows("team/units")
    with pytest.raises(UserError):
        load_rows(str(folder))
    assert not (folder / "marker").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl.gz",
            gzip.compress(b"{}\n" * 1000, mtime=0)[:-12],
            "expected to read rows from .*rows.jsonl.gz, but: ",
        ),
        ("rows.csv.gz", b"no gzip", "expected to read rows from .*rows.csv.gz, but: "),
        ("rows.jsonl.zst", b"", "expected a file that ends in .*rows.jsonl.zst: convert it"),
        ("rows.txt", b"question,solution\n", "expected a file that ends in .jsonl, .json, .parquet, .csv, .tsv, came"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_rows(str(tmp_path / name))


def test_a_path_that_no_file_can_have():
    with pytest.raises(UserError, match=r"File name too long: .*: check the path"):
        load_rows("a" * 300)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_reading_takes_little_memory(tmp_path, name):
    """Rows are not held: 30 MB of them pass through less than 5 MB."""
    with (tmp_path / name).open("w") as file:
        if name.endswith("csv"):
            file.write("question,solution\n")
        for i in range(20_000):
            row = {"question": "x" * 1500, "solution": str(i)}
            file.write(lines([row]) if name.endswith("jsonl") else f"{row['question']},{row['solution']}\n")
    tracemalloc.start()
    assert sum(1 for _ in open_source(str(tmp_path / name), "train").rows()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
