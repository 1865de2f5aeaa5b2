"""What all tests share: the golden cases, consoles, and a compilation cache so that nothing is compiled twice."""

import atexit
import io
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # before JAX is imported; workers and subprocesses inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rlt_jax-tests-xla-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # quick ones too: there are many

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import rlt_jax

LONGEST = (  # files, which begin first: one process would be left alone with them at the end
    *("faults/test_short.py", "commands/test_pipeline.py", "commands/test_train_vllm.py", "test_package.py"),
    *("learner/test_backward.py", "commands/test_train.py", "commands/test_ablate.py", "sampling/test_server.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, and then those with the most tests."""
    here = Path(__file__).parent
    rank = {here / name: place for place, name in enumerate(LONGEST)}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (rank.get(item.path, len(rank)), -tests[item.path]))  # a file stays in one piece


@pytest.hookimpl(tryfirst=True)  # before the fixtures of a module, which compile too
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compile the programs of tests marked `quick_compile` without LLVM's optimizations: a third less time.

    For tolerances: a test of bits, or of memory, is taken out of a marked file by `quick_compile(False)`.
    """
    marker = item.get_closest_marker("quick_compile")
    wanted = marker is not None and marker.args != (False,) and item.get_closest_marker("gpu") is None
    jax = sys.modules.get("jax")
    if jax is not None and wanted != jax.config.read("jax_disable_most_optimizations"):
        jax.config.update("jax_disable_most_optimizations", wanted)
        jax.clear_caches()  # what was compiled in the other way


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
    with log_as_it_was():
        yield


@contextmanager
def log_as_it_was() -> Iterator[None]:
    """Put level and handlers of the project's log back at the end of the block."""
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
