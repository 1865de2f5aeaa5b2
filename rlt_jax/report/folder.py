"""One clear error for a run folder that cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_jax.errors import UserError


@contextmanager
def writing_to(run_dir: Path) -> Iterator[None]:
    """Turn a failure to make or open files of the run folder into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"expected a run folder that can be written, got {run_dir} ({error.strerror}): "
            "give another one, or mend what stands in its way"
        ) from error
