"""A command that is killed in the middle of its work."""

import subprocess
import sys
import time
from pathlib import Path


def kill_after(chunks: int, name: str, *flags: object, out: Path) -> Path:
    """Run `python -m rlt_jax.NAME` and kill it once OUT.partial holds so many chunks; returns that file."""
    partial = out.with_name(out.name + ".partial")
    line = [sys.executable, "-m", f"rlt_jax.{name}", *map(str, flags), "--out", str(out)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") < chunks + 1):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -9, process.stderr.read()[-3000:]
    assert not out.exists()
    return partial
