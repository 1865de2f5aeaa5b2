"""Commands on terminals of all kinds: ASCII, narrow, a pipe, a closed or full stream; and where nothing is found."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

PLAN = ("plan", "--preset", "tiny", "--no-compile")


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: bytes
    err: str


@pytest.fixture
def run(tmp_path) -> Callable[..., Done]:
    """run("plan", *flags, shell="| head -1", COLUMNS="20"): the code is the command's, not the pipeline's."""

    def run(name: str, *flags: object, shell: str = "", **env: str) -> Done:
        line = f'"$@" {shell}; exit ${{PIPESTATUS[0]}}'
        command = [sys.executable, "-m", f"rlt_jax.{name}", *map(str, flags)]
        done = subprocess.run(
            ["bash", "-c", line, "bash", *command], cwd=tmp_path, capture_output=True, env={**os.environ, **env}
        )
        err = done.stderr.decode()
        assert "Traceback" not in err and "Exception ignored" not in err, err
        return Done(done.returncode, done.stdout, err)

    return run


@pytest.fixture
def in_terminal(tmp_path) -> Callable[..., tuple[int, str]]:
    """The same in a terminal of some columns: (code, everything that appeared)."""

    def run(columns: int, name: str, *flags: object, encoding: str = "ascii", **env: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        ambient = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", f"rlt_jax.{name}", *map(str, flags)],
            cwd=tmp_path,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**ambient, "TERM": "xterm", "PYTHONIOENCODING": encoding, **env},
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the last one has closed the terminal
                break
            if not part:
                break
            shown += part
        os.close(ours)
        text = shown.decode(encoding)
        assert "Traceback" not in text, text
        return process.wait(), text

    return run


@pytest.fixture
def training(small) -> tuple:
    """Flags of one step with an evaluation at its end, whose summary holds a plus-minus sign."""
    return (*small, "--max-steps", "1", "--eval-steps", "1", "--save-steps", "0", "--checkpoint.no-at-end")


@pytest.fixture
def scoring(tiny, tmp_path) -> tuple:
    """Flags that score one row, whose texts would steer a terminal."""
    row = json.loads((tiny / "train.jsonl").read_text().splitlines()[0])
    row |= {"question": "\x1b[2J\x9b31m ± 中 " + row["question"], "explanation": "so \x1b]0;title\x07 ✓ −1"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    return ("score", "--teacher", tiny / "teacher", "--student", tiny / "student", "--data", "rows.jsonl", "--out", "o")


# A whole run


def test_a_run_ends_well_in_ascii_and_its_files_are_utf_8(run, training, tmp_path):
    done = run("train", *training, "--output-dir", "run", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert (done.code, done.err) == (0, "")
    assert re.search(rb"reward +\S+ -> \S+  change \S+ \+/- \S+ ", done.out)
    assert done.out.isascii()
    for file in ("metrics.jsonl", "config.yaml", "logs/training.log"):
        assert (tmp_path / "run" / file).read_text(encoding="utf-8")


def test_a_full_disk_behind_the_screen_loses_no_run(run, training, tmp_path):
    done = run("train", *training, "--output-dir", "run", shell=">/dev/full")
    assert done.code == 2
    assert "expected to write to the standard output, but: No space left on device" in done.err
    assert (tmp_path / "run/final/model.safetensors").exists() and (tmp_path / "run/curves.png").exists()


def test_a_run_without_any_stream(run, training, tmp_path):
    done = run("train", *training, "--output-dir", "run", shell="<&- >&- 2>&-")
    assert done == (0, b"", "")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 1]
    assert (tmp_path / "run/final/model.safetensors").exists()


def test_a_run_in_a_narrow_ascii_terminal(in_terminal, training):
    """Bars and log lines keep to the width; the summary, whose table does not fit, is plain."""
    code, shown = in_terminal(24, "train", *training, "--output-dir", "run")
    assert code == 0
    bars = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"\r|\n|\x1b\[2K", shown)]
    assert max(len(bar) for bar in bars if "ETA" in bar) <= 24
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    start = plain[plain.index("INFO ") : plain.index("\x1b")]  # up to the bar
    assert max(map(len, start.split("\r\n"))) == 24
    assert re.search(r"INFO evaluating every 1\s+steps on \d+ rows\s", start)
    assert re.search(r"reward +\S+ -> \S+  change \S+ \+/- \S+ ", shown)


# One row


def test_a_row_cannot_steer_the_terminal(run, scoring):
    done = run(*scoring, "--show-chat", PYTHONIOENCODING="latin-1")
    assert done.code == 0
    text = done.out.decode("latin-1")
    assert r"| \x1b[2J\x9b31m ± ? What is" in text
    assert r"> so \x1b]0;title\x07 ok -1" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_a_bar_in_a_narrow_ascii_terminal_without_colours(in_terminal, scoring):
    code, shown = in_terminal(10, *scoring, NO_COLOR="1")
    assert code == 0
    bars = re.findall(r"\x1b\[2K(sco[^\r\n]*)", shown)  # drawn over an erased line, unlike the command's first lines
    assert 0 < max(map(len, bars)) <= 10


# The plan


@pytest.mark.parametrize("columns", [10, 200])
def test_a_plan_in_ascii(in_terminal, columns):
    """Aligned where it fits; else a line per column, which is plain text."""
    code, shown = in_terminal(columns, *PLAN)
    assert code == 0
    assert "GPU, GB" in shown and "Before the start" in shown
    assert ("  load: trainer's context" in shown) == (columns < 200)
    assert "?" not in shown


def test_a_plan_that_is_cut_off(run):
    for _ in range(5):  # where `head` is slow to end, the pipe takes the whole plan, and nothing is cut off
        done = run(*PLAN, shell="| head -1")
        if done.code:
            break
    assert done.code == 141 and re.fullmatch(rb"Plan of --preset tiny .*\n", done.out)


# Help and mistakes


COMMANDS = ("train", "sft", "generate", "score", "evaluate", "plan", "ablate", "pipeline")

HELP = """
import importlib, sys
for name in sys.argv[1:]:
    print("==", name, flush=True)
    sys.argv = [f"rlt-{name}", "--help"]
    try: importlib.import_module(f"rlt_jax.{name}").main()
    except SystemExit as stop: assert stop.code == 0
