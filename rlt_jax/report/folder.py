"""A clear error for run folders that cannot be written, or that lead elsewhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_jax.disk import cannot_write
from rlt_jax.errors import DISK_ERRORS, UserError


@contextmanager
def writing_to(run_dir: Path) -> Iterator[None]:
    """Turn a failure to write a file of the run folder into a UserError that names it, the reason and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_ERRORS:
            file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else run_dir
            raise cannot_write(file, error, otherwise="") from error
        raise UserError(
            f"expected a run folder that can be written, got {run_dir} ({error.strerror}): "
            "choose another folder, or fix this one"
        ) from error


def refuse_links(run_dir: Path) -> None:
    """Refuse a run folder that has links out of it: what a run writes there would change files elsewhere.

    The folder itself may be a link, and so may what is below `wandb`, whose links are its own.

    Raises:
      UserError: there is such a link.
    """
    inside = run_dir.resolve()
    for place, folders, files in os.walk(run_dir):
        for name in (*folders, *files):
            entry = Path(place) / name
            if entry.is_symlink() and not entry.resolve().is_relative_to(inside):
                raise UserError(
                    f"expected a run folder without links to other places, but {entry} leads to {entry.readlink()}, "
                    "which the run would write: remove the link, or choose another folder (--output-dir itself may be "
                    "a link, to a larger disk for example)"
                )
        if Path(place) == run_dir and "wandb" in folders:
            folders.remove("wandb")
