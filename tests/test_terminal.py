"""Streams that take any text: signs that an encoding lacks, closed and full streams, readers that have gone."""

import io
import os
import subprocess
import sys

import pytest

from rlt_jax.terminal import REPLACE, takes, visible


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "4.2 ± 0.1 × 3 − 1 → 2 …", "4.2 +/- 0.1 x 3 - 1 -> 2 ..."),
        ("ascii", "✓ “so” ≤ ≠ 中é", 'ok "so" <= != ??'),
        ("ascii", "┏━┳┓┃─│╭╯", "+-++|-|++"),
        ("ascii", "█▏ ⠋", "## " + "\\"),
        ("latin-1", "± é → 中", "± é -> ?"),
        ("cp1252", "± – … → −", "± – … -> -"),
        ("utf-8", "± → 中 half \ud83d", "± → 中 half ?"),
    ],
)
def test_signs_that_an_encoding_lacks_are_replaced(encoding, text, shown):
    assert text.encode(encoding, REPLACE).decode(encoding) == shown


def test_every_sign_alike_is_ascii():
    every = "".join(map(chr, range(0x80, 0x3100)))
    assert every.encode("ascii", REPLACE).isascii()


def test_a_stream_takes_what_its_encoding_has():
    assert takes(io.StringIO(), "±")
    assert not takes(io.TextIOWrapper(io.BytesIO(), "ascii"), "±")
    assert takes(io.TextIOWrapper(io.BytesIO(), "latin-1"), "±")
    assert not takes(io.TextIOWrapper(io.BytesIO(), "latin-1"), "─")


def test_what_would_steer_a_terminal_is_written_out():
    assert visible("a\x1b[2Jb\x9b\x07\r\x7f\u202e") == r"a\x1b[2Jb\x9b\x07\r\x7f\u202e"
    assert visible("a\tb\nc ± 中 \U0001f600") == "a\tb\nc ± 中 \U0001f600"


def run(program: str, shell: str) -> tuple[int, str]:
    """(exit code, stderr) of a command whose main is `program`, with `shell` behind it."""
    code = f"import os, sys, logging\nfrom rlt_jax.errors import *\ndef main():\n {program}\nrun_command(main)"
    # PIPESTATUS, as the code of a pipeline is that of its last command
    line = f'"$0" -c "$1" {shell}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("program", "shell", "code"),
    [
        ("print('±')", "", 0),
        ("print('±')", ">&-", 0),
        ("print('±')", ">&- 2>&- <&-", 0),
        ("[print('line', i) for i in range(10**5)]", "| head -1", 141),
        ("[print('line', i, flush=True) for i in range(10**5)]", "| head -1", 141),
        ("print('x'); raise UserError('wrong')", "2>/dev/full", 2),
        ("print('x'); raise UserError('wrong')", "2>&-", 2),
        ("raise SystemExit(3)", ">/dev/full", 3),
        ("print('x'); sys.exit()", "", 0),
    ],
)
def test_no_stream_makes_a_traceback(program, shell, code):
    assert run(program, shell) == (code, "")


def test_a_full_disk_behind_stdout_is_told_at_the_end_and_stops_nothing(tmp_path):
    file = tmp_path / "whole"
    code, error = run(f"print('x', flush=True); print('y', flush=True); open({str(file)!r}, 'w').close()", ">/dev/full")
    assert code == 2
    assert error.startswith("error: expected to write to the standard output, but: No space left on device: ")
    assert file.exists()


def test_a_closed_stdout_leaves_its_number_to_no_file(tmp_path):
    """Else what a library prints to number 1 would stand in the run's own file."""
    file = tmp_path / "own"
    program = f"own = open({str(file)!r}, 'w'); os.write(1, b'noise'); own.write('text'); own.close()"
    assert run(program, ">&- 2>&-")[0] == 0
    assert file.read_text() == "text"


def test_a_user_error_cannot_steer_the_terminal():
    assert run(r"raise UserError('row 3: \x1b[31m ±')", "") == (2, "error: row 3: \\x1b[31m +/-\n")


def test_a_pipe_of_our_own_that_breaks_is_a_bug():
    code, error = run("raise BrokenPipeError", "")
    assert code == 1
    assert "Traceback" in error


def test_warnings_without_a_log_are_made_visible():
    code, error = run(r"logging.getLogger('rlt_jax').warning('row \x1b[31m → ' + chr(0xd83d))", "")
    assert (code, error) == (0, "row \\x1b[31m -> ?\n")


INTERRUPTED = """
import signal, sys
from rlt_jax.terminal import open_terminal
class Interruption(BaseException):
    pass
def interrupt(*_):
    raise Interruption
open_terminal()
signal.signal(signal.SIGALRM, interrupt)
interruptions = i = 0
while interruptions < 300:
    i += 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.00003 + i % 50 * 0.000002)
        while True:
            i += 1
            sys.stdout.write(f"{i}\\n")
            sys.stdout.flush()
    except Interruption:
        interruptions += 1
"""


def test_an_interruption_while_writing_ends_the_command_and_repeats_no_line():
    """What is written must not be written again by the next line or at the end: readers act on lines."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True, timeout=60)
    numbers = [int(line) for line in done.stdout.splitlines()]
    assert len(numbers) > 300 and done.stderr == ""
    assert numbers == sorted(set(numbers))
