"""Which files of a folder are read: one split of one data set, or nothing."""

from pathlib import Path

import pytest

from rlt_jax.data import load_rows
from rlt_jax.data.folders import choose_files
from rlt_jax.errors import UserError

ROW = '{"question": "q", "solution": "s"}\n'
SHARDS = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(ROW)
    return folder


def chosen(folder: Path, split: str = "train", subset: str | None = None) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in choose_files(folder, split, subset).files]


FOUND = [  # (files of a folder, split and subset asked for, files read)
    # by folder
    (["train/part-0.jsonl", "test/part-0.jsonl"], "train", None, ["train/part-0.jsonl"]),
    (["train/part-0.jsonl", "test/part-0.jsonl"], "test", None, ["test/part-0.jsonl"]),
    (["data/test/a.jsonl", "data/Training/a.jsonl"], "train", None, ["data/Training/a.jsonl"]),
    (["my-train-set/a.csv", "my-test-set/a.csv"], "train", None, ["my-train-set/a.csv"]),
    # by name
    (list(SHARDS), "train", None, list(SHARDS[:2])),
    (["x_train.jsonl", "x_dev.jsonl"], "train", None, ["x_train.jsonl"]),
    (["train.jsonl", "questions.jsonl"], "train", None, ["train.jsonl"]),
    (["TRAIN.CSV", "Test.csv"], "train", None, ["TRAIN.CSV"]),
    (["train.jsonl.gz", "test.jsonl"], "train", None, ["train.jsonl.gz"]),
    (["train0.jsonl", "train1.jsonl", "test0.jsonl"], "train", None, ["train0.jsonl", "train1.jsonl"]),
    (
        ["train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba9876543210.parquet"],
        *("train", None),
        ["train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba9876543210.parquet"],
    ),
    # synonyms, of which the exact word comes first
    (["training.jsonl", "evaluation.jsonl"], "test", None, ["evaluation.jsonl"]),
    (["dev.jsonl", "train.jsonl"], "validation", None, ["dev.jsonl"]),
    (["test.jsonl", "eval.jsonl"], "eval", None, ["eval.jsonl"]),
    (["test.jsonl", "eval.jsonl"], "test", None, ["test.jsonl"]),
    # splits of other names
    (["data/train_sft-0.jsonl", "data/test_sft-0.jsonl"], "train_sft", None, ["data/train_sft-0.jsonl"]),
    (["train_sft.jsonl", "train_prefs.jsonl"], "train_sft", None, ["train_sft.jsonl"]),
    (["a/holdout.jsonl", "a/train.jsonl"], "holdout", None, ["a/holdout.jsonl"]),
    # a word within another names nothing
    (["latest.jsonl"], "train", None, ["latest.jsonl"]),
    (["contest/strain.jsonl"], "train", None, ["contest/strain.jsonl"]),
    (["d\u00e9test.jsonl"], "train", None, ["d\u00e9test.jsonl"]),
    (["de\u0301test.jsonl"], "train", None, ["de\u0301test.jsonl"]),
    (["\u6570\u636e_train.jsonl", "\u6570\u636e_test.jsonl"], "train", None, ["\u6570\u636e_train.jsonl"]),
    (["gsm8.jsonl"], "train", None, ["gsm8.jsonl"]),
    # without any split, everything is train
    (["rows.jsonl"], "train", None, ["rows.jsonl"]),
    (["part-2.jsonl", "part-10.jsonl", *(f"part-{i}.jsonl" for i in (1, 3, 4, 5, 6, 7, 8, 9))], "train", None,
     [f"part-{i}.jsonl" for i in range(1, 11)]),
    (["0000.parquet", "0001.parquet"], "train", None, ["0000.parquet", "0001.parquet"]),
    (["rows-2025.jsonl"], "train", None, ["rows-2025.jsonl"]),  # a number, but a single file
    # what is no data
    (["train.jsonl", ".ipynb_checkpoints/train-checkpoint.jsonl"], "train", None, ["train.jsonl"]),
    (["train.jsonl", "train-checkpoint.jsonl"], "train", None, ["train.jsonl"]),
    (["rows.jsonl", ".git/x.jsonl", ".cache/hub/rows.jsonl", "_tmp/rows.jsonl"], "train", None, ["rows.jsonl"]),
    (["rows.jsonl", "__pycache__/a.json", ".hidden.jsonl", "_old.jsonl"], "train", None, ["rows.jsonl"]),
    (["rows.jsonl", "checkpoints/rows.jsonl", "checkpoint-10/state.json"], "train", None, ["rows.jsonl"]),
    (["train.jsonl", "train.jsonl.bak", "train.jsonl~", "train.jsonl.partial"], "train", None, ["train.jsonl"]),
    (["rows.jsonl", "dataset_infos.json", "config.json", "LICENSE"], "train", None, ["rows.jsonl"]),
    # subsets
    (["main/part-0.jsonl", "socratic/part-0.jsonl"], "train", "main", ["main/part-0.jsonl"]),
    (["main/train.jsonl", "main/test.jsonl", "socratic/train.jsonl"], "test", "main", ["main/test.jsonl"]),
    (["train/main/a.jsonl", "train/socratic/a.jsonl", "test/main/a.jsonl"], "train", "main", ["train/main/a.jsonl"]),
    (["algebra_train.jsonl", "algebra_test.jsonl", "geometry_train.jsonl"], "train", "algebra",
     ["algebra_train.jsonl"]),
    (["train.jsonl", "train_small.jsonl"], "train", "small", ["train_small.jsonl"]),
    (["data/a/main-0.jsonl", "data/b/main-0.jsonl"], "train", "a", ["data/a/main-0.jsonl"]),
    (["data/a/x-0.jsonl", "data/b/x-0.jsonl"], "train", "data/b/x", ["data/b/x-0.jsonl"]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "split", "subset", "expected"), FOUND, ids=range(len(FOUND)))
