"""The log: one file, one console, no line twice."""

import io
import logging
import re

import pytest
from rich.console import Console

from rlt_jax.errors import UserError
from rlt_jax.report.log import is_live, setup_logging


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
