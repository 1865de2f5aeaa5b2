"""A clear error for run folders that cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_jax.errors import UserError


@contextmanager
def writing_to(run_dir: Path) -> Iterator[None]:
    """Turn a failure to create or open a file of the run folder into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"expected a run folder that can be written, got {run_dir} ({error.strerror}): "
            "choose another folder, or fix this one"
        ) from error
