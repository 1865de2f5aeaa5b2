"""Files that are whole or not there."""

import pytest

from rlt_jax.errors import UserError
from rlt_jax.report.whole_file import whole_file


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "out.txt"
    with whole_file(path, "--out") as unfinished:
        unfinished.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it" and list(path.parent.iterdir()) == [path]


def test_an_interruption_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path, "--out") as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_no_new_folders(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "new" / "folder" / "out.txt", "--out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    worked = False
    message = r"cannot write --out .*/file/out.txt \(File exists\): choose another file"
    with pytest.raises(UserError, match=message), whole_file(tmp_path / "file" / "out.txt", "--out"):
        worked = True
    assert not worked
