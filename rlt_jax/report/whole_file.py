"""Atomic writing: a file is written under a temporary name next to its target, and renamed at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_jax.errors import UserError
from rlt_jax.report.owner import remove_empty


@contextmanager
def whole_file(path: Path, name: str) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` if the block succeeds and is removed if it fails.

    The temporary file is created at once, so that a path that cannot be written is found before the work. Folders made
    for it go with it.

    Args:
      name: the user's name for the file, such as `--out`, for error messages.
    Raises:
      UserError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    new_folders = [folder for folder in path.parents if not folder.exists()]  # innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {name} {path} ({error.strerror}): choose another file") from None
    finally:
        if temporary.exists():  # a bare unlink would raise again if a parent is a file
            temporary.unlink()
        remove_empty(new_folders)
