"""Work in chunks: what a stopped start leaves, what the next one does with it, and that the result comes whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlt_jax.errors import UserError
from rlt_jax.report.partial_file import Chunk, fingerprint, open_partial

SETTINGS = {"seed": 1, "sampler": {"top_p": 0.9, "stop": (1, 2)}}


def chunk(number: int) -> Chunk:
    return Chunk([{"chunk": number, "text": "größer\u2028<"}, {"chunk": number}], {"drawn": 2, f"in {number}": 1})


def start(out: Path, *numbers: int, settings=SETTINGS) -> int:
    """Add some chunks and stop; returns how many were there."""
    with open_partial(out, settings) as partial:
        before = partial.done
        for number in numbers:
            partial.add(chunk(number))
    return before


def finish(out: Path) -> list[dict]:
    with open_partial(out, SETTINGS) as partial:
        partial.finish()
    return [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "new" / "out.jsonl"


def test_the_result_appears_whole_and_the_partial_file_goes(out):
    assert start(out, 0) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl.partial"]
    assert finish(out) == list(chunk(0).records)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_a_second_start_resumes(out):
    start(out, 0, 1)
    assert start(out, 2) == 2
    with open_partial(out, SETTINGS) as partial:
        assert partial.done == 3
        assert [read.records for read in partial.read()] == [chunk(n).records for n in range(3)]
        assert partial.counts() == {"drawn": 6, "in 0": 1, "in 1": 1, "in 2": 1}
    assert [record["chunk"] for record in finish(out)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("torn", [b'{"records": [{"chunk": 2, "te', b'{"records": [], "counts": {}}', b"\0\0\0\n"])
def test_a_torn_chunk_is_done_again(out, torn):
    start(out, 0, 1)
    partial = out.with_name("out.jsonl.partial")
    with partial.open("ab") as file:
        file.write(torn)
    assert start(out, 2) == 2
    assert [record["chunk"] for record in finish(out)] == [0, 0, 1, 1, 2, 2]


def test_a_torn_first_line_is_a_new_start(out):
    start(out, 0)
    out.with_name("out.jsonl.partial").write_bytes(b'{"seed": 1, "samp')
    assert start(out, 5) == 0
    assert [record["chunk"] for record in finish(out)] == [5, 5]


def test_a_start_without_a_chunk_leaves_nothing(out):
    with pytest.raises(RuntimeError), open_partial(out, SETTINGS):
        raise RuntimeError("no model")
    assert not out.parent.exists()
    out.parent.mkdir()
    with pytest.raises(RuntimeError), open_partial(out.with_name("a") / "b" / "out.jsonl", SETTINGS):
        out.with_name("a").joinpath("engine.log").touch()
        raise RuntimeError("no room")
    assert [path.name for path in out.parent.rglob("*")] == ["a", "engine.log"]  # a folder that was there stays too


def test_a_start_that_fails_later_keeps_what_is_done(out):
    with pytest.raises(RuntimeError), open_partial(out, SETTINGS) as partial:
        partial.add(chunk(0))
        raise RuntimeError("out of memory")
    assert start(out) == 1


def test_a_setting_that_did_not_exist_yet_is_one_that_was_not_used(out):
    start(out, 0)
    assert start(out, 1, settings={**SETTINGS, "column": None}) == 1


def test_other_settings_are_refused(out):
    start(out, 0)
    other = {"seed": 2, "sampler": {"top_p": 0.8, "stop": (1, 2)}, "rows": "abc"}
    with pytest.raises(UserError) as refused:
        start(out, 1, settings=other)
    assert str(refused.value) == (
        f"{out}.partial was started with other settings: rows=None (now abc); sampler.top_p=0.9 (now 0.8); "
        "seed=1 (now 2): use those to resume, or delete the file to start over"
    )
    assert start(out) == 1  # and nothing was lost


def test_an_existing_result_is_never_overwritten(out):
    start(out, 0)
    finish(out)
    with pytest.raises(UserError, match=r"--out .*out.jsonl exists: choose another file, or delete it"):
        start(out, 1)


def test_two_processes_do_not_write_one_file(out):
    start(out, 0)
    code = f"""
from pathlib import Path
from rlt_jax.report.partial_file import open_partial
try:
    with open_partial(Path({str(out)!r}), {SETTINGS}): pass
except Exception as error:
    print(error)
"""
    with open_partial(out, SETTINGS) as partial:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert f"--out {out} is in use by another run (process {os.getpid()} on " in done.stdout
        assert done.stdout.endswith("): wait, stop it, or choose another file\n")
        partial.add(chunk(1))
    assert start(out) == 2


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write --out .*out.jsonl \(.+\): choose another file"):
        start(tmp_path / "file" / "out.jsonl", 0)


def test_a_folder_as_result(tmp_path):
    with pytest.raises(UserError, match="exists: choose another file"):
        start(tmp_path, 0)


def test_fingerprints_differ_with_any_part():
    texts = [["a", "b"], ["ab", ""], ["a", "c"], ["a"], ["a", 1], ["a", "1"], []]
    assert len({fingerprint(parts) for parts in texts}) == len(texts)
    assert fingerprint(["a", "\ud800"]) == fingerprint(iter(["a", "\ud800"]))


@pytest.mark.parametrize("damage", [b"\xff\0garbage\n", b'{"records": 3, "counts": {}}\n', b"[" * 100_000 + b"\n"])
def test_damage_in_the_middle_is_kept_aside_and_done_again(tmp_path, damage):
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with open_partial(out, {"seed": 1}) as file:
        for number in range(3):
            file.add(Chunk([{"chunk": number}], {"drawn": 1}))
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    with open_partial(out, {"seed": 1}) as file:
        assert file.done == 1 and file.counts() == {"drawn": 1}
    assert (tmp_path / "out.jsonl.partial.damaged-1").read_bytes() == b"".join([damage, *lines[2:]])
