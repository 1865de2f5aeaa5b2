"""A command in a process of its own: what is shown, kept, and said of a failure."""

import pytest

from rlt_jax.runs.launch import OutOfTime, run_logged

CODE = "import sys\nprint('one')\nprint('two', file=sys.stderr)\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(code): its name, for `python -m`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code: str) -> str:
        (tmp_path / "command.py").write_text(code)
        return "command"

    return write


def test_output_is_shown_and_kept(module, tmp_path, capfd):
    log = tmp_path / "log"
    assert run_logged(module(CODE), [], "me", log) is None
    assert run_logged(module(CODE), [], "me", log, quiet=True) is None
    assert sorted(log.read_text().splitlines()) == ["one", "one", "two", "two"]
    assert sorted(capfd.readouterr().out.splitlines()) == ["me: one", "me: two"]


def test_flags_and_failure(module, tmp_path):
    failure = run_logged(module("import sys\nsys.exit('error: ' + sys.argv[1])"), ["why"], "me", tmp_path / "log")
    assert failure == f"exit code 1 (error: why), see {tmp_path / 'log'}"


def test_a_late_command_is_ended(module, tmp_path):
    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(100)\n"
    with pytest.raises(OutOfTime):
        run_logged(module(code), [], "me", tmp_path / "log", seconds=1.0)


def test_a_command_that_ends_in_time_is_not_late(module, tmp_path):
    assert run_logged(module("print(1)"), [], "me", tmp_path / "log", seconds=60.0) is None
    assert "exit code 3" in str(run_logged(module("exit(3)"), [], "me", tmp_path / "log", seconds=60.0))


def test_the_log_is_utf_8_and_the_terminal_gets_no_control_characters(module, tmp_path, capfd, monkeypatch):
    """Whatever the encoding that this process was started with."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    code = r"print('\xb1 \u2192 \x1b[31mred')"
    assert run_logged(module(code), [], "me", tmp_path / "log") is None
    assert (tmp_path / "log").read_text(encoding="utf-8") == "± → \x1b[31mred\n"
    assert capfd.readouterr().out == "me: ± → \\x1b[31mred\n"
