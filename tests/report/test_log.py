"""The log: one file, one console, no line twice."""

import io
import logging
import re
from datetime import datetime

import pytest
from rich.console import Console

from rlt_jax.errors import UserError
from rlt_jax.report.log import is_live, setup_logging, start_log_file


@pytest.fixture(autouse=True)
def leave_no_handlers():
    yield
    logger = logging.getLogger("rlt_jax")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)


def test_lines_go_to_file_with_time_and_to_console(tmp_path, pipe, written):
    log = setup_logging(tmp_path, console=pipe)
    logging.getLogger("rlt_jax.data").warning("%d rows skipped", 3)
    log.info("a line that is much longer than eighty columns, " * 3 + "[bold]and no markup[/bold]")
    log.debug("not shown")
    first, second = (tmp_path / "logs" / "training.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING rlt_jax.data: 3 rows skipped", first)
    assert second.endswith("[bold]and no markup[/bold]")
    assert written(pipe).splitlines() == ["WARNING 3 rows skipped", "INFO " + second.split(" rlt_jax: ")[1]]


def test_a_second_set_up_takes_the_place_of_the_first(tmp_path, written):
    old, new = Console(file=io.StringIO()), Console(file=io.StringIO())
    setup_logging(tmp_path / "a", console=old)
    log = setup_logging(tmp_path / "b", console=new)
    log.info("once")
    assert len(log.handlers) == 2
    assert (written(old), written(new)) == ("", "INFO once\n")
    assert (tmp_path / "a" / "logs" / "training.log").read_text() == ""
    assert (tmp_path / "b" / "logs" / "training.log").read_text().count("once") == 1


def test_lines_are_held_until_there_is_a_file(tmp_path, pipe, written):
    """With the times at which they were written."""
    log = setup_logging(None, console=pipe)
    log.warning("%d rows skipped", 3)
    assert list(tmp_path.iterdir()) == [] and written(pipe) == "WARNING 3 rows skipped\n"
    log.handlers[0].records[0].created -= 3600
    start_log_file(tmp_path)
    log.info("the start")
    start_log_file(tmp_path)
    first, second = (tmp_path / "logs" / "training.log").read_text().splitlines()
    assert first.endswith(" WARNING rlt_jax: 3 rows skipped") and second.endswith(" INFO rlt_jax: the start")
    times = [datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in (first, second)]
    assert 3595 <= (times[1] - times[0]).total_seconds() <= 3605
    assert written(pipe).splitlines()[1:] == ["INFO the start"]  # no line twice


def test_lines_that_nobody_wants_are_dropped(tmp_path, pipe):
    setup_logging(None, console=pipe).info("of a start that was refused")
    log = setup_logging(None, console=pipe)
    log.info("of the next")
    start_log_file(tmp_path)
    assert (tmp_path / "logs" / "training.log").read_text().count("\n") == 1


def test_a_terminal_gets_rich_lines(tmp_path, terminal, written):
    setup_logging(tmp_path, console=terminal).info("hello")
    assert "hello" in written(terminal)
    assert "\x1b[" in written(terminal)


def test_only_a_terminal_that_can_redraw_is_live(terminal, dumb_terminal, pipe):
    assert is_live(terminal)
    assert not is_live(dumb_terminal)
    assert not is_live(pipe)


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path, terminal):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"expected a run folder that can be written, got .*file \(Not a directory\)"):
        setup_logging(tmp_path / "file", console=terminal)