def test_what_is_read(files, split, subset, expected, tmp_path):
    assert chosen(make(tmp_path, *files), split, subset) == expected


REFUSED = [  # (files, split, subset, what the message says)
    (["main/part-0.jsonl", "socratic/part-0.jsonl"], "train", None,
     "but it holds the subsets main, socratic: choose with --data.subset main"),
    (["data/main/train.jsonl", "data/socratic/train.jsonl"], "train", None, "it holds the subsets main, socratic"),
    (["algebra_train.jsonl", "geometry_train.jsonl"], "train", None, "it holds the subsets algebra, geometry"),
    (["algebra.jsonl", "geometry.jsonl"], "train", None, "it holds the subsets algebra, geometry"),
    (["trainset.jsonl", "testset.jsonl"], "train", None, "it holds the subsets testset, trainset"),
    (["main/train.jsonl", "b/train.jsonl"], "train", "c", "expected subset 'c' in .*, but it holds b, main"),
    (["train.jsonl"], "train", "c", "but it has none: leave out --data.subset"),
    (["train.jsonl", "train (copy).jsonl"], "train", None, r"split train is in train.jsonl, train \(copy\).jsonl"),
    (["train.jsonl", "train (1).jsonl"], "train", None, r"split train is in train.jsonl, train \(1\).jsonl, which are"),
    (["train.jsonl", "train-old.jsonl"], "train", None, "split train is in train.jsonl, train-old.jsonl, which"),
    (["train.jsonl", "train_small.jsonl"], "train", None, "instead of the folder, or choose with --data.subset small"),
    (["train.jsonl", "data/train.jsonl"], "train", None, "split train is in train.jsonl, data/train.jsonl"),
    (["train.jsonl", "train-1.jsonl"], "train", None, "expected the numbered parts of one file in .*train-1.jsonl"),
    (["train_v1.jsonl", "train_v2.jsonl"], "train", None, "it holds the subsets v1, v2"),
    (["gsm1.jsonl", "gsm2.jsonl"], "train", None, "it holds the subsets gsm1, gsm2"),
    (["train_100.jsonl", "train_1000.jsonl"], "train", None, "number 1, 2, 3, 4, 5 of 1000 is missing"),
    (["rows-1.jsonl", "rows-20251128.jsonl"], "train", None, "number 2, 3, 4, 5, 6 of 20251128 is missing"),
    (["train.jsonl", "train.parquet"], "train", None, "expected one form .*came train.jsonl, train.parquet"),
    (["part-0.csv", "part-1.jsonl"], "train", None, "expected one form .*came part-0.csv, part-1.jsonl"),
    (["json/train.jsonl", "parquet/train.parquet"], "train", None, "it holds the subsets json, parquet"),
    (["train-00000-of-00002.jsonl"], "train", None, "number 1 of 2 is missing"),
    (["train-00001-of-00003.jsonl", "train-00002-of-00003.jsonl", "test.jsonl"], "train", None, "number 3 of 3 is mis"),
    (["train-0-of-2.jsonl", "train-1-of-2.jsonl", "train-2-of-2.jsonl"], "train", None, "and there are more"),
    (["x-0-of-99999999999.jsonl"], "train", None, "number 1, 2, 3, 4, 5 of 99999999999 is missing"),
    (["part-0.jsonl", "part-2.jsonl"], "train", None, "came part-0.jsonl, part-2.jsonl, and number 1 of 3 is missing"),
    (["a-0-of-2.jsonl", "a-0.jsonl"], "train", None, "expected the numbered parts of one file in"),
    (["train/test.jsonl", "x/dev.jsonl"], "train", None, "but train/test.jsonl in .* names several"),
    (["train_test.jsonl"], "test", None, "but train_test.jsonl in .* names several"),
    (["val.jsonl", "dev.jsonl"], "validation", None, "split validation is in dev.jsonl, val.jsonl"),
    (["train.jsonl", "test.jsonl"], "validation", None, "expected a file of split 'validation' in .* holds test.jsonl"),
    (["test.jsonl", "rows.jsonl"], "train", None, "expected a file of split 'train' in .*, but it holds rows.jsonl"),
    (["train.jsonl.zst", "test.jsonl"], "train", None, r"came .*train.jsonl.zst: unpack it"),
    (["part-0.jsonl", "part-1.jsonl.xz"], "train", None, "expected one form .*part-1.jsonl.xz"),
    ([".train.jsonl", "rows.txt"], "train", None, "expected .jsonl, .json, .parquet, .csv, .tsv files"),
    ([*(f"{name}.jsonl" for name in "abcdefgh")], "train", None, "the subsets a, b, c, d, e and 3 more: choose with"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "split", "subset", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(files, split, subset, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        chosen(make(tmp_path, *files), split, subset)
    assert "\n" not in str(refused.value)


def test_the_given_folder_names_no_split(tmp_path):
    """Whoever gives the folder test/ means it, wherever it lies."""
    assert chosen(make(tmp_path / ".hidden" / "test", "part-0.jsonl")) == ["part-0.jsonl"]


def test_what_is_not_read_is_known(tmp_path):
    found = choose_files(make(tmp_path, "train/a.jsonl", "test/a.jsonl", "extra.jsonl", ".git/x.jsonl"), "train")
    assert [file.relative_to(tmp_path).as_posix() for file in found.not_read] == ["extra.jsonl", "test/a.jsonl"]


def test_files_that_are_empty_or_not_there(tmp_path):
    make(tmp_path, "train-0.jsonl")
    (tmp_path / "train-1.jsonl").touch()
    with pytest.raises(UserError, match=r"expected rows in .*train-1.jsonl, but it is empty"):
        chosen(tmp_path)
    (tmp_path / "train-1.jsonl").unlink()
    (tmp_path / "train-1.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"expected a file at .*train-1.jsonl, but it is a link to nothing"):
        chosen(tmp_path)


def test_links(tmp_path):
    """As in the hub's cache, where files are links to blobs without a suffix; loops are not followed."""
    make(tmp_path / "blobs", "0123")
    snapshot = tmp_path / "snapshot"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-0.jsonl").symlink_to(tmp_path / "blobs" / "0123")
    (snapshot / "loop").symlink_to(snapshot)
    assert chosen(snapshot) == ["data/train-0.jsonl"]
    (snapshot / "data" / "train-1.jsonl").symlink_to(tmp_path / "blobs" / "0123")
    with pytest.raises(UserError, match=r"data/train-1.jsonl is data/train-0.jsonl under another name"):
        chosen(snapshot)
    outside = tmp_path / "linked"
    outside.mkdir()
    (outside / "main").symlink_to(make(tmp_path / "elsewhere", "train.jsonl"))
    assert chosen(outside) == ["main/train.jsonl"]


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """Its rows would be missing without a word."""
    import os

    make(tmp_path, "train/a.jsonl", "train/b/c.jsonl")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"expected to read the folder .*Permission denied.*check its permissions"):
        chosen(tmp_path)


def test_saved_data_sets_side_by_side(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name in ("main", "socratic"):
        rows = datasets.Dataset.from_list([{"question": f"{name}?", "solution": "5"}])
        datasets.DatasetDict({"train": rows, "test": rows.select([])}).save_to_disk(str(tmp_path / name))
    with pytest.raises(UserError, match=r"it holds the subsets main, socratic: choose with --data.subset main"):
        chosen(tmp_path)
    assert chosen(tmp_path, "test", "main") == ["main/test"]
    loaded = load_rows(str(tmp_path), subset="socratic")
    assert [row.question for row in loaded.rows] == ["socratic?"]
    assert loaded.taken == f"{tmp_path}/socratic/train (subset socratic, 1 row)"