"""


def test_every_help_in_ascii():
    """In one process, as the imports take most of the time."""
    narrow = {"COLUMNS": "40", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", HELP, *COMMANDS], capture_output=True, env={**os.environ, **narrow})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii() and b"?" not in done.stdout
    assert done.stdout.count(b"usage: rlt-") == len(COMMANDS)


def test_a_mistake_that_cannot_be_told(run):
    assert run("plan", "--preset", "tinu", shell="2>&-").code == 2


# Missing models and rows


@pytest.mark.parametrize(
    ("teacher", "offline", "message"),
    [
        ("runs/warmup/fina", "0", "runs/warmup/fina does not exist: did you mean runs/warmup/final? check the path"),
        ("nobody/nothing", "0", "there is no nobody/nothing here and the hub cannot be asked ([Errno 111] Connection"),
        ("nobody/nothing", "1", "there is no nobody/nothing here and HF_HUB_OFFLINE is set, so that the hub is not"),
    ],
)
def test_a_missing_model_is_one_message(run, tmp_path, teacher, offline, message):
    (tmp_path / "runs/warmup/final").mkdir(parents=True)
    start = time.monotonic()
    done = run(*PLAN, "--teacher", teacher, HF_HUB_OFFLINE=offline, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith("error: expected a model's folder or its name") and message in done.err
    assert done.err.count("\n") == 1
    assert time.monotonic() - start < 25  # the hub's clients alone would wait longer for a network


def test_rows_that_nobody_has(run, tiny):
    flags = ("--model", tiny / "student", "--data.path", "nobody/rows", "--data.answer-column", "a", "--out", "o")
    done = run("evaluate", *flags, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.code, done.out) == (2, b"")
    assert re.fullmatch(r"error: expected a data set's .*the hub cannot be asked \(.*refused\): check.*\n", done.err)


# `~`


def test_the_home_folder_in_every_path_of_a_file(run, tiny, scoring, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "tiny").symlink_to(tiny)
    (tmp_path / "rows.jsonl").rename(home / "rows.jsonl")
    (home / "score.yaml").write_text(
        "teacher: ~/tiny/teacher\nstudent: ~/tiny/student\ndata: ~/rows.jsonl\nout: ~/o.jsonl\nhistogram: ~/h.png\n"
        "selected_out: ~/s.jsonl\nteacher_prompt_file: ~/tiny/teacher_prompt.txt\n"
    )
    done = run("score", "--config=~/score.yaml", HOME=str(home), FORCE_COLOR="1", TERM="xterm")
    assert (done.code, done.err) == (0, "")
    assert b"\x1b" not in done.out and b"\r" not in done.out  # no bar in a pipe, even with forced colours
    assert {path.name for path in home.iterdir()} >= {"o.jsonl", "h.png", "s.jsonl"}
    assert not (tmp_path / "~").exists()
