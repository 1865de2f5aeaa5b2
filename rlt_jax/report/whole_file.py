"""Files that are whole or not there: written beside their place, and moved to it at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_jax.errors import UserError


@contextmanager
def whole_file(path: Path, name: str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends well and is removed when it doesn't.

    It is made at once, so that a place that cannot be written is found before the work.

    Args:
      name: what the user calls the file, such as `--out`, for the message.
    Raises:
      UserError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {name} {path} ({error.strerror}): choose another file") from None
    finally:
        if unfinished.exists():  # not unlink alone: below a file it raises again
            unfinished.unlink()
