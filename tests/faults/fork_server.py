"""Starts commands of the package quickly: one process imports what they need, and forks for each of them.

    python tests/faults/fork_server.py

reads an order (one line of JSON: module, argv, output, phases, env) from its input, forks, writes the child's process
id, waits for its end, and writes the exit code as `subprocess` counts it. One command at a time. The child runs
the module as `python -m MODULE` does, in a session of its own, and ends as any interpreter does. Neither JAX nor a
thread may be started before the fork: only modules are imported.
"""

import importlib
import json
import os
import runpy
import signal
import sys
from contextlib import suppress

IMPORTED = (  # beforehand: what `train` and `sft` import sooner or later, which takes most of their start-up
    *(
        "rlt_jax.runs.open_rlt",
        "rlt_jax.runs.sft",
        "rlt_jax.runs.session",
        "rlt_jax.runs.chats",
        "rlt_jax.report.curves",
    ),
    *("torch", "datasets", "transformers.tokenization_utils_tokenizers", "transformers.convert_slow_tokenizer"),
    *("matplotlib.backends.backend_agg", "tensorboard.summary", "jaxlib.mlir.dialects.func", "pynvml", "pydantic.main"),
)


def main() -> None:
    for name in IMPORTED:
        with suppress(ImportError):  # a private module of a package, which another version of it lacks
            importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(order)
            return  # to the end of the file, and so to the end of the interpreter
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(order: dict) -> None:
    """Turn this fork into the command."""
    os.setsid()
    os.environ.update(order["env"])
    with open(os.devnull) as nothing, open(order["output"], "ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with &
    importlib.import_module("sitecustomize").install(order["phases"])
    sys.orig_argv, sys.argv = [sys.executable, "-m", order["module"], *order["argv"]], ["-m"]
    importlib.import_module("rlt_jax.stops").install_for_command()  # as importing the package does in a new process
    sys.argv = [order["module"], *order["argv"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
