"""What all tests share: the golden cases, consoles, and a compilation cache so that nothing is compiled twice."""

import atexit
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # before JAX is imported; workers and subprocesses inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rlt_jax-tests-xla-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import rlt_jax


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the numbers recorded from the original system, and its two tiny checkpoints."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def padded_teacher(tmp_path_factory) -> Path:
    """The tiny teacher with twice as many rows in its embedding as its tokenizer knows ids.

    Each new row is half as long again as the row it follows, so that the largest logits are those of unknown ids.
    """
    tiny = Path(rlt_jax.__file__).parent / "assets" / "tiny" / "teacher"
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("padded") / "teacher")
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.concatenate([table, 1.5 * table]).astype(table.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 2 * len(table)}))
    return folder


@pytest.fixture
def logged(caplog):
    """Records the project's log; it may have been cut off from the root by a run in this process."""
    logger = logging.getLogger("rlt_jax")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, logger="rlt_jax"):
        yield caplog
    logger.propagate = before


@pytest.fixture
def restored_log():
    """Leaves the project's log as it was: a run in this process takes it over."""
    logger = logging.getLogger("rlt_jax")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.level, logger.propagate, logger.handlers = level, propagate, handlers


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[{}, {"FORCE_COLOR": "1"}], ids=["pipe", "pipe with colours forced"])
def pipe(request) -> Console:
    return Console(file=io.StringIO(), width=80, _environ=request.param)


@pytest.fixture
def terminal() -> Console:
    return Console(file=Terminal(), width=120, _environ={"TERM": "xterm-256color"})


@pytest.fixture
def dumb_terminal() -> Console:
    return Console(file=Terminal(), width=120, _environ={"TERM": "dumb"})


@pytest.fixture
def written() -> Callable[[Console], str]:
    """Reads what a console was given."""

    def read(console: Console) -> str:
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    return read
