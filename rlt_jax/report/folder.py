"""A clear error for run folders that cannot be written."""

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
