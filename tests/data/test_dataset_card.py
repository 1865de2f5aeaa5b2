"""README.md of a data set's folder says which files are which split of which subset, and is then followed."""

from pathlib import Path

import pytest

from rlt_jax.data.folders import choose_files
from rlt_jax.errors import UserError

FILES = (
    "main/train-0.jsonl",
    "main/train-1.jsonl",
    "main/test-0.jsonl",
    "socratic/train.jsonl",
    "x/a.jsonl",
    "x/b.jsonl",
)
TWO = """
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: held-out
    path: [main/test-0.jsonl]
- config_name: socratic
  data_files: socratic/*
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"question": "q", "solution": "s"}\n')
    return tmp_path


def chosen(folder: Path, configs: str, split: str = "train", subset: str | None = None) -> list[str]:
    (folder / "README.md").write_text(f"---\nlicense: mit\n{configs and 'configs:'}{configs}\n---\n# Units\n")
    return [file.relative_to(folder).as_posix() for file in choose_files(folder, split, subset).files]


@pytest.mark.parametrize(
    ("configs", "split", "subset", "expected"),
    [
        (TWO, "train", "main", ["main/train-0.jsonl", "main/train-1.jsonl"]),
        (TWO, "held-out", "main", ["main/test-0.jsonl"]),
        (TWO, "train", "socratic", ["socratic/train.jsonl"]),
        (TWO + "  default: true", "train", None, ["socratic/train.jsonl"]),
        (TWO.replace("socratic\n", "default\n"), "train", None, ["socratic/train.jsonl"]),
        # only listed there: files of unlike names are one split
        ("\n- config_name: all\n  data_files: [x/b.jsonl, x/a.jsonl]", "train", None, ["x/b.jsonl", "x/a.jsonl"]),
        ("\n- config_name: all\n  data_files: x/**", "train", "all", ["x/a.jsonl", "x/b.jsonl"]),
        ("\n- config_name: all\n  data_files: '**/a.jsonl'", "train", None, ["x/a.jsonl"]),
        ("\n- config_name: all\n  data_dir: main\n  data_files: ./train-?.jsonl", "train", None,
         ["main/train-0.jsonl", "main/train-1.jsonl"]),
        ("\n- config_name: all\n  data_dir: main", "test", None, ["main/test-0.jsonl"]),  # by names, in that folder
        ("", "test", None, ["main/test-0.jsonl"]),  # a card that says nothing of files
    ],
)  # fmt: skip
def test_the_card_decides(folder, configs, split, subset, expected):
    assert chosen(folder, configs, split, subset) == expected


@pytest.mark.parametrize(
    ("configs", "split", "subset", "message"),
    [
        (TWO, "train", None, "README.md describes the subsets main, socratic: choose with --data.subset main"),
        (TWO, "train", "algebra", "README.md describes the subsets main, socratic"),
        (TWO, "test", "main", "expected split 'test' in .* README.md describes train, held-out of subset main"),
        (TWO.replace("train-*", "more-*"), "train", "main",
         r"expected files of 'main/more-\*' \(split train of subset main in .*README.md\), but no .*download them"),
        ("\n- config_name: a\n  data_files: ../x.jsonl", "train", None, "its subset a names ../x.jsonl: download it"),
        ("\n- config_name: a\n  data_files: 'hf://datasets/a/b.jsonl'", "train", None, "names hf://datasets/a/b.jsonl"),
        ("\n- config_name: a\n  data_dir: /etc", "train", None, "data_dir of a is no folder below it: '/etc'"),
        ("\n- config_name: a\n  data_dir: main\n  data_files: '*-0*'\n- config_name: a", "train", None, "a name twice"),
        ("\n- config_name: a\n  data_files: 3", "train", None, "data_files of a is no pattern"),
        ("\n- data_files: x", "train", None, "an entry of configs has no config_name"),
        (" main", "train", None, "configs is not a list"),
        ("\n- config_name: [", "train", None, "expected YAML metadata between the --- lines of .*README.md"),
        ("\n- config_name: all\n  data_files: 'main/*-00000-of-2*'", "train", None, "expected files of"),
    ],
)  # fmt: skip
def test_what_is_refused(folder, configs, split, subset, message):
    with pytest.raises(UserError, match=message) as refused:
        chosen(folder, configs, split, subset)
    assert "\n" not in str(refused.value)


def test_metadata_that_repeats_itself_without_end_is_refused_at_once(folder):
    """Each anchor holds the one before nine times: 9^40 texts, in 2 KB."""
    lines = ["a0: &a0 x", *(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(40))]
    (folder / "README.md").write_text("---\n" + "\n".join(lines) + "\nconfigs: *a40\n---\n")
    with pytest.raises(UserError, match="an entry of configs has no config_name"):
        choose_files(folder, "train")


def test_parts_and_files_are_checked_as_without_a_card(folder):
    (folder / "main" / "train-3.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="number 2 of 4 is missing"):
        chosen(folder, TWO, subset="main")


def test_it_agrees_with_datasets(folder):
    """The same files as Hugging Face `datasets` takes for the same card."""
    datasets = pytest.importorskip("datasets")
    for number, name in enumerate(FILES):
        (folder / name).write_text(f'{{"question": "{number}", "solution": "s"}}\n')
    for split, subset in (("train", "main"), ("train", "socratic")):
        files = chosen(folder, TWO.replace("held-out", "test"), split, subset)
        rows = datasets.load_dataset(str(folder), subset, split=split, cache_dir=str(folder / ".cache"))
        assert [FILES[int(question)] for question in rows["question"]] == files
