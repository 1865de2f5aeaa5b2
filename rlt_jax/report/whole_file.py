"""Atomic writing: a file is written under a temporary name next to its target, and renamed at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_jax.disk import cannot_write, replacing
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
    new_folders = [folder for folder in path.parents if not folder.exists()]  # innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.touch()
            yield temporary
    except OSError as error:
        raise cannot_write(f"{name} {path}", error, otherwise="choose another file", resumes=False) from None
    finally:
        remove_empty(new_folders)
