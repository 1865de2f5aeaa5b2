"""Messages to the engine's process: what goes in comes out, and reading one runs no code."""

import os
import pickle
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlt_jax
from rlt_jax.sampling.vllm_process.rlt_messages import receive_message, send_message

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["bytes", "pairs", "", "a"]) | st.integers(), inner)
    ),
    max_leaves=20,
)


def passed(message):
    ours, theirs = Pipe()
    with ours, theirs:
        send_message(ours, message)
        return receive_message(theirs)


@given(PLAIN)
def test_what_goes_in_comes_out(message):
    assert passed(message) == message


def test_tuples_become_lists_and_numbers_stay_exact():
    message = ("completion", 3, np.arange(5, dtype=np.int32).tobytes(), {"t": 0.1 + 0.2, "ids": (1, 2)}, True)
    assert passed(message) == [
        "completion",
        3,
        np.arange(5, dtype=np.int32).tobytes(),
        {"t": 0.1 + 0.2, "ids": [1, 2]},
        True,
    ]
    assert passed([float("-inf"), b"", [b"a", [b"b"]]]) == [float("-inf"), b"", [b"a", [b"b"]]]


@pytest.mark.parametrize(
    "message",
    [{1.5: "a"}, {(1,): 0}, np.int64(3), np.zeros(2), object(), {"a": {None: 1}}],
    ids=lambda message: type(message).__name__,
)
def test_what_is_not_plain_is_refused_and_nothing_is_sent(message):
    ours, theirs = Pipe()
    with ours, theirs:
        with pytest.raises(TypeError):
            send_message(ours, message)
        assert not theirs.poll()


class Marking:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_no_message_and_does_not_run(tmp_path):
    ours, theirs = Pipe()
    with ours, theirs:
        for _ in range(3):
            ours.send_bytes(pickle.dumps(Marking(tmp_path / "marker")))
        with pytest.raises(OSError, match="no message"):
            receive_message(theirs)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "frames", [[b"1", b'{"bytes": 4}', b"x"], [b"[]", b"1"], [b"1", b"{"], [b"\xff", b"1"]], ids=repr
)
def test_what_is_no_message_is_an_error_of_the_connection(frames):
    ours, theirs = Pipe()
    with ours, theirs:
        for frame in frames:
            ours.send_bytes(frame)
        ours.close()
        with pytest.raises(OSError):
            receive_message(theirs)


def test_a_closed_pipe_is_its_end():
    ours, theirs = Pipe()
    ours.close()
    with theirs, pytest.raises(EOFError):
        receive_message(theirs)


def test_a_large_batch_takes_no_time():
    jobs = [(index, list(range(2000)), index) for index in range(512)]
    import threading

    ours, theirs = Pipe()
    with ours, theirs:
        start = time.process_time()  # of both threads, whatever else the machine does
        sender = threading.Thread(target=send_message, args=(ours, jobs))
        sender.start()
        assert receive_message(theirs) == [list(job) for job in jobs]
        sender.join()
        assert time.process_time() - start < 5


def test_the_package_reads_no_pickles():
    """Nor anything else that can run code when it is read."""
    loads = ("import pickle", "import marshal", "import shelve", "import joblib", "np.load(", "torch.load(", ".recv()")
    for file in Path(rlt_jax.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [load for load in loads if load in text], file
